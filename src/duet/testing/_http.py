"""HTTP/1.1 as far as the fake server needs it: bytes to requests, and heads and chunks to bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import attrs

_MAX_HEAD_BYTES = 64 * 1024


@attrs.frozen
class Request:
    """One request as it arrived.

    Args:
        method: As in "POST".
        path: With the query, if there is one.
        headers: Names in lower case.
        body: As it came.
    """

    method: str
    path: str
    headers: Mapping[str, str] = attrs.field(hash=False, repr=False)
    body: bytes = attrs.field(default=b"", repr=False)

    @property
    def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.body)


class Refusal(Exception):
    """A request that gets an error object instead of an answer."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def take_request(buffer: bytearray) -> Request | None:
    """Cut the first request off what has arrived; None while it is not whole.

    Raises:
        Refusal: What arrived is no request that this server understands.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > _MAX_HEAD_BYTES:
            raise Refusal(431, f"a head of more than {_MAX_HEAD_BYTES} bytes")
        return None
    method, path, headers = _parse_head(buffer[:end].decode("latin-1"))
    start = end + 4
    stop = start + _content_length(headers)
    if len(buffer) < stop:
        return None
    body = bytes(buffer[start:stop])
    del buffer[:stop]
    return Request(method, path, headers, body)


def _parse_head(head: str) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refusal(400, f"not an HTTP/1.1 request: {first[:100]!r}")
    method, path, version = words
    headers = parse_headers(lines)
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return method, path, headers


def _content_length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise Refusal(411, "a body needs a Content-Length here")
    size = headers.get("content-length", "0")
    if not (size.isascii() and size.isdigit()):
        raise Refusal(400, f"not a Content-Length: {size[:100]!r}")
    return int(size)


def parse_headers(lines: Iterable[str]) -> dict[str, str]:
    """The fields of a head by their names in lower case."""
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def closes(headers: Mapping[str, str]) -> bool:
    """Whether the connection ends with the message that has these headers."""
    return headers.get("connection", "").lower() == "close"


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The head of an answer."""
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def chunked(frames: Sequence[bytes], *, ends: bool) -> list[bytes]:
    """A body in chunks, each of them one frame; without the last one where the body is to break off."""
    chunks = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames if frame]
    # The end goes out with the last event: a client may leave on reading that, and has then cut nothing off.
    return [*chunks[:-1], b"".join(chunks[-1:]) + b"0\r\n\r\n"] if ends else chunks
