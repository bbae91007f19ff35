"""The public names: what is exported, that all of it is documented, and that importing it is light."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import duet

HEAVY = ["httpx", "openai", "aiohttp", "torch", "numpy", "trio", "pandas", "transformers", "xllamacpp", "uvicorn"]


def names() -> list[str]:
    """What stands in the package's namespace without an underscore and is no module of it."""
    return [name for name, value in vars(duet).items() if name[0] != "_" and not isinstance(value, ModuleType)]


def methods(kind: type) -> dict[str, Any]:
    """The public functions that a class of ours defines or inherits from one of ours."""
    return {
        name: function
        for name, function in inspect.getmembers(kind, inspect.isroutine)
        if name[0] != "_" and (getattr(function, "__module__", None) or "").startswith("duet")
    }


CLASSES = {name: value for name in duet.__all__ if inspect.isclass(value := getattr(duet, name))}
FUNCTIONS = {name: value for name in duet.__all__ if inspect.isfunction(value := getattr(duet, name))}
METHODS = {f"{owner}.{name}": value for owner, kind in CLASSES.items() for name, value in methods(kind).items()}
CALLABLES = CLASSES | FUNCTIONS | METHODS


def parameters(value: Any) -> list[str]:
    """The parameters that a caller gives."""
    try:
        found = inspect.signature(value).parameters
    except ValueError:  # a class that is built in C
        return []
    return [name for name in found if name not in ("self", "cls")]


def documented(doc: str) -> list[str]:
    """The names in the Args section of a docstring."""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n|\n)*)", inspect.cleandoc(doc) + "\n", re.M)
    return re.findall(r"^ {4}\*{0,2}(\w+):", section[1], re.M) if section else []


def own_doc(value: Any) -> str:
    """The docstring that stands in the source, not one that a decorator or base class made up."""
    return (value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__) or ""


def is_called(value: Any) -> bool:
    """Whether it takes parameters of its own: neither a protocol nor an inherited constructor does."""
    inherits = inspect.isclass(value) and "__init__" not in value.__dict__
    return bool(parameters(value)) and not (inherits or getattr(value, "_is_protocol", False))


CALLED = [name for name, value in CALLABLES.items() if is_called(value)]


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after one statement."""
    code = f"import json, sys; {statement}; print(json.dumps(list(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    return set(json.loads(answer.stdout))


def test_all_is_sorted() -> None:
    """`__all__` is sorted."""
    assert duet.__all__ == sorted(duet.__all__)


def test_all_names_everything_once() -> None:
    """No name stands in `__all__` twice."""
    assert len(duet.__all__) == len(set(duet.__all__))


def test_all_is_what_is_there() -> None:
    """`__all__` names exactly what the package holds."""
    assert sorted(duet.__all__) == sorted(names())


def test_star_import_brings_all() -> None:
    """A star import brings every public name."""
    namespace: dict[str, object] = {}
    exec("from duet import *", namespace)  # noqa: S102  # a star import cannot stand in a function
    assert namespace.keys() - {"__builtins__"} == set(duet.__all__)


def test_package_has_a_docstring() -> None:
    """The package says what it is."""
    assert duet.__doc__


@pytest.mark.parametrize("name", CALLABLES)
def test_public_name_has_a_docstring(name: str) -> None:
    """Every public class, function and method has a docstring of its own."""
    assert own_doc(CALLABLES[name]).strip()


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_starts_with_a_sentence(name: str) -> None:
    """Every public docstring starts with a capital letter or a code literal, and its first paragraph ends in a stop."""
    first = inspect.cleandoc(own_doc(CALLABLES[name])).split("\n\n")[0]
    assert re.fullmatch(r"[A-Z`(−].*[.:]", first, re.S)


@pytest.mark.parametrize("name", [name for name in CALLABLES if documented(own_doc(CALLABLES[name]))])
def test_args_are_the_parameters(name: str) -> None:
    """An Args section names every parameter, in order, and nothing else."""
    assert documented(own_doc(CALLABLES[name])) == parameters(CALLABLES[name])


@pytest.mark.parametrize("name", CALLED)
def test_parameters_are_documented(name: str) -> None:
    """Every public class, function and method that takes parameters has an Args section."""
    assert documented(own_doc(CALLABLES[name]))


@pytest.mark.parametrize(
    "name", ["User", "Sampling", "CuePrompt", "HTTPEndpoint", "EndpointError", "rank", "Ledger.get"]
)
def test_records_errors_functions_and_methods_take_parameters(name: str) -> None:
    """What is asked for an Args section is every kind of callable: written, made by attrs, and inherited by attrs."""
    assert name in CALLED


@pytest.mark.parametrize("name", [name for name in CLASSES if parameters(CLASSES[name]) and name not in CALLED])
def test_class_without_args_has_a_reason(name: str) -> None:
    """A class is let off an Args section where it is a protocol, or where a base of ours documents its constructor."""
    kind = CLASSES[name]
    owner = next(base for base in kind.__mro__ if "__init__" in base.__dict__)
    assert getattr(kind, "_is_protocol", False) or documented(own_doc(owner)) == parameters(kind)


@pytest.fixture(scope="module")
def light() -> set[str]:
    """The modules that `import duet` loads."""
    return loaded_by("import duet")


@pytest.mark.parametrize("module", HEAVY)
def test_import_is_light(light: set[str], module: str) -> None:
    """Importing the package loads no SDK, no engine and no tensor library."""
    assert module not in light


@pytest.mark.parametrize("module", ["email.utils", "hashlib"])
def test_import_leaves_what_few_need(light: set[str], module: str) -> None:
    """Parts of the standard library that are slow to load wait for the first call that needs them."""
    assert module not in light


def test_import_loads_no_commands(light: set[str]) -> None:
    """Importing the package loads neither the embedded engine nor the commands."""
    assert not light & {"duet.local", "duet.testing", "duet.__main__"}


def test_the_probe_sees_what_is_loaded() -> None:
    """The probe of these tests does see a module that a statement loads."""
    assert {"duet", "openai"} <= loaded_by("import duet, openai")


def test_documented_reads_an_args_section() -> None:
    """The reader of Args sections finds the names, and only in that section."""
    doc = """Do it.

    Args:
        one: First,
            which: has more lines.
        two: Second.

    Returns:
        three: Not a parameter.
    """
    assert documented(doc) == ["one", "two"]
