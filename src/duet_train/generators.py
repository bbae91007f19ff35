"""The models and temperatures that sample the completions of a group."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import attrs

from duet import ConfigurationError, Endpoint, HTTPEndpoint, local
from duet_train.dataset import Row
from duet_train.settings import check_address

LOCAL = "local"


@attrs.frozen(kw_only=True)
class Generator:
    """One model that samples.

    Args:
        base_url: Where it is served; empty for the embedded engine.
        model: Its name there; "local" for the embedded engine.
        key_variable: The environment variable that holds its key; empty for the one of all endpoints.
    """

    base_url: str
    model: str
    key_variable: str = ""


def parse_generators(text: str) -> list[Generator]:
    """The generators that are named.

    Args:
        text: "URL,MODEL" or "URL,MODEL,VARIABLE", or "local"; several of them one after the other, with commas.

    Raises:
        ConfigurationError: One does not look so, there is none, or two have one name.
    """
    check_address(text, "generators")
    parts: list[list[str]] = []
    for word in (word.strip() for word in text.split(",")):
        if word == LOCAL or word.startswith(("http://", "https://")):
            parts.append([word])
        elif parts and word:
            parts[-1].append(word)
        else:
            raise ConfigurationError(f"generators must be URL,MODEL of one or more endpoints, or local; got {text!r}")
    found = [_generator(words) for words in parts]
    names = [one.model for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(
            f"generators: two are called {twice[0]!r}; samples are told apart by the model's name, so serve one under "
            "another"
        )
    return found


def _generator(words: Sequence[str]) -> Generator:
    if words == [LOCAL]:
        return Generator(base_url="", model=LOCAL)
    if words[0] == LOCAL or not 2 <= len(words) <= 3:
        raise ConfigurationError(f"generators: {','.join(words)!r} is no URL,MODEL and no URL,MODEL,VARIABLE")
    return Generator(base_url=words[0], model=words[1], key_variable=words[2] if len(words) == 3 else "")


@asynccontextmanager
async def open_generators(
    generators: Sequence[Generator], rows: Sequence[Row], *, max_tokens: int, key_variable: str
) -> AsyncIterator[dict[str, Endpoint]]:
    """The endpoint of each model, for as long as the block lasts.

    Args:
        generators: Of different names.
        rows: What is asked; the embedded engine's context is sized to it.
        max_tokens: Of a completion, for the same purpose.
        key_variable: Of generators that have none of their own.
    """
    async with AsyncExitStack() as stack:
        opened: dict[str, Endpoint] = {}
        for one in generators:
            opening: AbstractAsyncContextManager[Endpoint]
            if one.base_url:
                key = os.environ.get(one.key_variable or key_variable) or None
                opening = HTTPEndpoint(one.base_url, one.model, api_key=key)
            else:
                context = local.context_for((row.messages for row in rows), max_tokens)
                opening = local.engine(parallel=4, context=context)
            opened[one.model] = await stack.enter_async_context(opening)
        yield opened
