"""Reading a run directory: whatever is spoilt, half-written or missing is passed over, and counted."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Protocol, TypeVar

import attrs

from duet import ConfigurationError
from duet_train.reporting.numbers import number
from duet_train.reporting.run import Answer, Measurement, Run

FILES = ("card.json", "history.jsonl", "completions.jsonl", "held_out.jsonl", "samples.jsonl", "groups.jsonl")
"""What a run directory may hold; one of them makes it one."""
_FORMAT_ERRORS = ("MalformedCompletion", "TruncatedCompletion", "CompletionError")
TEXTS_KEPT = 4096
"""Most completions of each file whose text is kept."""


def read_run(directory: Path) -> Run:
    """Read a run directory, of a run that is over or still going on.

    Args:
        directory: What a training verb wrote.

    Raises:
        ConfigurationError: It is not there, is no run directory, or cannot be read.
    """
    if not directory.is_dir():
        what = "is a file and no run directory" if directory.exists() else "does not exist"
        raise ConfigurationError(f"the run directory {str(directory)!r} {what}")
    if not any((directory / name).is_file() for name in FILES):
        raise ConfigurationError(f"{str(directory)!r} is no run directory: it holds none of {', '.join(FILES)}")
    try:
        return _read(directory)
    except OSError as exc:
        raise ConfigurationError(f"the run directory {str(directory)!r} cannot be read: {exc.strerror}") from exc


def _read(directory: Path) -> Run:
    spoilt: Counter[str] = Counter()

    def lines(name: str) -> Iterator[dict[str, Any]]:
        return _lines(directory / name, spoilt)

    logged = list(_logged(lines("history.jsonl")))
    answers = _last(_answers(itertools.chain(lines("completions.jsonl"), _ungrouped(lines("groups.jsonl")))))
    return Run(
        name=directory.resolve().name,
        card=_card(directory / "card.json", spoilt),
        history=_filled(_merged(logged), answers),
        resumes=_resumes(logged),
        replayed=_replayed(logged),
        answers=answers,
        held_out=_once(_last(_measurements(lines("held_out.jsonl"))), lambda one: one.step),
        samples=_once(_last(_answers(lines("samples.jsonl"))), lambda one: (one.step, one.example, one.user, one.item)),
        spoilt=spoilt,
        not_finite=Counter(key for line in logged for key in line.not_finite),
    )


def _card(path: Path, spoilt: Counter[str]) -> Mapping[str, Any]:
    return next(_parsed([path.read_bytes()], path.name, spoilt), {}) if path.is_file() else {}


def _lines(path: Path, spoilt: Counter[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, in order."""
    if path.is_file():
        with path.open("rb") as file:
            yield from _parsed(file, path.name, spoilt)


