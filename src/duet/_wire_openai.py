"""The wire of `AsyncOpenAIEndpoint`: a caller's own client, its answers read raw."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import jiter

from duet._errors import MissingExtraError

try:
    import openai
except ModuleNotFoundError as exc:
    raise MissingExtraError('the package openai is not installed: pip install "duet-profiles[openai]"') from exc

from duet._wire import Answer, IteratedAnswer, WireFailure, encode, failure_of, secrets_of

REMEMBERED = 1024  # secrets of earlier requests, whose answers may still be read
_LOOP_ENDED = "the client belongs to an event loop that has ended: make one for each loop"


class OpenAIWire:
    """A caller's own `AsyncOpenAI` (Azure and custom auth included), its answers read raw.

    The client is told not to retry: the endpoint above has the one retry layer.
    """

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client.with_options(max_retries=0)
        self.address = _without_user(str(client.base_url))
        own = {"key": client.api_key or "", "password": client.base_url.password}
        self._own = secrets_of(own | {name: str(value) for name, value in client.default_query.items()})
        self._sent: dict[str, None] = {}
        self.closings = 0

    @property
    def secrets(self) -> tuple[str, ...]:
        """The client's own, and those of the latest requests: it may get its key from a function."""
        return (*self._own, *self._sent)

    async def send(self, path: str, body: Mapping[str, Any] | None, connect: float | None) -> Answer:
        try:
            response = await self._request(path, body)
        except openai.APIStatusError as exc:
            self._note(exc.request.headers)
            return _whole_answer(exc.response.status_code, exc.response.headers, exc.response.content)
        except openai.APIConnectionError as exc:
            self._note(exc.request.headers)
            if _loop_is_closed(exc.__cause__):  # openai 2 wraps what openai 3 lets through
                raise WireFailure(_LOOP_ENDED) from exc
            raise failure_of(exc.__cause__ or exc) from exc
        except RuntimeError as exc:
            if not _loop_is_closed(exc):
                raise
            raise WireFailure(_LOOP_ENDED) from exc
        answer = response.http_response
        self._note(answer.request.headers)
        return IteratedAnswer(answer.status_code, answer.headers, answer.aiter_raw(), response.close)

    async def aclose(self) -> None:
        """Nothing: the client is the caller's."""

    def _note(self, headers: Mapping[str, str]) -> None:
        for secret in secrets_of(headers):
            self._sent.pop(secret, None)  # the latest stand last
            self._sent[secret] = None
        while len(self._sent) > REMEMBERED:
            del self._sent[next(iter(self._sent))]

    async def _request(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"X-Stainless-Raw-Response": "stream", "Accept-Encoding": "identity"}
        options: Any = {"headers": headers, "follow_redirects": False}
        if body is None:
            return await self._client.get(f"/{path}", cast_to=object, options=options)
        # Through our own encoder, since the SDK's fails on half a surrogate pair.
        clean = jiter.from_json(encode(body))
        streamed: Any = {"stream": True, "stream_cls": openai.AsyncStream[object]} if body.get("stream") else {}
        return await self._client.post(f"/{path}", cast_to=object, body=clean, options=options, **streamed)


def _loop_is_closed(exc: BaseException | None) -> bool:
    return isinstance(exc, RuntimeError) and "loop is closed" in str(exc)


def _without_user(base_url: str) -> str:
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _whole_answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    async def close() -> None:
        pass

    plain = {name: value for name, value in headers.items() if name.lower() != "content-encoding"}
    return IteratedAnswer(status, plain, whole(), close)
