"""What a run directory holds, as records. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from duet_train.reporting.numbers import Point


@attrs.frozen(kw_only=True)
class Answer:
    """One completion, of training or of a held-out example.

    Args:
        step: When it was sampled.
        attempt: 0 for the first start, one more for each resume.
        example: Which example; "" where the file does not say.
        group: Which group of its step.
        reward: None where none could be given.
        terms: The terms of the reward.
        rating: What the recommender predicted.
        gold: The true rating.
        error: Why there is no reward or no profile; "" for neither.
        is_malformed: True for a completion that is no profile.
        tokens: Length of the completion.
        text: The completion; None where it was not kept.
        user: Id of the user, in samples.
        item: Id of the item, in samples.
        title: Title of the item, in samples.
        arm: Model and temperature, in an exploration.
    """

    step: int
    attempt: int = 0
    example: str = ""
    group: str = ""
    reward: float | None = None
    terms: Mapping[str, float] = attrs.field(factory=dict)
    rating: float | None = None
    gold: float | None = None
    error: str = ""
    is_malformed: bool = False
    tokens: float | None = None
    text: str | None = None
    user: str = ""
    item: str = ""
    title: str = ""
    arm: str = ""


@attrs.frozen(kw_only=True)
class Measurement:
    """One measurement on held-out rows.

    Args:
        step: When.
        attempt: As for `Answer`.
        rows: How many rows.
        reward: Mean over them.
        parse_rate: Share of profiles.
        mae: Mean absolute error of the predicted ratings, in rating points.
        rewards: One a row, None where there is none.
        shuffled_reward: Mean where each row had another row's user.
        shuffled_rewards: The same row by row, where the file has it.
    """

    step: int
    attempt: int = 0
    rows: int | None = None
    reward: float | None = None
    parse_rate: float | None = None
    mae: float | None = None
    rewards: tuple[float | None, ...] = ()
    shuffled_reward: float | None = None
    shuffled_rewards: tuple[float | None, ...] = ()


@attrs.frozen(kw_only=True)
class Run:
    """What a run directory holds, each step once.

    Args:
        name: Of the directory.
        card: As `card.json` has it.
        history: Numbers by step and key. Keys that only the completions tell are filled in from them.
        resumes: The first step of each attempt after the first.
        replayed: How many steps were done more than once.
        answers: The completions of training, by step.
        held_out: Measurements, by step.
        samples: The held-out completions, by step.
        spoilt: Lines that could not be read, by file; a last line that is half-written is none.
        not_finite: Steps at which a number was NaN or infinite, by key.
    """

    name: str
    card: Mapping[str, Any] = attrs.field(factory=dict)
    history: Mapping[int, Mapping[str, float]] = attrs.field(factory=dict)
    resumes: tuple[int, ...] = ()
    replayed: int = 0
    answers: Sequence[Answer] = ()
    held_out: Sequence[Measurement] = ()
    samples: Sequence[Answer] = ()
    spoilt: Mapping[str, int] = attrs.field(factory=dict)
    not_finite: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def is_exploration(self) -> bool:
        """True where models were compared, and nothing was trained."""
        return any(one.arm for one in self.answers)

    @property
    def keys(self) -> list[str]:
        """What the history knows, in the order in which it came up."""
        return list(dict.fromkeys(key for values in self.history.values() for key in values))

    @property
    def last_step(self) -> int | None:
        """The last step that anything is known of."""
        steps = [*self.history, *(one.step for one in self.held_out)]
        return max(steps, default=None)

    def series(self, *keys: str) -> list[Point]:
        """The values of the first key that the history has, by step.

        Args:
            keys: Names of one quantity, the preferred one first.
        """
        for key in keys:
            if found := [(float(step), values[key]) for step, values in self.history.items() if key in values]:
                return found
        return []

    def setting(self, *names: str) -> Any:
        """A value of the card, by its keys from the outside in; None where it is not there.

        Args:
            names: Keys.
        """
        value: Any = self.card
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value


LEVELS = ("bad", "warn", "good", "plain")
"""From what stops a run being of use to what is only worth knowing."""


@attrs.frozen
class Finding:
    """One diagnosis.

    Args:
        level: One of `LEVELS`.
        topic: What it is about, in two or three words.
        words: What was found.
        anchor: The section that shows it.
    """

    level: str
    topic: str
    words: str
    anchor: str
