"""Bytes to chat completions: event streams and whole bodies.

Pure: `feed` knows no network. The fast path is what every engine sends (``data: {…}\\n\\n``); the rest of the
event-stream grammar (CR and CRLF, comments, fields, several data lines, a byte-order mark) takes the slow one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jiter

from duet._results import Completion, TokenLogprob, Usage

MAX_EVENT_BYTES = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"  # as numbers: looking for a byte is six times cheaper than looking for bytes


class ProtocolViolation(Exception):
    """The body is not what it should be; the endpoint gives it a name and a type.

    Attributes:
        what: What is wrong.
        body: Where, to be quoted once no secret is in it.
    """

    def __init__(self, what: str, body: object = "") -> None:
        super().__init__(what)
        self.what = what
        self.body = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)


class ErrorObject(Exception):
    """The body carries an error object instead of an answer."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class EventDecoder:
    """Splits the bytes of an event stream into the data of its events, cut anywhere."""

    def __init__(self) -> None:
        self._tail = b""
        self._held = b""
        self._first = True

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the data of every event they complete."""
        if self._tail:
            data = self._tail + data
        if _CR in data or self._first:
            if self._first and len(data) < len(_BOM):
                self._tail = data
                return []
            data = self._normalised(data)
        events = data.split(b"\n\n")
        self._tail = events.pop()
        if self._held or len(self._tail) > MAX_EVENT_BYTES:
            self._keep_tail()
        return [
            payload
            for event in events
            if (payload := event[6:] if event.startswith(b"data: ") and _LF not in event else _data_of(event))
        ]

    def _normalised(self, data: bytes) -> bytes:
        """Line ends as LF, no byte-order mark; a last CR waits for the LF that may be on its way."""
        if self._first:
            data, self._first = data.removeprefix(_BOM), False
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _keep_tail(self) -> None:
        self._tail, self._held = self._tail + self._held, b""
        if len(self._tail) > MAX_EVENT_BYTES:
            raise ProtocolViolation(f"an event of more than {MAX_EVENT_BYTES} bytes")

    def close(self) -> list[bytes]:
        """The data of a last event that no blank line ended."""
        tail, self._tail = self._tail.replace(b"\r", b"\n").strip(b"\n"), b""
        payload = _data_of(tail)
        return [payload] if payload else []


def _data_of(event: bytes) -> bytes:
    lines = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)


class ChatDecoder:
    """Accumulates the events of one streamed chat completion (choice 0)."""

    def __init__(self, prompt_chars: int = 0) -> None:
        self._events = EventDecoder()
        self._prompt_chars = prompt_chars
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._usage: Usage | None = None
        self._model = ""
        self._finish_reason: str | None = None
        self.done = False

    @property
    def complete(self) -> bool:
        """True once a finish_reason or ``[DONE]`` came: a body that ends without either is a torso."""
        return self.done or self._finish_reason is not None

    def feed(self, data: bytes) -> str:
        """Take the next bytes of the body; return the text they brought, which may be empty.

        Raises:
            ProtocolViolation: An event is not JSON, or not a chat-completion chunk.
            ErrorObject: The server reports an error in the stream.
        """
        return self._take(self._events.feed(data))

    def close(self) -> str:
        """End of the body: the text of a last event without its blank line. Half an event is no event."""
        try:
            return self._take(self._events.close())
        except ProtocolViolation:
            return ""

    def result(self) -> Completion:
        """All of it so far as one record."""
        return Completion(
            "".join(self._text),
            finish_reason=self._finish_reason,
            model=self._model,
            usage=self._usage or self._estimate(),
            logprobs=tuple(self._logprobs),
            reasoning="".join(self._reasoning),
        )

    def _estimate(self) -> Usage:
        return Usage(self._prompt_chars // 4, len(self._text) + len(self._reasoning), estimated=True)

    def _take(self, payloads: Iterable[bytes]) -> str:
        if self.done:
            return ""
        before = len(self._text)
        chunk: dict[str, Any] = {}
        try:
            for payload in payloads:
                if payload == b"[DONE]":
                    self.done = True
                    break
                chunk = load(payload)
                if "error" in chunk:
                    _raise_error(chunk)
                if choices := chunk.get("choices"):
                    self._choice(choices[0])
                elif choices is None:
                    _raise_error(chunk)
                if usage := chunk.get("usage"):
                    self._usage = read_usage(usage)
                if not self._model:
                    self._model = _text(chunk.get("model"))
        except (AttributeError, KeyError, TypeError, IndexError, ValueError) as exc:
            raise ProtocolViolation("an event that is no chat-completion chunk", chunk) from exc
        return "".join(self._text[before:])

    def _choice(self, choice: dict[str, Any]) -> None:
        if choice.get("index"):
            return
        if delta := choice.get("delta"):
            if text := _text(delta.get("content")):
                self._text.append(text)
            elif reasoning := _text(delta.get("reasoning_content") or delta.get("reasoning")):
                self._reasoning.append(reasoning)
        if finish_reason := choice.get("finish_reason"):
            self._finish_reason = _text(finish_reason)
        if logprobs := choice.get("logprobs"):
            self._logprobs += read_logprobs(logprobs)


def load(payload: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ProtocolViolation: It is not JSON, or not an object.
    """
    try:
        value = jiter.from_json(payload)
    except ValueError as exc:
        raise ProtocolViolation("malformed JSON", payload) from exc
    if not isinstance(value, dict):
        raise ProtocolViolation("not a JSON object", payload)
    return value


