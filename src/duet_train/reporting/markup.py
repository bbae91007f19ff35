"""HTML and SVG as text in which all that is not markup is escaped. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What a browser does not show, or what turns the text around it: control characters, marks of direction, line
# separators, tag characters, and halves of surrogate pairs, which no file can hold. Joiners stay: emoji and several
# scripts are written with them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
_SPECIAL = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("'"): "&#39;"}
_VOID = frozenset({"meta", "input", "br"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def visible(text: str) -> str:
    """The text with what a browser would not show, or would turn around, written as its code point.

    Args:
        text: Anything.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", lines)


def escape(text: object) -> Markup:
    """A text as markup; what is markup already stays.

    Args:
        text: Anything.
    """
    return text if isinstance(text, Markup) else Markup(visible(str(text)).translate(_SPECIAL))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: Of the element; never from data.
        children: Markup as it is, all else escaped; None is left out.
        attributes: ``class_`` and ``data_step`` become ``class`` and ``data-step``; None and False are left out, True
            stands without a value.
    """
    head = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Markup and texts, one after the other.

    Args:
        parts: As the children of `tag`.
    """
    return Markup("".join(escape(part) for part in parts if part is not None))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_plain(value))}"'


def _plain(value: object) -> object:
    """Coordinates to a tenth of a pixel: a page has thousands of them."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
