"""Which sides and which sections a completion has: one record drives prompt, grammar and parser."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from duet._errors import ConfigurationError

SIDES = ("user", "item")
SECTIONS = ("cue", "constructed_prompt", "profile")

Slot = tuple[str, str]

# ASCII control characters, white space and punctuation, then the other white space and the ellipsis: what may not stand
# alone in a section. One character class serves the grammar and the parser.
_FILLER = r"\x00-/:-@\[-`{-\xA0\u1680\u2000-\u200A\u2026\u2028\u2029\u202F\u205F\u3000"
_SUBSTANCE = re.compile(f"[^{_FILLER}]")


def _ordered(chosen: Iterable[str], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if not names or set(names) - set(known):
        raise ConfigurationError(f"{what} must be some of {', '.join(known)}; got {names!r}")
    return tuple(name for name in known if name in names)


def _sides(chosen: Iterable[str]) -> tuple[str, ...]:
    return _ordered(chosen, SIDES, "sides")


def _sections(chosen: Iterable[str]) -> tuple[str, ...]:
    return _ordered(chosen, SECTIONS, "sections")


@attrs.frozen
class ProfileSchema:
    """The shape of a completion: for each side a block, in it the sections, always in DUET's order.

    ``<user_profile><cue/><constructed_prompt/><profile/></user_profile>``, then ``<item_profile>`` with the same three.
    The user's side comes first, so that the item's can attend to it (DUET, "Output schema"). The paper's ablations are
    settings: `sides` without "item", `sections` without "cue" or "constructed_prompt".

    Args:
        sides: Some of "user", "item".
        sections: Some of "cue", "constructed_prompt", "profile".
        max_chars: Most characters in a section: the prompt asks for it and the grammar enforces it. None asks for none
            and lets the grammar stop at 600.
        plain_text: Refuse completions whose sections hold links, markdown or HTML; the text is never rewritten. For
            profiles that are shown to people, since a review may talk a model into writing a link.
    """

    sides: tuple[str, ...] = attrs.field(default=SIDES, converter=_sides)
    sections: tuple[str, ...] = attrs.field(default=SECTIONS, converter=_sections)
    max_chars: int | None = attrs.field(default=None, kw_only=True)
    plain_text: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.max_chars is not None and self.max_chars < 1:
            raise ConfigurationError(f"max_chars must be at least 1, got {self.max_chars}")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """(side, section) in the order in which they are written."""
        return tuple((side, section) for side in self.sides for section in self.sections)

    def without(self, section: str) -> ProfileSchema:
        """The same schema less one section.

        Args:
            section: Its name; one that the schema does not have changes nothing.

        Raises:
            ConfigurationError: No section would be left.
        """
        return attrs.evolve(self, sections=tuple(name for name in self.sections if name != section))

    def skeleton(self) -> str:
        """The completion with "..." for every section, as the prompt shows it."""
        lines = []
        for side in self.sides:
            lines += [f"<{block(side)}>", *(f"<{name}>...</{name}>" for name in self.sections), f"</{block(side)}>"]
        return "\n".join(lines)

    def grammar(self) -> str:
        """A GBNF grammar of the completions that parse, for engines that decode under one.

        A section starts with neither white space nor punctuation and holds no "<", so it is never blank and never
        holds a tag.
        """
        lead, rest = rf"[^{_FILLER}]", "[^<]"
        rules = [f"root ::= {' nl '.join(block(side).replace('_', '-') for side in self.sides)}"]
        for side in self.sides:
            parts = [_literal(f"<{block(side)}>"), *(name.replace("_", "-") for name in self.sections)]
            rules.append(f"{block(side).replace('_', '-')} ::= {' nl '.join([*parts, _literal(f'</{block(side)}>')])}")
        rules += [
            f"{name.replace('_', '-')} ::= {_literal(f'<{name}>')} text {_literal(f'</{name}>')}"
            for name in self.sections
        ]
        rules += [f"text ::= {lead} {rest}{{0,{(self.max_chars or 600) - 1}}}", r'nl ::= "\n"']
        return "\n".join(rules) + "\n"


def block(side: str) -> str:
    """The tag around one side."""
    return f"{side}_profile"


def is_blank(text: str) -> bool:
    """True for a section without content: white space and punctuation alone, as in a copied "..."."""
    return _SUBSTANCE.search(text) is None


def _literal(text: str) -> str:
    return f'"{text}"'
