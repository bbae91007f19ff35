"""A vLLM server over plain HTTP, as a trainer needs it: tokens in, tokens with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import attrs
import httpx

from duet import ConfigurationError, DuetError, EndpointError, EndpointRejected, EndpointUnavailable

T = TypeVar("T")

QUOTED = 400
"""Most characters of a server's message that go into ours: some quote the whole request."""

KEEPALIVE_SECONDS = 4.0  # uvicorn, and so vLLM, drops an idle connection after 5

_NO_KEY = "the server wants a key, and this is not the one: check api_key"


def _address(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("the server's address must look like 'http://127.0.0.1:8000/v1'")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("the server's address must hold no user, password, query or fragment: use api_key")
    return base_url.rstrip("/")


def _is_header(_: object, __: object, key: str | None) -> None:
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigurationError("api_key holds characters that no HTTP header can: a line break at its end, perhaps?")


@attrs.frozen
class VLLMServer:
    """One server. Each call opens its connections and closes them, since minutes may pass between two calls.

    Args:
        address: Up to and including the version, as in "http://127.0.0.1:8000/v1".
        api_key: Sent as a bearer token; never shown.
        timeout: Seconds for one request; a connection has ten.
        attempts: How often a request is sent that the server could not answer.
        pause: Seconds before the second attempt, twice as many before each further one.

    Raises:
        ConfigurationError: The address is none, or the key is no header.
    """

    address: str = attrs.field(converter=_address)
    api_key: str | None = attrs.field(default=None, repr=False, validator=_is_header, kw_only=True)
    timeout: float = attrs.field(default=600.0, validator=attrs.validators.gt(0), kw_only=True)
    attempts: int = attrs.field(default=5, validator=attrs.validators.ge(1), kw_only=True)
    pause: float = attrs.field(default=0.5, validator=attrs.validators.ge(0), kw_only=True)

    def get(self, path: str) -> Any:
        """What is at a path: JSON, or text.

        Args:
            path: Below the address; "/version" is the server's own, beside its API.

        Raises:
            EndpointUnavailable: No answer after all attempts.
            EndpointRejected: The server refuses.
        """
        return self._all([(path, None)], concurrency=1)[0]

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request.

        Args:
            path: As `get`.
            body: Sent as JSON.

        Raises:
            EndpointUnavailable: As `get`.
            EndpointRejected: As `get`.
        """
        return self._all([(path, body)], concurrency=1)[0]

    def post_all(self, path: str, bodies: Sequence[Mapping[str, Any]], *, concurrency: int) -> list[Any]:
        """The answers to many requests, in order. With the first that fails the others are dropped.

        Args:
            path: As `get`.
            bodies: One a request.
            concurrency: Most under way.

        Raises:
            EndpointUnavailable: As `get`.
            EndpointRejected: As `get`.
        """
        return self._all([(path, body) for body in bodies], concurrency=concurrency)

    def _all(self, requests: Sequence[tuple[str, Mapping[str, Any] | None]], *, concurrency: int) -> list[Any]:
        return _run(lambda: self._exchanges(requests, concurrency))

    async def _exchanges(self, requests: Sequence[tuple[str, Mapping[str, Any] | None]], concurrency: int) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        failures: list[DuetError] = []
        limiter = anyio.CapacityLimiter(concurrency)

        async def fill(place: int, path: str, body: Mapping[str, Any] | None) -> None:
            try:
                async with limiter:
                    answers[place] = await self._exchange(client, path, body)
            except DuetError as exc:
                failures.append(exc)
                tasks.cancel_scope.cancel()

        async with self._client(concurrency) as client, anyio.create_task_group() as tasks:
            for place, (path, body) in enumerate(requests):
                tasks.start_soon(fill, place, path, body)
        if failures:
            raise failures[0]
        return answers

    def _client(self, concurrency: int) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout=httpx.Timeout(self.timeout, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=concurrency, keepalive_expiry=KEEPALIVE_SECONDS),
            trust_env=False,
        )

    async def _exchange(self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None) -> Any:
        for attempt in range(self.attempts):
            if attempt:
                await anyio.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return await self._attempt(client, path, body)
            except EndpointUnavailable as exc:
                failure = exc
        times = f"after {self.attempts} attempts" if self.attempts > 1 else "at the one attempt"
        raise EndpointUnavailable(
            f"{failure} ({times})", endpoint=self.address, status_code=failure.status_code
        ) from failure

    async def _attempt(self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None) -> Any:
        url = f"{self.address.removesuffix('/v1')}{path}" if path.startswith("/") else f"{self.address}/{path}"
        try:
            response = await (client.get(url) if body is None else client.post(url, json=body))
            if response.is_success:
                return _content(response)
        except (httpx.HTTPError, ValueError) as exc:
            raise EndpointUnavailable(f"{url} does not answer: {type(exc).__name__}", endpoint=self.address) from exc
        raise self._refusal(response, url)

    def _refusal(self, response: httpx.Response, url: str) -> EndpointError:
        status, message = response.status_code, _message(response)
        if status == 401:
            message = _NO_KEY
        if self.api_key:
            message = message.replace(self.api_key, "***")
        # vLLM answers 500, and always would, where its engine refuses an adapter.
        passing = status == 429 or (status >= 500 and "add_lora" not in message)
        kind = EndpointUnavailable if passing else EndpointRejected
        return kind(f"{url} answers {status}: {message[:QUOTED]}", endpoint=self.address, status_code=status)


def _run(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of an async function; in a thread of its own where a loop runs already, as in a notebook."""
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return anyio.run(function)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(anyio.run, function).result()


def _content(response: httpx.Response) -> Any:
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return response.json() if is_json else response.text


def _message(response: httpx.Response) -> str:
    """What a server says of its refusal: vLLM has three shapes for it."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip() or response.reason_phrase
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)
