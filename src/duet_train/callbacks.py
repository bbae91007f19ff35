"""What a run writes down on its way: a line a step, every completion, and held-out measurements."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from duet import Completion, CompletionError, JointProfile, Reward, parse_profile
from duet.testing import completion_text
from duet_train.card import Card, plain
from duet_train.dataset import Row
from duet_train.generation import greedy
from duet_train.rewards import OpenEnvs, Scored, TRLReward, malformed
from duet_train.trainers import progress

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """The lines of a JSON-lines file; one that a kill cut short is left out.

    Args:
        path: Need not be there.
    """
    lines = []
    # Not splitlines: a completion may hold any other character that ends a line.
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to a JSON-lines file; after one that was cut short, on a new line.

    Args:
        path: Made where it is not there.
        lines: Whatever JSON can hold.
    """
    with path.open("ab+") as file:
        file.seek(max(file.tell() - 1, 0))
        gap = "" if file.read(1) in (b"", b"\n") else "\n"
        file.write((gap + "".join(json.dumps(plain(line), ensure_ascii=False) + "\n" for line in lines)).encode())


class History(TrainerCallback):  # type: ignore[misc]
    """``history.jsonl`` and ``completions.jsonl`` of a run directory.

    The steps that a resumed run makes again are marked as replayed; the last line of a step is the one that counts.

    Args:
        folder: The run directory.
        attempt: How often the run was started before.
        reward: Whose scored completions are written; None where nothing is scored.
        rollout: Whose seconds are written, where it counts them.
    """

    def __init__(self, folder: Path, attempt: int, *, reward: TRLReward | None = None, rollout: Any = None) -> None:
        self._folder = folder
        self._attempt = attempt
        self._reward = reward
        self._rollout = rollout
        self._seen = max((line["step"] for line in read_lines(folder / "history.jsonl")), default=0)
        self._figures: Line = {}
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of the step."""
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the step's completions, and keep their figures for its line."""
        wall = time.monotonic() - self._started
        scored: list[Scored] = [] if self._reward is None else self._reward.scored
        lines: list[Line] = gather_object([_line(one) for one in scored])
        if not lines:
            self._figures["duet/seconds/update"] = wall
            return
        assert self._reward is not None
        self._reward.scored = []
        seconds = getattr(self._rollout, "seconds", 0.0)
        self._figures = _figures(lines) | {
            "duet/seconds/rollout": seconds,
            "duet/seconds/reward": self._reward.seconds,
            "duet/seconds/update": wall - seconds - self._reward.seconds,
        }
        if state.is_world_process_zero:
            stamped = [{"step": state.global_step, "attempt": self._attempt} | line for line in lines]
            append_lines(self._folder / "completions.jsonl", stamped)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the step's line."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        line = {"step": state.global_step, "attempt": self._attempt, "replayed": state.global_step <= self._seen}
        figures = dict(logs) | self._figures
        append_lines(self._folder / "history.jsonl", [line | figures])
        progress(state.global_step, state.max_steps, figures)
        self._figures = {}


def _line(scored: Scored) -> Line:
    reward = scored.reward
    return {
        "example": scored.row.id,
        "completion": scored.completion,
        "reward": reward.value,
        "terms": dict(reward.terms),
        "rating": None if reward.rating is None else reward.rating.value,
        "gold": scored.row.example.rating,
        "error": None if reward.error is None else type(reward.error).__name__,
        "malformed": malformed(reward),
        "tokens": scored.tokens,
    }


def _figures(lines: list[Line]) -> Line:
    """What a step's completions come to; numbers their groups on the way."""
    groups = _number_groups(lines)
    spreads = [statistics.pstdev(group) for group in groups if len(group) > 1]
    terms: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for name, value in line["terms"].items():
            terms[name].append(value)
    return {
        "duet/parse_rate": 1 - statistics.fmean(line["malformed"] for line in lines),
        "duet/failed_share": statistics.fmean(line["reward"] is None for line in lines),
        "duet/group_spread": statistics.fmean(spreads) if spreads else None,
        "duet/flat_groups": statistics.fmean(spread < 1e-6 for spread in spreads) if spreads else None,
    } | {f"duet/terms/{name}": statistics.fmean(values) for name, values in terms.items()}


def _number_groups(lines: list[Line]) -> list[list[float]]:
    """The rewards of each run of completions of one example, which are a group."""
    groups: list[list[float]] = []
    before = None
    for line in lines:
        if line["example"] != before:
            groups.append([])
            before = line["example"]
        line["group"] = len(groups) - 1
        if line["reward"] is not None:
            groups[-1].append(line["reward"])
    return groups


