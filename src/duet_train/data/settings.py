"""What `prepare` is asked to do with a log, apart from how it is read and with how much memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import attrs

from duet import ConfigurationError

Split = Literal["global-time", "leave-last-one-out", "by-user"]
Histories = Literal["prequential", "train-only"]

SPLITS: tuple[Split, ...] = get_args(Split)
HISTORIES: tuple[Histories, ...] = get_args(Histories)


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, values))


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that decides which rows and examples come out; it stands in the manifest.

    Args:
        core: Every user and item kept has at least this many rows; 0 and 1 keep all (DUET: 5).
        split: "global-time" cuts the whole log at two moments (DUET), "leave-last-one-out" holds out the last row of
            each user for the test and the one before it for validation, "by-user" holds out whole users (LangPTune).
        ratios: Shares of train, validation and test: of rows in "global-time", of users in "by-user".
        histories: What may stand in a history or in evidence. "prequential": earlier rows of the target's own split and
            of the splits before it (DUET). "train-only": earlier rows of train.
        history: Most rows of a user that a profile is made from.
        recent: Rows of the user after those, that the recommender reads raw (LettinGo: 10).
        evidence: Most rows of an item.
        min_history: Targets with fewer rows before them are no examples.
        seed: Of the order of users in "by-user".

    Raises:
        ConfigurationError: A setting does not hold, or two do not fit together.
    """

    core: int = 5
    split: Split = "global-time"
    ratios: tuple[float, ...] = attrs.field(default=(8.0, 1.0, 1.0), converter=_floats)
    histories: Histories = "prequential"
    history: int = 10
    recent: int = 0
    evidence: int = 10
    min_history: int = 1
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        for name in ("core", "history", "recent", "evidence", "min_history"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must not be negative, got {getattr(self, name)}")
        _require_one_of("split", self.split, SPLITS)
        _require_one_of("histories", self.histories, HISTORIES)
        if len(self.ratios) != 3 or min(self.ratios) < 0 or not self.ratios[0] > 0:
            raise ConfigurationError(f"ratios must be three shares, the first of them above 0, got {self.ratios}")
        if self.split == "by-user" and self.histories == "train-only":
            raise ConfigurationError(
                "by-user holds out all rows of a user, so train-only leaves them without a history; use prequential"
            )

    @property
    def window(self) -> int:
        """Most rows of a user that an example holds: those for the profile, then the recent ones."""
        return self.history + self.recent

    @property
    def cuts(self) -> tuple[float, float]:
        """Where train ends and where validation ends, as shares of the whole."""
        train, validation, test = self.ratios
        total = train + validation + test
        return train / total, (train + validation) / total


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
