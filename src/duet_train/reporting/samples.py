"""Profiles of the same examples over the steps, with what the two sides of a pair share marked on both. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs

from duet import RatingScale
from duet_train.reporting.markup import Markup, join, tag
from duet_train.reporting.numbers import cut, short
from duet_train.reporting.run import Answer, Run
from duet_train.reporting.shared import Mark, Shared, shared, usual_stems
from duet_train.reporting.texts import Sections, profiles_of, sections_of

EXAMPLES = 6
STEPS = 8
LONGEST = 2500  # characters of a section that are shown
_SIDES = ("user", "item")
_NAMES = {"user": "User profile", "item": "Item profile"}


State = tuple[int, str]
"""A step, and in an exploration which model at which temperature."""


@attrs.frozen(kw_only=True)
class Samples:
    """The completions that are shown.

    Args:
        examples: For each example its completions, by state.
        of: How many examples there were to choose from.
        states: All states that any of them has.
    """

    examples: Sequence[Sequence[Answer]]
    of: int
    states: Sequence[State]


def chosen(run: Run) -> Samples:
    """The examples that were written most often, the first of them; not the best ones.

    Args:
        run: Any.
    """
    source = [one for one in run.samples or run.answers if one.text is not None]
    by_example: dict[str, dict[State, Answer]] = {}
    for one in source:
        by_example.setdefault(one.example or f"{one.user}\0{one.item}", {}).setdefault((one.step, one.arm), one)
    often = sorted(by_example.values(), key=lambda found: -len(found))[:EXAMPLES]
    states = _spread(sorted({state for found in often for state in found}))
    examples = [[found[state] for state in states if state in found] for found in often]
    return Samples(examples=[found for found in examples if found], of=len(by_example), states=states)


def _spread(states: Sequence[State]) -> list[State]:
    """First, last, and some evenly between."""
    if len(states) <= STEPS:
        return list(states)
    return [states[0], *(part[-1] for part in cut(states[1:], STEPS - 1))]


def samples_section(run: Run, scale: RatingScale) -> Markup:
    """The cards of all chosen examples, and what moves them all to a step.

    Args:
        run: Any.
        scale: Of its ratings.
    """
    found = chosen(run)
    if not found.examples:
        return tag("p", "This run has kept no completions (samples.jsonl, completions.jsonl).", class_="missing")
    usual = usual_stems([text for one in _latest(run) for text in profiles_of(one.text or "").values()])
    which = "examples" if run.is_exploration else "held-out examples" if run.samples else "training examples"
    shown = f"The first {len(found.examples)} of {found.of}" if found.of > len(found.examples) else f"All {found.of}"
    intro = (
        f"{shown} {which}, in the order of the file. Words that both profiles share are marked alike on both sides, "
        "with a colour for each phrase and dots for what else is shared. What most profiles of the run say stays plain."
    )
    cards = [_card(example, usual, scale) for example in found.examples]
    return join([tag("p", intro), None if run.is_exploration else _slider([step for step, _ in found.states]), *cards])


def _latest(run: Run) -> list[Answer]:
    """One completion of each example from the last steps: what most of them say, says nothing of any."""
    first: dict[str, Answer] = {}
    for one in reversed([one for one in run.samples or run.answers if one.text is not None]):
        first.setdefault(one.example, one)
    return list(first.values())[:200]


def _slider(steps: Sequence[int]) -> Markup | None:
    """Shown by the script alone."""
    if len(steps) < 2:
        return None
    control = tag("input", type="range", id="at-step", min=0, max=len(steps) - 1, step=1, value=len(steps) - 1)
    label = tag("label", "Step ", tag("output", steps[-1], id="at-step-shown"), for_="at-step")
    return tag("div", label, control, class_="slider", hidden=True, data_steps=" ".join(map(str, steps)))


def _card(example: Sequence[Answer], usual: Collection[str], scale: RatingScale) -> Markup:
    last = example[-1]
    ids = [f"{side} {name[:80]}" for side, name in (("user", last.user), ("item", last.item)) if name]
    title = last.title[:200] or f"Example {last.example[:80]}"
    head = tag("h3", title, tag("small", ", ".join(ids)), dir="auto")
    gold = None if last.gold is None else tag("p", "True rating ", _rating(last.gold, scale), class_="gold")
    states = [_state(answer, usual, is_open=answer is last) for answer in example]
    return tag("article", tag("header", head, gold), *states, class_="sample")


def _rating(value: float, scale: RatingScale) -> Markup:
    """The number, and a bar for where it lies on its scale."""
    # Where the scale begins above zero its lowest rating still gets some bar.
    origin = min(scale.minimum, 0.0)
    share = (scale.clip(value) - origin) / (scale.maximum - origin) if scale.maximum > origin else 1.0
    bar = tag(
        "svg",
        tag("rect", class_="empty", x=0, y=3, width=60, height=6, rx=3),
        tag("rect", class_="f0", x=0, y=3, width=60 * share, height=6, rx=3),
        class_="scale",
        viewBox="0 0 60 12",
        aria_hidden="true",
    )
    return join([tag("b", short_rating(value)), f" on {scale} ", bar])


def short_rating(value: float) -> str:
    """A rating with two digits at most.

    Args:
        value: In rating points.
    """
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _state(answer: Answer, usual: Collection[str], *, is_open: bool) -> Markup:
    """An example at one step."""
    facts = [
        None if answer.rating is None else f"predicted {short_rating(answer.rating)}",
        None if answer.reward is None else f"reward {short(answer.reward)}",
        answer.error.partition(":")[0][:80] or None,
    ]
    summary = tag(
        "summary", tag("b", answer.arm[:200] or f"Step {answer.step}"), tag("span", " · ".join(filter(None, facts)))
    )
    return tag("details", summary, *_body(answer, usual), class_="state", open=is_open, data_step=answer.step)


def _body(answer: Answer, usual: Collection[str]) -> list[Markup]:
    sections = sections_of(answer.text or "")
    sides = [side for side in _SIDES if (side, "profile") in sections]
    raw = tag("pre", _shortened(answer.text or ""), dir="auto")
    if not sides:
        return [tag("p", "This completion is no profile:", class_="missing"), raw]
    texts = {side: _shortened(sections[side, "profile"]) for side in sides}
    both = shared(texts["user"], texts["item"], usual) if len(sides) > 1 else Shared(marks=([], []))
    columns = [_side(side, texts[side], marks, sections) for side, marks in zip(sides, both.marks, strict=False)]
    legend = _legend(both) if len(sides) > 1 else []
    whole = [tag("details", tag("summary", "The completion as it came"), raw)] if answer.is_malformed else []
    return [*legend, tag("div", *columns, class_="pair"), *whole]


def _legend(both: Shared) -> list[Markup]:
    chips = [tag("li", tag("mark", text, class_=f"p{place}")) for place, text in enumerate(both.phrases)]
    chips += [tag("li", tag("mark", text, class_="px")) for text in both.others[:8]]
    if not chips:
        common = f" but what most profiles say: {', '.join(both.usual[:8])}" if both.usual else ""
        return [tag("p", f"The two profiles share no words{common}.", class_="shared none")]
    return [tag("div", tag("span", "Shared:"), tag("ul", *chips), class_="shared")]


def _side(side: str, text: str, marks: Sequence[Mark], sections: Sections) -> Markup:
    parts: list[object] = []
    at = 0
    for mark in marks:
        look = "px" if mark.phrase < 0 else f"p{mark.phrase}"
        parts += [text[at : mark.start], tag("mark", text[mark.start : mark.end], class_=look)]
        at = mark.end
    cue = sections.get((side, "cue"))
    prompt = sections.get((side, "constructed_prompt"))
    return tag(
        "section",
        tag("h4", _NAMES[side]),
        tag("p", *parts, text[at:], class_="profile", dir="auto"),
        _aside("Cue", cue),
        _aside("Constructed prompt", prompt),
        class_=f"side {side}",
    )


def _aside(name: str, text: str | None) -> Markup | None:
    return tag("p", tag("b", name), " ", _shortened(text), class_="aside", dir="auto") if text else None


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"
