"""What a profile that is shown to people should not hold: links, HTML and markdown."""

from __future__ import annotations

import re

_KINDS = {  # compiled with the first use, which takes 4 ms
    "a link": (
        r"\b(?:https?|ftp|file|wss?)\s*:\s*//|\bwww\.\w|\b(?:mailto|javascript|vbscript):[\w/+.@%-]*[,;@(/]"
        r"|\bdata:(?:[\w-]+/[\w.+-]+)?[;,]|\]\s*\([^)\n]*\)|^\s{0,3}\[[^\]\n]+\]:\s*\S"
        # Many pages link these two. A host with a capital is taken for prose: Node.js/Express, Dr.Who/Torchwood.
        r"|(?-i:(?<![A-Za-z\d.-])(?:[a-z\d-]{2,}\.(?:[a-z\d-]+\.)*(?!js/)[a-z]{2,}|[a-z]\.com?)(?:/\w|/?\?\w+=))"
        r"|\w@[a-z\d-]+(?:\.[a-z\d-]+)*\.[a-z]{2,}",
        re.I | re.M,
    ),
    "HTML": (r"<[/!?]?[a-z][^<>]*>|<!--|&(?:#\d+|#x[\da-f]+);", re.I),
    "markdown": (
        r"^\s{0,3}(?:#{1,6}\s|>\s|```|~~~)|!\[|`[^`\n]+`|\*\*[^\s*][^*\n]*\*\*|__[^\s_][^_\n]*__|~~[^\s~][^~\n]*~~"
        r"|(?<![\w*])\*[^\s*](?:[^*\n]*[^\s*])?\*(?![\w*])|(?<!\w)_[^\s_](?:[^_\n]*[^\s_])?_(?!\w)|^\s*\|.*\|\s*$",
        re.M,
    ),
}


def markup_in(text: str) -> str | None:
    """What kind of markup a text holds, the gravest first; None for plain text. Lists are plain.

    A pattern cannot read: what looks like markup and is none is refused too. An address without a scheme or "www." is
    one where its host is in lower case and a path or a query follows: rather an odd one missed than prose refused.
    """
    for kind, (pattern, flags) in _KINDS.items():
        if re.search(pattern, text, flags) or (kind == "HTML" and _names_a_character(text)):
            return kind
    return None


def _names_a_character(text: str) -> bool:
    from html.entities import html5

    return any(name in html5 for name in re.findall(r"&([A-Za-z\d]+;)", text))
