"""The parts of `rlso` beside the policy's updates: its rows, the contrastive phase, and what is kept of both phases."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from duet import Completion, CompletionError, ConfigurationError, DuetError, JointPrompt, Message, parse_profile
from duet_train.callbacks import History, append_lines
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.dataset import Row, prompts_of
from duet_train.models import prompt_ids
from duet_train.retrieval import item_text
from duet_train.rollouts import SharedPrefixRollout

if TYPE_CHECKING:
    from duet_train.embedding import TrainableEmbedder
    from duet_train.rlso import RLSOSettings


# Rows


def next_item_rows(
    data: Prepared,
    settings: RLSOSettings,
    split: str,
    sample: int | None,
    tokenizer: Any,
    training_args: Any,
) -> list[Row]:
    """The rows of a split whose item is new to a user with a history, with prompts that show the user alone.

    Args:
        data: What prepare wrote.
        settings: Of the prompt, and whether each user's first interactions alone are taken.
        split: Which.
        sample: At most so many; None takes all.
        tokenizer: The policy's: a template without a system role gets both messages as one.
        training_args: TRL's, with the seed of the sample.
    """
    (prompt,) = prompts_of(settings, data.scale)
    examples = _examples(data, settings, split, sample, training_args.seed)
    rows = [_row(one, prompt, tokenizer) for one in examples if _is_new(one)]
    template = training_args.chat_template_kwargs
    lengths = (len(prompt_ids(tokenizer, row.messages, template)) for row in rows)
    return [row for row, length in zip(rows, lengths, strict=True) if length <= settings.max_prompt_length]


def _examples(
    data: Prepared, settings: RLSOSettings, split: str, sample: int | None, seed: int
) -> list[PreparedExample]:
    if not settings.first_interactions:
        return data.examples(split, sample=sample, seed=seed)  # type: ignore[arg-type]
    firsts = first_interactions(data.examples(split), settings.history_limit)  # type: ignore[arg-type]
    if sample is None or sample >= len(firsts):
        return firsts
    return [firsts[place] for place in sorted(random.Random(seed).sample(range(len(firsts)), sample))]


def first_interactions(examples: Sequence[PreparedExample], count: int) -> list[PreparedExample]:
    """One example a user: the first interactions as what a profile is made from, and the first new item after them.

    An example whose window has lost the user's first rows is left out.

    Args:
        examples: Of a split, in the order of time.
        count: How many interactions; a user with fewer before every target has no example.
    """
    found: dict[str, PreparedExample] = {}
    for one in examples:
        history = one.example.user.history
        whole = one.history_length == len(history) >= count
        if whole and one.example.user.id not in found and _is_new(one):
            user = attrs.evolve(one.profile_user, history=history[:count])
            found[user.id] = attrs.evolve(one, profile_user=user)
    return list(found.values())


def _is_new(one: PreparedExample) -> bool:
    return bool(one.profile_user.history) and all(row.item != one.example.item.id for row in one.example.user.history)


def _row(one: PreparedExample, prompt: JointPrompt, tokenizer: Any) -> Row:
    # The whole history stays with the user: its items are not ranked.
    messages = prompt.render(one.profile_user, one.example.item)
    return Row(id=one.id, example=one.example, messages=for_template(tokenizer, messages), schema=prompt.schema)


def for_template(tokenizer: Any, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages as a chat template takes them: Gemma's first ones know no system role.

    Args:
        tokenizer: With a chat template.
        messages: A system message and a user's.
    """
    from jinja2 import TemplateError

    try:
        prompt_ids(tokenizer, messages, None)
    except TemplateError:
        return ({"role": "user", "content": "\n\n".join(message["content"] for message in messages)},)
    return tuple(messages)


# The contrastive phase


def contrast(
    trainer: Any,
    tokenizer: Any,
    embedder: TrainableEmbedder,
    rows: Sequence[Row],
    settings: RLSOSettings,
    history: PhaseHistory,
    *,
    step: int,
    seed: int,
) -> None:
    """Profiles written once by the policy as it is, then the embedder's updates on them and the items to be found.

    Args:
        trainer: With the policy.
        tokenizer: The policy's.
        embedder: Learns.
        rows: Of training.
        settings: Number and size of the updates.
        history: Gets a line an update.
        step: Updates made before.
        seed: Of the batches.

    Raises:
        DuetError: Hardly any completion is a profile.
    """
    plan = batches(len(rows), settings.contrastive_batch_size, settings.contrastive_updates, seed)
    needed = sorted({place for batch in plan for place in batch})
    texts = write(trainer, tokenizer, [rows[place] for place in needed], settings.sampling_batch_size)
    profiles = {place: text for place, text in zip(needed, texts, strict=True) if text is not None}
    share = len(profiles) / len(needed)
    for number, batch in enumerate(plan, 1):
        written = [place for place in batch if place in profiles]
        if len(written) < 2:
            raise DuetError(
                f"only {len(profiles)} of {len(needed)} completions are profiles, too few for in-batch negatives: "
                "warm-start with `python -m duet_train sft`, and give its adapter as --adapter"
            )
        items = [item_text(rows[place].example.item) for place in written]
        loss = embedder.train_step([profiles[place] for place in written], items)
        history.contrasted(step + number, {"duet/contrastive_loss": loss, "duet/parse_rate": share})