def read_completion(body: bytes, prompt_chars: int = 0) -> Completion:
    """A chat completion that came as one body.

    Raises:
        ProtocolViolation: It is not one.
        ErrorObject: It is an error object under status 200.
    """
    answer = load(body)
    if "error" in answer or not answer.get("choices"):
        _raise_error(answer)
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
        usage = answer.get("usage")
        return Completion(
            text,
            finish_reason=_text(choice.get("finish_reason")) or None,
            model=_text(answer.get("model")),
            usage=read_usage(usage) if usage else Usage(prompt_chars // 4, (len(text) + 3) // 4, estimated=True),
            logprobs=tuple(read_logprobs(choice.get("logprobs") or {})),
            reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        )
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as exc:
        raise ProtocolViolation("not a chat completion", body) from exc


def read_embeddings(body: bytes, expected: int) -> list[Sequence[float]]:
    """The vectors of an embeddings answer, in the order of the inputs.

    Raises:
        ProtocolViolation: It is not one, or not of `expected` vectors of one length.
        ErrorObject: It is an error object under status 200.
    """
    answer = load(body)
    if "data" not in answer:
        _raise_error(answer)
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors: list[Sequence[float]] = [[float(value) for value in row["embedding"]] for row in rows]
    except (KeyError, TypeError, ValueError) as exc:
        raise ProtocolViolation("not an embeddings answer", body) from exc
    if [row["index"] for row in rows] != list(range(expected)) or len({len(vector) for vector in vectors}) > 1:
        raise ProtocolViolation(f"{len(rows)} embeddings for {expected} inputs, or of several lengths")
    return vectors


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """OpenAI's usage object; llama.cpp and vLLM send the same shape."""
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


def read_logprobs(logprobs: Mapping[str, Any]) -> list[TokenLogprob]:
    """OpenAI's logprobs object of one choice. An alternative without a log-probability is left out.

    Raises:
        ValueError: A log-probability is NaN or infinite upwards, or the one of the token itself is nowhere.
    """
    return [_read_token(entry) for entry in logprobs.get("content") or ()]


def _read_token(entry: Mapping[str, Any]) -> TokenLogprob:
    token = entry["token"]
    tops = tuple(
        (top["token"], _logprob(top["logprob"]))
        for top in entry.get("top_logprobs") or ()
        if top is not None and top["logprob"] is not None
    )
    own = entry["logprob"]
    return TokenLogprob(token, dict(tops)[token] if own is None else _logprob(own), tops)


def _logprob(value: Any) -> float:
    logprob = float(value)
    if not logprob < math.inf:  # NaN too
        raise ValueError(f"{logprob} is no log-probability")
    return logprob


def read_error(body: Mapping[str, Any]) -> ErrorObject | None:
    """The error object of a body in any of the shapes in use, or None where there is none."""
    error = body.get("error", body if body.get("object") == "error" else None)
    if error is None and "detail" in body:
        error = {"message": body["detail"]}
    if error is None:
        return None
    if not isinstance(error, Mapping):
        return ErrorObject(str(error), None)
    code = error.get("code", error.get("status"))
    return ErrorObject(str(error.get("message") or error), code if isinstance(code, int) else None)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _raise_error(body: Mapping[str, Any]) -> None:
    error = read_error(body)
    if error is not None:
        raise error
    if not body.keys() & {"usage", "object", "id", "model"}:
        raise ProtocolViolation("neither choices nor an error", body)
