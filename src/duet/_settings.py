"""Settings: how to sample, how long to wait, and what the environment says of the endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs

from duet._errors import ConfigurationError

Engine = Literal["llama.cpp", "vllm", "openai"]


def _strings(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _copy(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(value)


@attrs.frozen(kw_only=True)
class Sampling:
    """How a completion is sampled. Names are OpenAI's; None leaves the choice to the server.

    Args:
        temperature: 0 is greedy.
        top_p: Nucleus, 0 to 1.
        max_tokens: Most tokens to generate.
        max_completion_tokens: The same under the name that OpenAI's reasoning models accept.
        seed: For repeatable sampling, where the engine honours it.
        stop: Strings that end the completion.
        presence_penalty: −2 to 2.
        frequency_penalty: −2 to 2.
        logprobs: Ask for the log-probability of each token.
        top_logprobs: How many alternatives with each token.
        grammar: A GBNF grammar to decode under; sent the way the engine understands it. Not for training rollouts: the
            parse rate would be 1 by construction and the log-probabilities those of another distribution.
        extra_body: Fields of the engine's own, merged last into the request body.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    grammar: str | None = attrs.field(default=None, repr=False)
    extra_body: Mapping[str, Any] = attrs.field(factory=dict, converter=_copy, hash=False)

    def __attrs_post_init__(self) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")
        if self.temperature is not None and not self.temperature >= 0:
            raise ConfigurationError(f"temperature must not be negative, got {self.temperature}")

    def request_fields(self) -> dict[str, Any]:
        """The fields of a request body that are set, `extra_body` merged last, `grammar` left to the endpoint."""
        fields = {name: getattr(self, name) for name in _SENT}
        chosen = {name: value for name, value in fields.items() if value is not None}
        if self.stop:
            chosen["stop"] = list(self.stop)
        return chosen | dict(self.extra_body)

    def under_grammar(self, grammar: str) -> Sampling:
        """The same, decoded under `grammar`.

        Args:
            grammar: In GBNF, as `ProfileSchema.grammar` writes it; takes the place of any other.
        """
        return attrs.evolve(self, grammar=grammar)


@attrs.frozen(kw_only=True)
class Deadlines:
    """How long to wait, in seconds; None waits for ever.

    Args:
        connect: For a connection.
        first_token: Of a stream, from sending the request to its first text; each try has as long.
        idle: Between two reads of a stream.
        total: For the whole call, retries and their pauses included. The only one that bounds `generate`, except
            towards llama.cpp, where a stream runs underneath.
    """

    connect: float | None = 10.0
    first_token: float | None = 120.0
    idle: float | None = 60.0
    total: float | None = 600.0

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"Deadlines.{field.name} must be positive or None, got {value!r}")


_SENT = tuple(field.name for field in attrs.fields(Sampling) if field.name not in ("stop", "grammar", "extra_body"))


@attrs.frozen
class EndpointSettings:
    """Where an endpoint is and what it serves; the key never shows in a repr.

    Args:
        base_url: Up to and including the version, as in "http://127.0.0.1:8000/v1".
        model: Model or adapter name.
        api_key: Sent as a bearer token; None sends none.
    """

    base_url: str
    model: str
    api_key: str | None = attrs.field(default=None, repr=lambda key: "None" if key is None else "'***'")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> EndpointSettings:
        """Read DUET_BASE_URL, DUET_MODEL and DUET_API_KEY.

        OPENAI_API_KEY is sent only where the address comes from OPENAI_BASE_URL too or is OpenAI's own, so that a key
        never reaches a host it was not made for.

        Args:
            environ: Variables by name; an empty value counts as none.

        Raises:
            ConfigurationError: No model is named.
        """
        model = environ.get("DUET_MODEL")
        if not model:
            raise ConfigurationError("set DUET_MODEL to the name of a model that the endpoint serves")
        if base_url := environ.get("DUET_BASE_URL"):
            return cls(base_url, model, environ.get("DUET_API_KEY") or None)
        key = environ.get("DUET_API_KEY") or environ.get("OPENAI_API_KEY")
        return cls(environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1", model, key or None)