class HeldOut(TrainerCallback):  # type: ignore[misc]
    """``held_out.jsonl`` and ``samples.jsonl``: the same rows, written greedily at the start, on the way, at the end.

    Beside the reward stands the one with the users' profiles swapped among the rows: what a policy gains there too is
    no knowledge of the user.

    Args:
        folder: The run directory.
        attempt: How often the run was started before.
        rows: That are measured.
        open_envs: Opens the way to the env of each schema.
        tokenizer: The policy's.
        card: Gets the first and the last measurement.
        steps: Between two measurements.
        max_new_tokens: Of a completion.
        chat_template_kwargs: As in training.
    """

    def __init__(
        self,
        folder: Path,
        attempt: int,
        rows: Sequence[Row],
        open_envs: OpenEnvs,
        tokenizer: Any,
        card: Card,
        *,
        steps: int,
        max_new_tokens: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._rows = list(rows)
        self._open_envs = open_envs
        self._tokenizer = tokenizer
        self._card = card
        self._steps = steps
        self._max_new_tokens = max_new_tokens
        self._chat_template_kwargs = chat_template_kwargs
        self._started = any(line["step"] == 0 for line in read_lines(folder / "held_out.jsonl"))
        self.trainer: Any = None
        """Set when there is one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the start, unless an earlier attempt did."""
        if state.global_step == 0 and not self._started:
            self.measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure at every so many steps, and at the last."""
        if state.global_step % self._steps == 0 or state.global_step >= state.max_steps:
            self.measure(state)

    def measure(self, state: Any) -> None:
        """Write, score and note the rows.

        Args:
            state: The trainer's.
        """
        if not self._rows:
            return
        texts = greedy(
            self.trainer,
            self._tokenizer,
            [row.messages for row in self._rows],
            max_new_tokens=self._max_new_tokens,
            chat_template_kwargs=self._chat_template_kwargs,
        )
        if not state.is_world_process_zero:
            return
        rewards, shuffled = asyncio.run(self._score(texts))
        figures = _held_out_figures(self._rows, rewards, shuffled)
        where = {"step": state.global_step, "attempt": self._attempt}
        append_lines(self._folder / "held_out.jsonl", [where | figures])
        samples = [where | _sample(*one) for one in zip(self._rows, texts, rewards, strict=True)]
        append_lines(self._folder / "samples.jsonl", samples)
        held_out = dict(self._card.values.get("held_out", {}))
        held_out.setdefault("start", where | figures)
        self._card.update(held_out=held_out | {"end": where | figures})

    async def _score(self, texts: Sequence[str]) -> tuple[list[Reward], dict[int, Reward]]:
        reward = TRLReward(self._open_envs, {row.id: row for row in self._rows})
        swapped = list(_swapped(self._rows, texts))
        try:
            rewards = await reward.score(texts, [row.id for row in self._rows])
            shuffled = await reward.score([text for _, text in swapped], [one for one, _ in swapped])
        finally:
            await reward.aclose()
        return rewards, dict(zip((one for one, _ in swapped), shuffled, strict=True))


def _swapped(rows: Sequence[Row], texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each well-formed completion with the user's part of the next one that is about another user."""
    written = [(row, profile) for row, text in zip(rows, texts, strict=True) if (profile := _parsed(text, row))]
    for place, (row, profile) in enumerate(written):
        others = (written[(place + step) % len(written)] for step in range(1, len(written)))
        other = next((one for at, one in others if at.example.user.id != row.example.user.id), None)
        if other is not None and other.user is not None:
            yield row.id, _text(row, JointProfile(user=other.user, item=profile.item))


def _parsed(text: str, row: Row) -> JointProfile | None:
    try:
        return parse_profile(Completion(text), row.schema)
    except CompletionError:
        return None


def _text(row: Row, profile: JointProfile) -> str:
    sections = {}
    for side, section in row.schema.slots:
        written = getattr(profile, side)
        sections[f"{side}_{section}"] = getattr(written, "text" if section == "profile" else section)
    return completion_text(row.schema, **sections)


def _held_out_figures(rows: Sequence[Row], rewards: Sequence[Reward], shuffled: Mapping[int, Reward]) -> Line:
    errors = [abs(row.example.rating - one.rating.value) for row, one in zip(rows, rewards, strict=True) if one.rating]
    return {
        "rows": len(rows),
        "reward": mean_of([reward.value for reward in rewards]),
        "parse_rate": 1 - statistics.fmean(malformed(reward) for reward in rewards),
        "mae": statistics.fmean(errors) if errors else None,
        "rewards": [reward.value for reward in rewards],
        "shuffled_reward": mean_of([reward.value for reward in shuffled.values()]),
        "shuffled_rewards": [shuffled[row.id].value if row.id in shuffled else None for row in rows],
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that there are.

    Args:
        values: None where there is none.
    """
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _sample(row: Row, text: str, reward: Reward) -> Line:
    example = row.example
    return {
        "example": row.id,
        "user": example.user.id,
        "item": example.item.id,
        "title": example.item.title,
        "gold": example.rating,
        "completion": text,
        "reward": reward.value,
        "terms": dict(reward.terms),
        "rating": None if reward.rating is None else reward.rating.value,
        "error": None if reward.error is None else type(reward.error).__name__,
    }


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint when all of it is written, since a kill may come in the middle."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the mark."""
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete").touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; None where there is none.

    Args:
        folder: The run directory.
    """
    whole = [path.parent for path in folder.glob("checkpoint-*/complete")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
