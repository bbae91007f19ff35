"""What a test wants the fake server to say: answers made up or recorded, and the faults that befall them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import attrs

from duet._errors import ConfigurationError
from duet._results import TokenLogprob
from duet._schema import ProfileSchema, block
from duet.testing._http import closes, parse_headers

Fault = Literal[
    "reset",
    "close",
    "hang",
    "reset_midstream",
    "cut_midstream",
    "end_early",
    "hang_midstream",
    "drip",
    "bad_json",
    "error_event",
]

USAGE: Mapping[str, Any] = {
    "prompt_tokens": 120,
    "completion_tokens": 40,
    "total_tokens": 160,
    "prompt_tokens_details": {"cached_tokens": 100},
}
"""What every `Answer` reports as used, unless told otherwise."""

_SECTION_TEXTS = {
    "user_cue": "long strategy games; nothing left to luck; harsh on randomness",
    "user_constructed_prompt": "Say what wins this user over, what loses them, and how strict they rate.",
    "user_profile": "Rates strictly. Loves long economic games where every loss can be explained; dislikes dice.",
    "item_cue": "open information; three hours; no dice",
    "item_constructed_prompt": "Say what this item demands of its players and how they take it.",
    "item_profile": "A long economic game without chance. Strategists praise it; casual players find it dry.",
}


def completion_text(schema: ProfileSchema = ProfileSchema(), **sections: str) -> str:
    """A well-formed completion, as a model that follows the prompt would write it.

    Args:
        schema: Its shape.
        **sections: Texts of single sections by side and name, as in ``user_cue="likes dice"``.

    Raises:
        ConfigurationError: The schema has no such section.
    """
    names = {f"{side}_{section}" for side, section in schema.slots}
    if unknown := sorted(sections.keys() - names):
        raise ConfigurationError(f"the schema has no section {unknown[0]!r}: use some of {', '.join(sorted(names))}")
    texts = {name: text[: schema.max_chars] for name, text in _SECTION_TEXTS.items()} | sections
    lines = []
    for side in schema.sides:
        inner = [f"<{name}>{texts[f'{side}_{name}']}</{name}>" for name in schema.sections]
        lines += [f"<{block(side)}>", *inner, f"</{block(side)}>"]
    return "\n".join(lines)


def _check_seconds(record: object, field: attrs.Attribute[float], value: float) -> None:
    if value < 0:
        raise ConfigurationError(f"{type(record).__name__}.{field.name} must not be negative, got {value!r}")


def _check_fault(record: object, field: attrs.Attribute[Fault | None], value: object) -> None:
    if value is not None and value not in get_args(Fault):
        raise ConfigurationError(f"fault must be one of {', '.join(get_args(Fault))}; got {value!r}")


@attrs.frozen
class Answer:
    """How the server answers one request.

    The same answer serves a streamed and a plain request: which of the two is sent is for the request to say.

    Faults, for what a server should never do and does:

    - ``"reset"``: the connection is reset before any byte of the answer.
    - ``"close"``: it is closed before any byte.
    - ``"hang"``: it stays open and nothing is ever sent.
    - ``"reset_midstream"``, ``"cut_midstream"``, ``"hang_midstream"``: the same half-way through the body.
    - ``"end_early"``: the body ends as HTTP wants it, with neither ``finish_reason`` nor ``[DONE]``.
    - ``"drip"``: the body comes byte by byte, one each `pace` seconds, or each 10 ms.
    - ``"bad_json"``: an event half-way (a plain answer from its middle on) is not JSON.
    - ``"error_event"``: half-way through comes an error object, as vLLM sends it, and then ``[DONE]``; a plain answer
      is one.

    Args:
        text: What the model says; a well-formed profile of both sides by default.
        chunks: How the text is cut in a stream, instead of `text`. By default one piece a token where there are
            log-probabilities for this very text, else pieces of four characters.
        finish_reason: As in "stop" or "length"; None sends none.
        done: Whether a stream ends with ``[DONE]``.
        usage: OpenAI's usage object; in a stream it is sent where the request asks for it. None sends none.
        reasoning: Sent as ``reasoning_content``.
        logprobs: One entry a token; sent where the request asks for log-probabilities.
        status: Of the answer. One other than 200 gives an error object in OpenAI's shape, unless `body` is set.
        headers: More headers, or others in the place of usual ones.
        body: Sent as it is, instead of anything computed; a request for a stream gets it chunked.
        content_type: Instead of the usual one.
        first_after: Seconds before the first byte of the body. A stream's head is sent at once, that of a plain answer
            after this time.
        pace: Seconds between two events of a stream.
        fault: What goes wrong.

    Raises:
        ConfigurationError: The fault is unknown, or a time is negative.
    """

    text: str = attrs.field(factory=completion_text, repr=False)
    chunks: Sequence[str] | None = attrs.field(default=None, kw_only=True, repr=False, hash=False)
    finish_reason: str | None = attrs.field(default="stop", kw_only=True)
    done: bool = attrs.field(default=True, kw_only=True)
    usage: Mapping[str, Any] | None = attrs.field(default=USAGE, kw_only=True, repr=False, hash=False)
    reasoning: str = attrs.field(default="", kw_only=True, repr=False)
    logprobs: Sequence[TokenLogprob] = attrs.field(default=(), kw_only=True, repr=False, hash=False)
    status: int = attrs.field(default=200, kw_only=True)
    headers: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, hash=False)
    body: bytes | str | None = attrs.field(default=None, kw_only=True, repr=False)
    content_type: str | None = attrs.field(default=None, kw_only=True)
    first_after: float = attrs.field(default=0.0, kw_only=True, validator=_check_seconds)
    pace: float = attrs.field(default=0.0, kw_only=True, validator=_check_seconds)
    fault: Fault | None = attrs.field(default=None, kw_only=True, validator=_check_fault)

    @property
    def pieces(self) -> list[str]:
        """The text as a stream brings it."""
        if self.chunks is not None:
            return list(self.chunks)
        tokens = [entry.token for entry in self.logprobs]
        if tokens and "".join(tokens) == self.text:
            return tokens
        return [self.text[at : at + 4] for at in range(0, len(self.text), 4)]


@attrs.frozen
class Transcript:
    """The bytes of one HTTP answer, head and body, replayed as they are.

    The connection is closed afterwards where the answer says ``Connection: close``, where its body ends with the
    connection, or where it breaks off; else it is kept.

    Args:
        data: From the status line to the last byte.
        engine: What sent them, as in "llama.cpp 2026.10".
        recorded: False marks bytes that were made up.
        cut: Bytes a write; None writes them all at once.
        pace: Seconds between two writes.

    Raises:
        ConfigurationError: `cut` or `pace` cannot work.
    """

    data: bytes = attrs.field(repr=False)
    engine: str = ""
    recorded: bool = attrs.field(default=True, kw_only=True)
    cut: int | None = attrs.field(default=None, kw_only=True)
    pace: float = attrs.field(default=0.0, kw_only=True, validator=_check_seconds)

    def __attrs_post_init__(self) -> None:
        if self.cut is not None and self.cut < 1:
            raise ConfigurationError(f"cut must be at least 1, got {self.cut}")

    @classmethod
    def load(
        cls, path: str | Path, *, engine: str | None = None, recorded: bool = True, cut: int | None = None
    ) -> Transcript:
        """Read the bytes of an answer from a file.

        Args:
            path: Holds the bytes and nothing else.
            engine: What sent them; the file's name without its suffix by default.
            recorded: False marks bytes that were made up.
            cut: Bytes a write.

        Raises:
            OSError: The file cannot be read.
        """
        path = Path(path)
        return cls(path.read_bytes(), path.stem if engine is None else engine, recorded=recorded, cut=cut)

    @property
    def keeps_alive(self) -> bool:
        """Whether another answer may follow on the same connection."""
        head, _, body = self.data.partition(b"\r\n\r\n")
        headers = parse_headers(head.decode("latin-1").split("\r\n")[1:])
        if closes(headers):
            return False
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return body.endswith(b"0\r\n\r\n")
        return headers.get("content-length") == str(len(body))


AnswerLike = Answer | Transcript | str
"""What stands for one answer; a str is an `Answer` with this text."""
