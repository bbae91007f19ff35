"""Fixtures shared by all tests."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both backends."""
    return str(request.param)


@pytest.fixture(params=["http", "openai"])
def wire(request: pytest.FixtureRequest) -> str:
    """Tests of the wires run over both: our own HTTP, and a caller's openai client."""
    return str(request.param)


@pytest.fixture(params=["generate", "stream"])
def how(request: pytest.FixtureRequest) -> str:
    """Tests of one completion run whole and streamed."""
    return str(request.param)


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """A socket or session left open warns when it is collected, so collect while the test is still to blame."""
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()
