"""Held-out measurements against the start, paired by row, with intervals by user; in numbers and in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import attrs

from duet_train.reporting.numbers import cut, ends, percent, several, short, signed
from duet_train.reporting.run import Answer, Finding, Measurement, Run

if TYPE_CHECKING:
    from duet_train.intervals import Interval

SHOWN = 60
"""Most measurements that get an interval."""
PERSONAL, GAINED = 0.2, 0.01
LESS_FORM = 0.2
LOOPING = 0.05


@attrs.frozen(kw_only=True)
class Point:
    """One measurement and what it says.

    Args:
        of: The measurement.
        reward: Its mean with an interval; None where the file has no rewards by row.
        gain: Against the first measurement, row by row; None for the first, and where the rows do not match.
        own: Mean reward of the rows that the control has too, which are those with a profile; None where unknown.
        personal: What the right user is worth on those rows, row by row; None where the file has no such rows.
        by_user: True where intervals draw whole users; False where the samples do not say whose each row is.
    """

    of: Measurement
    reward: Interval | None = None
    gain: Interval | None = None
    own: float | None = None
    personal: Interval | None = None
    by_user: bool = False

    @property
    def gap(self) -> float | None:
        """What the right user is worth; None where the control is missing."""
        if self.own is None or self.of.shuffled_reward is None:
            return None
        return self.own - self.of.shuffled_reward


def held_out_points(measurements: Sequence[Measurement], samples: Sequence[Answer] = ()) -> list[Point]:
    """The measurements that have a reward; of very many, some evenly over the run.

    Args:
        measurements: By step.
        samples: The completions that were measured, which say whose each row is.
    """
    known = [one for one in measurements if one.reward is not None]
    if len(known) > SHOWN:
        known = [known[0], *(part[-1] for part in cut(known[1:], SHOWN - 1))]
    answers: defaultdict[int, list[Answer]] = defaultdict(list)
    for one in samples:
        answers[one.step].append(one)
    return [_point(one, known[0], answers[one.step]) for one in known]


def _point(one: Measurement, first: Measurement, answers: Sequence[Answer]) -> Point:
    profiles = [answer.reward for answer in answers if answer.reward is not None and not answer.is_malformed]
    users = [answer.user for answer in answers]
    by_user = len(users) == len(one.rewards) and all(users)
    owners = users if by_user else list(map(str, range(len(one.rewards))))
    return Point(
        of=one,
        reward=_mean(one.rewards, owners),
        gain=None if one is first else _difference(one.rewards, first.rewards, owners),
        own=_own(one, profiles),
        personal=_difference(one.rewards, one.shuffled_rewards, owners),
        by_user=by_user,
    )


def _own(one: Measurement, profiles: Sequence[float]) -> float | None:
    """The control leaves out what is no profile, so a mean over all rows would not be its like."""
    if one.shuffled_rewards and len(one.shuffled_rewards) == len(one.rewards):
        pairs = zip(one.rewards, one.shuffled_rewards, strict=True)
        both = [reward for reward, other in pairs if reward is not None and other is not None]
        return fmean(both) if both else None
    if profiles:
        return fmean(profiles)
    return one.reward if one.parse_rate == 1 else None


def _mean(values: Sequence[float | None], owners: Sequence[str]) -> Interval | None:
    """Over the rows that have a value."""
    from duet_train.intervals import mean_interval

    known = [(value, owner) for value, owner in zip(values, owners, strict=True) if value is not None]
    if len(known) < 2:
        return None
    return mean_interval([value for value, _ in known], users=[owner for _, owner in known], resamples=1000)


def _difference(
    rewards: Sequence[float | None], others: Sequence[float | None], owners: Sequence[str]
) -> Interval | None:
    """Over the rows that both have."""
    if len(rewards) != len(others):
        return None
    pairs = zip(rewards, others, strict=True)
    return _mean([None if one is None or other is None else one - other for one, other in pairs], owners)


# In words


def held_out_findings(run: Run, points: Sequence[Point]) -> Iterator[Finding]:
    """What the held-out rows say.

    Args:
        run: Any.
        points: Its measurements.
    """
    yield from _gained(points)
    yield from _personal(points)
    yield from _greedy(run, points)
    yield from _loops(run)


def _gained(points: Sequence[Point]) -> Iterator[Finding]:
    if len(points) < 2:
        return
    first, last = points[0].of, points[-1].of
    before, after = first.reward or 0.0, last.reward or 0.0
    words = f"{short(before)} at the start, {short(after)} at step {last.step}: {signed(after - before)}"
    gain = points[-1].gain
    if gain is None or math.isnan(gain.low):
        yield Finding("plain", "Held-out reward", f"{words}. No interval: the rewards by row are missing.", "held-out")
        return
    rows = f"95 % interval {_span(gain)}, {several(gain.units, 'user' if points[-1].by_user else 'row')}, paired"
    if gain.low > 0:
        yield Finding("good", "Held-out reward", f"{words} ({rows}).", "held-out")
    elif gain.high < 0:
        yield Finding("bad", "Held-out reward", f"It fell. {words} ({rows}).", "held-out")
    else:
        yield Finding("warn", "Held-out reward", f"{words}, no clear difference ({rows}).", "held-out")


def _span(interval: Interval) -> str:
    return f"{signed(interval.low)} to {signed(interval.high)}"


def _personal(points: Sequence[Point]) -> Iterator[Finding]:
    """The control: what the reward is worth when the profile is of another user."""
    told = [(one, one.gap, one.own) for one in points if one.gap is not None and one.own is not None]
    if not told:
        return
    (_, first_gap, first_own), (last, gap, own) = told[0], told[-1]
    assert first_gap is not None
    assert first_own is not None
    assert gap is not None
    assert own is not None
    interval = last.personal
    words = f"The right user’s profile is worth {signed(gap)} of held-out reward against another user’s"
    words += "" if interval is None else f" (95 % interval {_span(interval)})"
    words += f" at step {last.of.step}" if len(told) == 1 else f", {signed(first_gap)} at the start"
    if len(told) == 1 and interval is None:
        yield Finding("plain", "Control", f"{words}.", "held-out")
    elif gap <= 0 or (interval is not None and interval.low <= 0):
        yield Finding("warn", "Impersonality", f"{words}: whose it is makes no clear difference.", "held-out")
    elif own - first_own > GAINED and gap - first_gap < PERSONAL * (own - first_own):
        words = f"{words}. Of the gain of {signed(own - first_own)} most is there with another user too"
        yield Finding("warn", "Impersonality", f"{words}.", "held-out")
    else:
        yield Finding("good", "Personal", f"{words}.", "held-out")


def _greedy(run: Run, points: Sequence[Point]) -> Iterator[Finding]:
    """Held-out rows are written greedily: a policy may keep to the form when it samples, and not then."""
    training = ends(run.series("duet/parse_rate"))
    held_out = points[-1].of.parse_rate if points else None
    if training is not None and held_out is not None and held_out < training.last - LESS_FORM:
        share = f"{percent(held_out)} of the held-out completions are profiles"
        words = f"{share}, {percent(training.last)} of those in training."
        yield Finding("warn", "Held-out form", words, "held-out")


def _loops(run: Run) -> Iterator[Finding]:
    source = [one for one in run.samples or run.answers if one.text is not None]
    last = [one.text or "" for one in source if one.step == source[-1].step]
    share = fmean(map(_repeats_itself, last)) if last else 0.0
    if share > LOOPING:
        which = "held-out completions" if run.samples else "completions"
        words = f"{percent(share)} of the {which} at step {source[-1].step} say few words over and over."
        yield Finding("warn", "Loops", words, "samples")


def _repeats_itself(text: str) -> bool:
    words = text.casefold().split()
    return len(words) >= 40 and len(set(words)) < 0.25 * len(words)
