"""What a profile that is shown to people should not hold: links, HTML and markdown."""

from __future__ import annotations

import re

_KINDS = {  # compiled with the first use, which takes 4 ms
    "a link": (
        r"\b(?:https?|ftp|file|wss?)\s*:\s*//|\bwww\.\w|\b(?:mailto|javascript|vbscript|data)\s*:\s*[\w/+.@%-]*[,;@(/]"
        r"|\]\s*\([^)\n]*\)|^\s{0,3}\[[^\]\n]+\]:\s*\S"
        r"|[a-z\d-]\.[a-z]{2,}(?:/\w|/?\?\w+=)|\w@[a-z\d-]+(?:\.[a-z\d-]+)*\.[a-z]{2,}",  # as many pages link them
        re.I | re.M,
    ),
    "HTML": (r"<[/!?]?[a-z][^<>]*>|<!--|&(?:#\d+|#x[\da-f]+|[a-z][a-z\d]{1,30});", re.I),
    "markdown": (
        r"^\s{0,3}(?:#{1,6}\s|>\s|```|~~~)|!\[|`[^`\n]+`|\*\*[^\s*][^*\n]*\*\*|__[^\s_][^_\n]*__|~~[^\s~][^~\n]*~~"
        r"|(?<![\w*])\*[^\s*](?:[^*\n]*[^\s*])?\*(?![\w*])|(?<!\w)_[^\s_](?:[^_\n]*[^\s_])?_(?!\w)|^\s*\|.*\|\s*$",
        re.M,
    ),
}


def markup_in(text: str) -> str | None:
    """What kind of markup a text holds, the gravest first; None for plain text. Lists are plain.

    A pattern cannot read: what looks like markup and is none is refused too.
    """
    return next((kind for kind, (pattern, flags) in _KINDS.items() if re.search(pattern, text, flags)), None)
