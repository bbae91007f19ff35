"""The error tree: its shape, its drawing, and that every error survives the way to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

import duet
from duet import (
    BudgetExceeded,
    CompletionError,
    ConfigurationError,
    DuetError,
    EndpointError,
    EndpointRejected,
    EndpointUnavailable,
    IncompleteStream,
    LedgerError,
    MalformedCompletion,
    MissingExtraError,
    RatingError,
    RecordError,
    TruncatedCompletion,
    _errors,
)

BASES: dict[type[Exception], tuple[type[Exception], ...]] = {
    DuetError: (Exception,),
    RecordError: (DuetError, ValueError),
    ConfigurationError: (DuetError, ValueError),
    MissingExtraError: (DuetError, ImportError),
    EndpointError: (DuetError,),
    EndpointUnavailable: (EndpointError,),
    EndpointRejected: (EndpointError,),
    IncompleteStream: (EndpointError,),
    CompletionError: (DuetError,),
    TruncatedCompletion: (CompletionError,),
    MalformedCompletion: (CompletionError,),
    BudgetExceeded: (DuetError,),
    RatingError: (DuetError,),
    LedgerError: (DuetError,),
}

ERRORS: list[DuetError] = [
    DuetError("no"),
    RecordError("no", field="history[3].at"),
    ConfigurationError("no"),
    MissingExtraError("no"),
    EndpointError("no", endpoint="http://h/v1", status_code=500, retry_after=1.5),
    EndpointUnavailable("no", endpoint="http://h/v1", status_code=429, retry_after=1.5),
    EndpointRejected("no", endpoint="http://h/v1", status_code=404),
    IncompleteStream("no", endpoint="http://h/v1"),
    CompletionError("no", completion="text"),
    TruncatedCompletion("no", completion="text"),
    MalformedCompletion("no", completion="text", missing=("user.cue", "item.cue")),
    BudgetExceeded("no"),
    RatingError("no", text="four"),
    LedgerError("no"),
]

every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def defined() -> set[type[Exception]]:
    """Every error class of the module."""
    return {kind for _, kind in inspect.getmembers(_errors, inspect.isclass) if issubclass(kind, Exception)}


def shown(error: Exception) -> tuple[object, ...]:
    """All that an error carries."""
    return type(error), str(error), error.args, vars(error)


def drawing() -> list[tuple[int, str]]:
    """(depth, name) of every class in the module's drawing."""
    lines = re.findall(r"^ {4}((?:[│├└─ ]{4})*)([A-Z]\w+)", _errors.__doc__ or "", re.M)
    return [(len(indent) // 4, name) for indent, name in lines]


@pytest.mark.parametrize(("kind", "bases"), BASES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_bases_are_those_of_the_tree(kind: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    """Each error has the bases of the tree, so that an except clause catches what it should."""
    assert kind.__bases__ == bases


def test_tree_holds_every_error_of_the_module() -> None:
    """No error class is missing from these tests."""
    assert defined() == BASES.keys()


def test_every_kind_of_error_is_tested() -> None:
    """There is an instance of every error class in these tests."""
    assert {type(error) for error in ERRORS} == defined()


def test_every_error_is_public() -> None:
    """Every error class is one of the package's public names."""
    assert {kind.__name__ for kind in defined()} <= set(duet.__all__)


def test_drawing_names_every_error_once() -> None:
    """The drawing in the docstring names each class exactly once."""
    assert sorted(name for _, name in drawing()) == sorted(kind.__name__ for kind in defined())


def test_drawing_shows_the_parents() -> None:
    """In the drawing each class stands under its first base."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for depth, name in drawing():
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else "Exception"
    assert parents == {kind.__name__: bases[0].__name__ for kind, bases in BASES.items()}


@pytest.mark.parametrize("name", ["ValueError", "ImportError"])
def test_drawing_shows_the_built_in_bases(name: str) -> None:
    """In the drawing a class that is a built-in error too says so, and no other does."""
    marked = set(re.findall(rf"(\w+) \({name}\)", _errors.__doc__ or ""))
    assert marked == {kind.__name__ for kind, bases in BASES.items() if name in {base.__name__ for base in bases}}


@every_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_error_survives_pickling(error: DuetError, protocol: int) -> None:
    """An error read back from a pickle has its class, message and attributes."""
    assert shown(pickle.loads(pickle.dumps(error, protocol))) == shown(error)  # noqa: S301  # our own bytes


@every_error
def test_error_survives_copying(error: DuetError) -> None:
    """A deep copy of an error has its class, message and attributes."""
    assert shown(copy.deepcopy(error)) == shown(error)


@every_error
def test_message_is_the_text(error: DuetError) -> None:
    """The text of an error is its message and nothing else."""
    assert str(error) == "no"


@every_error
def test_note_survives_pickling(error: DuetError) -> None:
    """A note that was added to an error survives pickling."""
    noted = copy.deepcopy(error)
    noted.add_note("while profiling pair 7")
    assert pickle.loads(pickle.dumps(noted)).__notes__ == ["while profiling pair 7"]  # noqa: S301  # our own bytes


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [
        (RecordError, "field"),
        (EndpointError, "endpoint"),
        (CompletionError, "completion"),
        (RatingError, "text"),
        (MalformedCompletion, "missing"),
        (EndpointError, "status_code"),
        (EndpointError, "retry_after"),
    ],
)
def test_attributes_may_be_left_out(kind: type[DuetError], attribute: str) -> None:
    """An error can be raised with a message alone, and its attributes are then empty."""
    assert not getattr(kind("no"), attribute)


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (RecordError("no", field="at"), {"field": "at"}),
        (
            EndpointUnavailable("no", endpoint="http://h/v1", status_code=429, retry_after=1.5),
            {"endpoint": "http://h/v1", "status_code": 429, "retry_after": 1.5},
        ),
        (TruncatedCompletion("no", completion="text"), {"completion": "text"}),
        (
            MalformedCompletion("no", completion="text", missing=("user.cue",)),
            {"completion": "text", "missing": ("user.cue",)},
        ),
        (RatingError("no", text="four"), {"text": "four"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attributes_are_those_given(error: DuetError, attributes: dict[str, object]) -> None:
    """An error has the attributes that it was raised with, and no others."""
    assert vars(error) == attributes