def _parsed(lines: Iterable[bytes], name: str, spoilt: Counter[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield value
        elif line.endswith(b"\n") and line.strip():
            spoilt[name] += 1


class _Stepped(Protocol):
    @property
    def step(self) -> int: ...
    @property
    def attempt(self) -> int: ...


Row = TypeVar("Row", bound=_Stepped)


def _last(rows: Iterable[Row]) -> list[Row]:
    """Of a step that was replayed, the rows of its last attempt; by step."""
    given = list(rows)
    attempts = {row.step: row.attempt for row in given}
    return sorted((row for row in given if row.attempt == attempts[row.step]), key=lambda row: row.step)


def _once(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """The last row of each key, where the first stood."""
    return list({key(row): row for row in rows}.values())


# The history


@attrs.frozen
class _Logged:
    """One line of the history."""

    step: int
    attempt: int
    values: Mapping[str, float]
    not_finite: Sequence[str]


def _logged(lines: Iterable[Mapping[str, Any]]) -> Iterator[_Logged]:
    for line in lines:
        step = _count(line.get("step"))
        if step is None:
            continue
        given = {key: value for key, value in line.items() if key not in ("step", "attempt", "replayed")}
        values = {key: found for key, value in given.items() if (found := number(value)) is not None}
        wrong = [key for key, value in given.items() if isinstance(value, float) and key not in values]
        yield _Logged(step, _count(line.get("attempt")) or 0, values, wrong)


def _merged(lines: Iterable[_Logged]) -> dict[int, dict[str, float]]:
    """By step, what its last attempt logged; a second line of one attempt adds to the first."""
    merged: dict[int, tuple[int, dict[str, float]]] = {}
    for line in lines:
        before = merged.get(line.step)
        kept = before[1] if before is not None and before[0] == line.attempt else {}
        merged[line.step] = (line.attempt, {**kept, **line.values})
    return {step: merged[step][1] for step in sorted(merged)}


def _resumes(lines: Iterable[_Logged]) -> tuple[int, ...]:
    first: dict[int, int] = {}
    for line in lines:
        first.setdefault(line.attempt, line.step)
    return tuple(step for attempt, step in sorted(first.items()) if attempt > 0)


def _replayed(lines: Iterable[_Logged]) -> int:
    attempts: defaultdict[int, set[int]] = defaultdict(set)
    for line in lines:
        attempts[line.step].add(line.attempt)
    return sum(len(found) > 1 for found in attempts.values())


def _filled(history: dict[int, dict[str, float]], answers: Sequence[Answer]) -> dict[int, dict[str, float]]:
    """The history, with what the completions tell where it has no such key at any step."""
    known = {key for values in history.values() for key in values}
    steps: defaultdict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        steps[answer.step].append(answer)
    filled = {step: dict(history.get(step, {})) for step in sorted({*history, *steps})}
    for step, found in steps.items():
        filled[step] |= {key: value for key, value in _told(found).items() if key not in known}
    return filled


def _told(answers: Sequence[Answer]) -> dict[str, float]:
    """The figures of a step that its completions tell."""
    names = dict.fromkeys(name for answer in answers for name in answer.terms)
    told = {f"duet/terms/{name}": fmean(one.terms[name] for one in answers if name in one.terms) for name in names}
    told["duet/parse_rate"] = 1 - fmean(one.is_malformed for one in answers)
    if rewards := [one.reward for one in answers if one.reward is not None]:
        told["reward"] = fmean(rewards)
    if tokens := [one.tokens for one in answers if one.tokens is not None]:
        told["completions/mean_length"] = fmean(tokens)
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for one in answers:
        if one.reward is not None and one.group:
            groups[one.group].append(one.reward)
    if spreads := [pstdev(found) for found in groups.values() if len(found) > 1]:
        told["duet/group_spread"] = fmean(spreads)
        told["duet/flat_groups"] = fmean(spread < 1e-9 for spread in spreads)
    return told


# Completions and measurements


def _answers(lines: Iterable[Mapping[str, Any]]) -> list[Answer]:
    """All completions; of the texts every 2nd, 4th, 8th … where they are many, so that memory stays small."""
    answers: list[Answer] = []
    texts: dict[int, str] = {}
    stride = 1
    for line in lines:
        step = _count(line.get("step"))
        if step is None:
            continue
        place, text = len(answers), line.get("completion")
        answers.append(_answer(step, line))
        if place % stride == 0 and isinstance(text, str):
            texts[place] = text
        if len(texts) > TEXTS_KEPT:
            stride *= 2
            texts = {place: text for place, text in texts.items() if place % stride == 0}
    for place, text in texts.items():
        answers[place] = attrs.evolve(answers[place], text=text)
    return answers


def _answer(step: int, line: Mapping[str, Any]) -> Answer:
    terms, error = line.get("terms"), _name(line.get("error"))
    return Answer(
        step=step,
        attempt=_count(line.get("attempt")) or 0,
        example=_name(line.get("example")),
        group=_name(line.get("group")),
        reward=number(line.get("reward")),
        terms=_numbers(terms) if isinstance(terms, dict) else {},
        rating=number(line.get("rating")),
        gold=number(line.get("gold")),
        error=error,
        is_malformed=bool(line.get("malformed", error.startswith(_FORMAT_ERRORS))),
        tokens=number(line.get("tokens")),
        user=_name(line.get("user")),
        item=_name(line.get("item")),
        title=_name(line.get("title")),
        arm=_name(line.get("arm")),
    )


def _ungrouped(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The completions of an exploration, in the form of those of a training run; all of one step."""
    for place, line in enumerate(lines):
        common = {key: line.get(key) for key in ("example", "user", "item", "gold")}
        samples = line.get("samples")
        for one in samples if isinstance(samples, list) else ():
            if isinstance(one, dict):
                arm = f"{_name(one.get('model'))}, temperature {_name(one.get('temperature'))}"
                tokens = one.get("completion_tokens")
                yield {**common, **one, "step": 0, "group": place, "arm": arm, "tokens": tokens}


def _measurements(lines: Iterable[Mapping[str, Any]]) -> Iterator[Measurement]:
    for line in lines:
        step = _count(line.get("step"))
        if step is None:
            continue
        rewards = _row_numbers(line.get("rewards"))
        present = [reward for reward in rewards if reward is not None]
        mean = number(line.get("reward"))
        yield Measurement(
            step=step,
            attempt=_count(line.get("attempt")) or 0,
            rows=_count(line.get("rows")) or len(rewards) or None,
            reward=fmean(present) if mean is None and present else mean,
            parse_rate=number(line.get("parse_rate")),
            mae=number(line.get("mae")),
            rewards=rewards,
            shuffled_reward=number(line.get("shuffled_reward")),
            shuffled_rewards=_row_numbers(line.get("shuffled_rewards")),
        )


def _row_numbers(value: object) -> tuple[float | None, ...]:
    return tuple(map(number, value)) if isinstance(value, list) else ()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: found for key, value in values.items() if (found := number(value)) is not None}


def _count(value: object) -> int | None:
    """A whole number that is not negative."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def _name(value: object) -> str:
    """An id or a text; what is neither is none."""
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
