"""What an OpenAI-compatible server puts into a body: completions, embeddings, the model list and errors (pure)."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from duet._results import TokenLogprob
from duet._wire import encode
from duet.testing._answers import Answer, Fault
from duet.testing._http import Refusal, Request

_CREATED = 1_700_000_000
_DIMENSION = 8
_PATHS = re.compile(r"/(?:v1|openai/deployments/[^/]+)/(models|chat/completions|embeddings)")
_DONE = b"data: [DONE]\n\n"
_STREAM_ERROR = encode(
    {"error": {"message": "EngineCore died", "type": "InternalServerError", "param": None, "code": 500}}
)


@attrs.frozen
class Body:
    """The body of an answer in the pieces in which it is sent.

    Args:
        frames: One at least.
        middle: How many of them come before the half; None for a body that is one piece.
        streamed: Whether they are events of a stream.
    """

    frames: Sequence[bytes]
    middle: int | None = None
    streamed: bool = False

    @property
    def first_half(self) -> Sequence[bytes]:
        """What is sent of a body that breaks off."""
        if self.middle is not None:
            return self.frames[: self.middle]
        return [self.frames[0][: len(self.frames[0]) // 2]]


def kind_of(request: Request) -> str | None:
    """Which answer the path asks for, as in "embeddings"; None where there is none to give."""
    match = _PATHS.fullmatch(request.path.partition("?")[0])
    if match is None or (request.method == "GET") != (match[1] == "models"):
        return None
    return match[1]


def body_of(answer: Answer, request: Request, model: Mapping[str, str], number: int) -> Body:
    """The body that an answer has for a request to the one model there is.

    Raises:
        Refusal: No body can be computed for such a request, and the answer brings none along.
    """
    fields = _fields(request)
    if answer.body is not None:
        given = answer.body.encode() if isinstance(answer.body, str) else answer.body
        return Body([given], streamed=answer.status == 200 and _is_streamed(fields))
    if answer.status != 200:
        return Body([error_object(answer.status, f"the fake server was told to answer {answer.status}")])
    return _computed(answer, request, fields, model, number)


def _computed(
    answer: Answer, request: Request, fields: dict[str, Any] | None, model: Mapping[str, str], number: int
) -> Body:
    kind = kind_of(request)
    if kind is None:
        raise Refusal(404, f"Unknown request URL: {request.method} {request.path}.", "unknown_url")
    if kind == "models":
        return _whole({"object": "list", "data": [model]}, answer.fault)
    if fields is None:
        raise Refusal(400, "The body of the request is no JSON object.")
    name = fields.get("model") or model["id"]
    if kind == "embeddings":
        return _whole(_embeddings(fields, name), answer.fault)
    chat = _Chat(answer, fields, name, number)
    return chat.stream() if _is_streamed(fields) else _whole(chat.plain(), answer.fault)


def error_object(status: int, message: str, code: str | None = None) -> bytes:
    """An error in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return encode({"error": {"message": message, "type": kind, "param": None, "code": code or status}})


def _fields(request: Request) -> dict[str, Any] | None:
    try:
        fields = request.json
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _is_streamed(fields: Mapping[str, Any] | None) -> bool:
    return fields is not None and bool(fields.get("stream"))


def _whole(value: dict[str, Any], fault: Fault | None) -> Body:
    """A body that is one JSON value, or one that a fault has spoilt."""
    body = _STREAM_ERROR if fault == "error_event" else encode(value)
    return Body([body[: len(body) // 2] if fault == "bad_json" else body])


def _embeddings(fields: Mapping[str, Any], model: str) -> dict[str, Any]:
    given = fields.get("input", [])
    texts = [str(text) for text in (given if isinstance(given, list) else [given])]
    packed = fields.get("encoding_format") == "base64"
    rows = [
        {"object": "embedding", "index": index, "embedding": _vector(text, packed=packed)}
        for index, text in enumerate(texts)
    ]
    tokens = sum(map(len, texts)) // 4
    return {"object": "list", "data": rows, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _vector(text: str, *, packed: bool) -> list[float] | str:
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    values = [value / 32768 - 1 for value in struct.unpack(f"<{_DIMENSION}H", digest[: 2 * _DIMENSION])]
    return base64.b64encode(struct.pack(f"<{_DIMENSION}f", *values)).decode() if packed else values


class _Chat:
    """One chat completion in vLLM's shape."""

    def __init__(self, answer: Answer, fields: Mapping[str, Any], model: str, number: int) -> None:
        self._answer = answer
        self._fields = fields
        self._common = {"id": f"chatcmpl-{number}", "created": _CREATED, "model": model}
        self._logprobs = answer.logprobs if fields.get("logprobs") else ()

    def plain(self) -> dict[str, Any]:
        """All of it as one value."""
        answer = self._answer
        text = answer.text if answer.chunks is None else "".join(answer.chunks)
        message = {"role": "assistant", "content": text}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        finish_reason = None if answer.fault == "end_early" else answer.finish_reason
        choice = _choice("message", message, self._logprobs, finish_reason)
        value = self._common | {"object": "chat.completion", "choices": [choice]}
        return value if answer.usage is None else value | {"usage": dict(answer.usage)}

    def stream(self) -> Body:
        """The events of a stream."""
        lead, text, tail = self._lead(), self._text(), self._tail()
        middle = len(lead) + (len(text) + 1) // 2
        events = lead + text
        match self._answer.fault:
            case "error_event":
                events, tail = events[:middle], [_sse(_STREAM_ERROR), _DONE]
            case "bad_json":
                events.insert(middle, _sse(b'{"id": "chatcmpl'))
            case "end_early":
                tail = []
        return Body(events + tail, middle, streamed=True)

    def _lead(self) -> list[bytes]:
        lead = [self._delta({"role": "assistant", "content": ""})]
        if self._answer.reasoning:
            lead.append(self._delta({"reasoning_content": self._answer.reasoning}))
        return lead

    def _text(self) -> list[bytes]:
        pieces = self._answer.pieces
        last = len(pieces) - 1
        # Text need not be cut at tokens, so the last piece brings what entries are left.
        return [
            self._delta({"content": piece}, self._logprobs[at : None if at == last else at + 1])
            for at, piece in enumerate(pieces)
        ]

    def _tail(self) -> list[bytes]:
        tail = []
        if self._answer.finish_reason is not None:
            tail.append(self._delta({"content": ""}, finish_reason=self._answer.finish_reason))
        options = self._fields.get("stream_options") or {}
        if self._answer.usage is not None and options.get("include_usage"):
            tail.append(self._event([], usage=dict(self._answer.usage)))
        return [*tail, _DONE] if self._answer.done else tail

    def _delta(
        self, delta: Mapping[str, str], logprobs: Sequence[TokenLogprob] = (), finish_reason: str | None = None
    ) -> bytes:
        return self._event([_choice("delta", delta, logprobs, finish_reason)])

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _sse(encode(self._common | {"object": "chat.completion.chunk", "choices": choices} | more))


def _sse(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _choice(
    name: str, said: Mapping[str, str], logprobs: Sequence[TokenLogprob], finish_reason: str | None
) -> dict[str, Any]:
    entries = [_token(entry.token, entry.logprob) | {"top_logprobs": _tops(entry)} for entry in logprobs]
    return {
        "index": 0,
        name: said,
        "logprobs": {"content": entries} if entries else None,
        "finish_reason": finish_reason,
    }


def _tops(entry: TokenLogprob) -> list[dict[str, Any]]:
    return [_token(token, logprob) for token, logprob in entry.top_logprobs]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
