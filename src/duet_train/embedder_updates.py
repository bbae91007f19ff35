"""An embedder that learns beside the policy: BLUE's trainable one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from duet import Completion, parse_profile
from duet_train.embedding import TrainableEmbedder
from duet_train.retrieval import item_text
from duet_train.rewards import Scored, TRLReward


class EmbedderUpdates(TrainerCallback):  # type: ignore[misc]
    """After each step of the policy one contrastive update on what it wrote: the best profile of each example.

    The embedder is saved with each checkpoint and loaded with the one that a run goes on from. In a run of several
    processes each would hold another embedder: it needs one process.

    Args:
        embedder: Also the one that the reward embeds with.
        folder: The run directory.

    Attributes:
        reward: Whose scored completions it learns from; set when there is one.
    """

    def __init__(self, embedder: TrainableEmbedder, folder: Path) -> None:
        self._embedder = embedder
        self._folder = folder
        self.reward: TRLReward | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from the checkpoint's embedder."""
        if state.global_step:
            self._embedder.load(self._folder / f"checkpoint-{state.global_step}" / "embedder")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update, before the step's completions are written away."""
        pairs = best_texts(self.reward.scored) if self.reward is not None else []
        if len({item for _, item in pairs}) > 1:
            self._embedder.train_step([profile for profile, _ in pairs], [item for _, item in pairs])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save it with the checkpoint."""
        self._embedder.save(self._folder / f"checkpoint-{state.global_step}" / "embedder")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave it beside the adapter."""
        shutil.rmtree(self._folder / "embedder", ignore_errors=True)
        self._embedder.save(self._folder / "embedder")


def best_texts(scored: Sequence[Scored]) -> list[tuple[str, str]]:
    """Of each example the user's profile that earned most, with the text of its item.

    Completions without a reward and those with a penalty are skipped: nobody knows what their profiles are worth.

    Args:
        scored: Completions of a step.
    """
    best: dict[int, Scored] = {}
    earned: dict[int, float] = {}
    for one in scored:
        value = one.reward.value
        if value is None or one.reward.error is not None:
            continue
        if value > earned.get(one.row.id, -math.inf):
            best[one.row.id], earned[one.row.id] = one, value
    pairs = []
    for one in best.values():
        profile = parse_profile(Completion(one.completion), one.row.schema)
        if profile.user is not None:
            pairs.append((profile.user.text, item_text(one.row.example.item)))
    return pairs
