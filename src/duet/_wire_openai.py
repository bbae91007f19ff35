"""The wire of `AsyncOpenAIEndpoint`: a caller's own client, its answers read raw."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import openai

from duet._wire import Answer, Chunks, failure_of


class OpenAIWire:
    """A caller's own `AsyncOpenAI` (Azure and custom auth included), its answers read raw.

    The client is told not to retry: the endpoint above has the one retry layer.
    """

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client.with_options(max_retries=0)
        self.address = str(client.base_url).split("?")[0].rstrip("/")
        self.secrets = (client.api_key,) if client.api_key else ()

    async def send(self, path: str, body: Mapping[str, Any] | None, connect: float | None) -> Answer:
        try:
            manager = self._request(path, body)
            response = await manager.__aenter__()
        except openai.APIStatusError as exc:
            return _whole_answer(exc.response.status_code, exc.response.headers, exc.response.content)
        except openai.APIConnectionError as exc:
            raise failure_of(exc.__cause__ or exc) from exc

        async def close() -> None:
            await manager.__aexit__(None, None, None)

        return Answer(response.status_code, response.headers, Chunks(response.iter_bytes()), close)

    async def aclose(self) -> None:
        """Nothing: the client is the caller's."""

    def _request(self, path: str, body: Mapping[str, Any] | None) -> Any:
        if body is None:
            return self._client.models.with_streaming_response.list()
        own = {"model": body["model"], "extra_body": body}
        if path == "embeddings":
            return self._client.embeddings.with_streaming_response.create(
                input=body["input"], encoding_format="float", **own
            )
        return self._client.chat.completions.with_streaming_response.create(
            messages=body["messages"], stream=body.get("stream", False), **own
        )


def _whole_answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    async def chunks() -> AsyncIterator[bytes]:
        yield body

    async def close() -> None:
        pass

    return Answer(status, headers, Chunks(chunks()), close)
