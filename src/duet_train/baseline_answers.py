"""Answers that are plain text or JSON: the grammars they are decoded under, and how they are read. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from duet import Completion, MalformedCompletion, TruncatedCompletion, Usage

DEFAULT_CHARS = 600  # what a grammar allows where no limit is asked for, as in ProfileSchema

# As SectionParser drops it: a closed block, one that is never closed, or one whose opening tag stood in the prompt.
_THINK = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*</think>", re.I | re.S | re.A)

# No letters beyond ASCII: Latin-1's signs, punctuation to dingbats, CJK punctuation, half- and full-width signs.
_SIGNS = r"{-\xBF\u2000-\u2BFF\u3000-\u303F\uFE00-\uFE6F\uFF00-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65\uFFE0-\uFFFF"
_LETTER = rf"[^\x00-@\[-`{_SIGNS}]"
_IN_LINE = r"[^<>\n\r]"
_IN_JSON = r'[^"\\<>\x00-\x1F]'
# Letters, digits, spaces, "&", "'" and "-": a small model that may write any sign here writes rows of dots.
_IN_KEYWORD = rf"[^\x00-\x1F\x21-\x25\x28-\x2C\x2E\x2F\x3A-@\[-`{_SIGNS}]"


def plain_text(completion: Completion) -> str:
    """The answer without its reasoning and the white space around it.

    Raises:
        TruncatedCompletion: The token limit or an unclosed ``<think>`` cut it.
        MalformedCompletion: It holds no letter and no digit.
    """
    text = _THINK.sub("", completion.text).strip()
    if completion.finish_reason == "length":
        raise TruncatedCompletion("the answer was cut: raise max_tokens", completion=completion.text)
    if not any(map(str.isalnum, text)):
        raise _nothing(completion, "the answer is empty", ())
    return text


def json_fields(completion: Completion, names: Sequence[str], *, required: Sequence[str] = ()) -> dict[str, str]:
    """The fields of the first JSON object in an answer that has them, whatever stands around it.

    Keys are matched without regard to case; a list of texts is joined.

    Args:
        completion: The answer.
        names: Fields to read, at least one of which has content; the others are "".
        required: Those that must have content.

    Raises:
        TruncatedCompletion: There is no such object and the token limit or an unclosed ``<think>`` is why.
        MalformedCompletion: There is no such object.
    """
    missing = tuple(required or names)
    for found in _objects(_THINK.sub("", completion.text)):
        fields = {name: _flat(found.get(name)) for name in names}
        filled = [name for name in names if any(map(str.isalnum, fields[name]))]
        if filled and set(required) <= set(filled):
            return fields
    raise _nothing(completion, f"the answer holds no JSON object with {', '.join(missing)}", missing)


def _nothing(completion: Completion, why: str, missing: tuple[str, ...]) -> TruncatedCompletion | MalformedCompletion:
    text = completion.text
    thinking = text.lower().rfind("<think>") > text.lower().rfind("</think>")
    if completion.finish_reason == "length" or thinking:
        return TruncatedCompletion(f"{why}: it was cut, raise max_tokens", completion=text)
    return MalformedCompletion(why, completion=text, missing=missing)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that begins somewhere in the text, with lower-case keys."""
    decoder = json.JSONDecoder(strict=False)
    for match in re.finditer(r"\{", text):
        try:
            found, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        yield {key.strip().lower(): value for key, value in found.items()}


def _flat(value: object) -> str:
    parts = value if isinstance(value, list) else [value]
    return "; ".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def paragraph_grammar(max_chars: int | None) -> str:
    """A GBNF grammar of one paragraph without angle brackets that starts with a letter.

    Args:
        max_chars: Most characters; None stops at 600.
    """
    return f"root ::= {_run(_LETTER, _IN_LINE, max_chars or DEFAULT_CHARS)}\n"


def json_grammar(names: Sequence[str], max_chars: int | None) -> str:
    """A GBNF grammar of one JSON object of texts without escapes.

    Args:
        names: Its keys, in order.
        max_chars: Most characters of each text; None stops at 600.
    """
    fields = ' ", " '.join(rf'"\"{name}\": " text' for name in names)
    text = _run(_LETTER, _IN_JSON, max_chars or DEFAULT_CHARS)
    return f'root ::= "{{" {fields} "}}"\ntext ::= "\\"" {text} "\\""\n'


def keywords_grammar(items: int) -> str:
    """A GBNF grammar of two keywords for each of a number of items, one numbered line an item."""
    lines = r' "\n" '.join(f'"{number}: " keyword ", " keyword' for number in range(1, items + 1))
    return f"root ::= {lines}\n{_KEYWORD}"


def ranked_keywords_grammar(items: int) -> str:
    """A GBNF grammar of two keywords, the more important first, each with the numbers of one to three items."""
    numbers = " | ".join(f'"{number}"' for number in range(1, items + 1))
    lines = r'"1. " keyword ": " support "\n2. " keyword ": " support'
    return f'root ::= {lines}\nsupport ::= number (", " number){{0,2}}\nnumber ::= {numbers}\n{_KEYWORD}'


def _run(first: str, rest: str, chars: int) -> str:
    return f"{first} {rest}{{0,{chars - 1}}}"


_KEYWORD = f"keyword ::= {_run(_LETTER, _IN_KEYWORD, 24)}\n"

_NUMBERED = re.compile(r"[\s\-*•#(]*(\d{1,4})\W+(.+)")
_MARK = re.compile(r"\A\s*(?:[-*•#]+|\d{1,4}[.):])\s*")


def read_keywords(text: str, items: int) -> dict[int, str]:
    """The keywords of each numbered item; items that the answer passes over are not in it."""
    found: dict[int, str] = {}
    for match in filter(None, map(_NUMBERED.match, text.splitlines())):
        number, words = int(match[1]), match[2].replace("*", "").strip()
        if 1 <= number <= items and any(map(str.isalpha, words)):
            found.setdefault(number, words)
    return found


def read_ranked_keywords(text: str, titles: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The keywords in their order, each with the indices of the items that support it.

    An answer may name items by title or by number (from 1). Keywords that no item supports are left out.
    """
    found = []
    for line in text.splitlines():
        head, _, tail = _MARK.sub("", line, count=1).partition(":")
        keyword, support = head.strip(" \t\"'*“”_"), _named(tail, titles)
        if support and any(map(str.isalpha, keyword)):
            found.append((keyword, support))
    return found


def _named(text: str, titles: Sequence[str]) -> list[int]:
    """Indices of the items that a text names: by title where it holds one (titles hold numbers), else by number."""
    folded = text.casefold()
    by_title = [index for index, title in enumerate(titles) if title and title.casefold() in folded]
    if by_title:
        return by_title
    numbers = (int(number) - 1 for number in re.findall(r"\d{1,4}", text))
    return list(dict.fromkeys(index for index in numbers if 0 <= index < len(titles)))


def total_usage(usages: Sequence[Usage | None]) -> Usage:
    """Tokens of several generations together; estimated where those of any part are, or are not known (None)."""
    known = [usage for usage in usages if usage is not None]
    return Usage(
        sum(usage.prompt_tokens for usage in known),
        sum(usage.completion_tokens for usage in known),
        cached_tokens=sum(usage.cached_tokens for usage in known),
        estimated=len(known) < len(usages) or any(usage.estimated for usage in known),
    )
