"""Fixtures shared by all tests, and how `make reliability` counts: see `benchmarks/reliability.py`."""

import gc
import inspect
import json
import os
import re
from collections.abc import Callable, Generator, Iterator

import pytest

WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a core for each worker

TALLY = os.environ.get("DUET_TALLY")
_SURVIVED = pytest.StashKey[bool]()
# A test in which the caller's own settings, records or files must end in a typed error, or a command in one sentence.
_REFUSES = re.compile(r"raises\((RecordError|ConfigurationError|LedgerError)\b|def test_mistake_is_one_sentence")


@pytest.fixture(scope="session")
def tally() -> Callable[..., None]:
    """Counts what a test tries many of: `tally(row, tried, survived, note="")`, before the assertion that may fail.

    `make reliability` sums the counts and shows the last note; without it they go nowhere.
    """
    return _count


def pytest_configure(config: pytest.Config) -> None:
    """The mark `counted(row)` counts each of a test's cases as one try, survived where it passes."""
    config.addinivalue_line("markers", "counted(row): each case is one try in this row of `make reliability`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where it is counted, only what counts runs; tests of bad inputs are told by what they demand."""
    if WORKER:  # files that train take longest: begun first, none of them is left to one worker at the end
        training = {item.path for item in items if item.get_closest_marker("train")}
        items.sort(key=lambda item: item.path not in training)
    if TALLY is None:
        return
    for item in items:
        if isinstance(item, pytest.Function) and _REFUSES.search(inspect.getsource(item.function)):
            item.add_marker(pytest.mark.counted("bad inputs"))
    counting = [item for item in items if item.get_closest_marker("counted") or "tally" in _fixtures(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(counting)])
    items[:] = counting


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a case when its teardown is over too, since that is where a leak shows."""
    report = yield
    mark = item.get_closest_marker("counted")
    if mark is not None and not report.skipped and (report.when == "call" or report.failed):
        item.stash[_SURVIVED] = item.stash.get(_SURVIVED, True) and report.passed
    if mark is not None and report.when == "teardown" and _SURVIVED in item.stash:
        _count(mark.args[0], 1, int(item.stash[_SURVIVED]))
    return report


def _count(row: str, tried: int, survived: int, note: str = "") -> None:
    if TALLY is not None:
        with open(TALLY, "a", encoding="utf-8") as file:
            print(json.dumps({"row": row, "tried": tried, "survived": survived, "note": note}), file=file)


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


@pytest.fixture
def quiet_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of a hub, trl keeps its warning of experimental features to itself, and one thread computes."""
    import torch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(1)