def batches(rows: int, size: int, updates: int, seed: int) -> list[list[int]]:
    """Places of rows for each update, in a random order that begins anew when all have had their turn.

    Args:
        rows: How many there are.
        size: Of a batch; no larger than all rows.
        updates: How many batches.
        seed: Of the order.
    """
    chance = random.Random(seed)
    size = min(size, rows)
    found = []
    for place in range(updates):
        if place % (rows // size) == 0:
            order = chance.sample(range(rows), rows)
        start = place % (rows // size) * size
        found.append(order[start : start + size])
    return found


def write(trainer: Any, tokenizer: Any, rows: Sequence[Row], batch_size: int) -> list[str | None]:
    """The profile that the policy samples for each row; None for a completion that is none.

    Args:
        trainer: With the policy, and how it samples.
        tokenizer: The policy's.
        rows: Any number.
        batch_size: Written at once.
    """
    made = SharedPrefixRollout(chunk=batch_size)([list(row.messages) for row in rows], trainer)
    texts = tokenizer.batch_decode(made["completion_ids"], skip_special_tokens=True)
    return [_profile(text, row) for text, row in zip(texts, rows, strict=True)]


def _profile(text: str, row: Row) -> str | None:
    try:
        profile = parse_profile(Completion(text), row.schema)
    except CompletionError:
        return None
    return profile.user.text if profile.user is not None else None


def phase_seed(seed: int, iteration: int) -> int:
    """The seed of an iteration's contrastive phase, so that it is the same after a crash.

    Args:
        seed: Of the run.
        iteration: From 0.
    """
    return random.Random(f"{seed}:{iteration}").getrandbits(31)


def save_embedder(embedder: TrainableEmbedder, folder: Path, number: int) -> None:
    """Keep the embedder as it is after so many contrastive phases, and no earlier one.

    Args:
        embedder: With its optimizer.
        folder: The run directory.
        number: Of phases.
    """
    scratch = folder / "embedder-unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    embedder.save(scratch)
    # The name says that all of it is there: a kill may come while it is written.
    os.replace(scratch, folder / f"embedder-{number}")
    shutil.rmtree(folder / f"embedder-{number - 1}", ignore_errors=True)


def last_embedder(folder: Path) -> int:
    """After how many contrastive phases the embedder was kept last; 0 where it was not.

    Args:
        folder: The run directory.
    """
    numbers = [path.name.rpartition("-")[2] for path in folder.glob("embedder-*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


# The record of both


class PhaseHistory(History):
    """The history of a run of two phases: updates of both count as its steps.

    Args:
        folder: The run directory.
        attempt: How often the run was started before.
        contrastive_updates: J.
        policy_updates: T.
        rollout: As for `History`.
    """

    def __init__(
        self, folder: Path, attempt: int, contrastive_updates: int, policy_updates: int, *, rollout: Any = None
    ) -> None:
        super().__init__(folder, attempt, rollout=rollout)
        self._contrastive_updates = contrastive_updates
        self._policy_updates = policy_updates

    def watch(self, reward: Any) -> None:
        """Write down what this one scores from now on.

        Args:
            reward: A TRLReward.
        """
        self._reward = reward

    def contrasted(self, step: int, values: Mapping[str, float]) -> None:
        """Write the line of an update of the embedder.

        Args:
            step: Updates of both phases so far.
            values: By key.
        """
        line = {"step": step, "attempt": self._attempt, "replayed": step <= self._seen, "phase": "cl"}
        append_lines(self._folder / "history.jsonl", [line | dict(values)])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As `History`, with steps of both phases."""
        super().on_step_end(args, self._counted(state), control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """As `History`, with steps of both phases."""
        super().on_log(args, self._counted(state), control, {**(logs or {}), "phase": "lm"} if logs else logs, **kwargs)

    def _counted(self, state: Any) -> Any:
        counted = copy.copy(state)
        begun = -(-max(state.global_step, 1) // self._policy_updates)
        counted.global_step += begun * self._contrastive_updates
        counted.max_steps += state.max_steps // self._policy_updates * self._contrastive_updates
        return counted


def check_same_run(folder: Path, settings: RLSOSettings, training_args: Any) -> None:
    """A run goes on with the settings by which its steps are counted, or not at all.

    Args:
        folder: The run directory.
        settings: This project's own.
        training_args: TRL's.

    Raises:
        ConfigurationError: The directory holds a run with others.
    """
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    # Runs of 0.1 know nothing of first_interactions: they took all rows.
    before = {"first_interactions": False, **card.get("settings", {}), "seed": card.get("seed")}
    names = ("contrastive_updates", "policy_updates", "first_interactions", "embedder", "data")
    now = {name: getattr(settings, name) for name in names}
    for name, value in (now | {"seed": training_args.seed}).items():
        if before.get(name) != value:
            raise ConfigurationError(
                f"{folder} holds a run with {name} = {before.get(name)!r}, which cannot go on with {value!r}: "
                f"give --{name} {before.get(name)} to go on, or name another output_dir"
            )


def unfreeze(model: Any, layers: int) -> None:
    """Train the last layers alone, as LangPTune does with Llama-3.

    Args:
        model: A causal language model of transformers.
        layers: How many; 0 trains everything.
    """
    if not layers:
        return
    model.requires_grad_(False)
    for layer in model.get_decoder().layers[-layers:]:
        layer.requires_grad_(True)
