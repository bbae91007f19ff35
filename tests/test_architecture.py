"""The architecture, read from the source: imports point down, sockets live in the wires, rewards do not generate."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

# A module imports from earlier lines only. What is not here is a violation, so a new module finds its place on purpose.
LINES = [
    ["_errors"],
    ["_concurrency", "_ledger_file", "_log", "_markup"],
    ["_records"],
    ["_results"],
    ["_events", "_settings", "_schema"],
    ["_prompts", "_parser", "_sse"],
    ["_wire"],
    ["_wire_aiohttp", "_wire_httpx", "_wire_openai"],
    ["_wire_http"],
    ["_caller"],
    ["_endpoint", "_embedder"],
    ["_ledger", "_limits"],
    ["_cues", "_profiler", "_recommender"],
    ["_nearness", "_ranking", "_terms"],
    ["_catalogue", "_choice", "_contrastive", "_leakage"],
    ["_reward"],
    ["__init__"],
    ["_engine_process", "_dataset"],
    ["local"],
    ["testing", "_cli"],
    ["_demo", "_bulk"],
    ["__main__"],
]
PLACES = {module: place for place, line in enumerate(LINES) for module in line}

# What a module may not import, whatever the order says.
FORBIDDEN = {
    "_settings": [module for module in PLACES if module != "_errors"],
    "_reward": ["_profiler", "_ranking", "_cues"],
}

NETWORK = {"httpx", "httpcore", "aiohttp", "requests", "urllib.request", "http.client", "socket"}
WIRED = {"_wire", "_wire_aiohttp", "_wire_http", "_wire_httpx", "_wire_openai", "_engine_process", "local", "testing"}

IMPURE = {"os", "io", "time", "random", "pathlib", "sqlite3", "subprocess", "threading", "asyncio", *NETWORK}
PURE = ["_errors", "_records", "_events", "_schema", "_prompts", "_parser", "_sse", "_reward", "_ranking", "_markup"]


# The rules: source in, violations out


def is_typing_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    """Every node below, with or without what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if is_typing_block(node) and not typing:
            assert isinstance(node, ast.If)
            for other in node.orelse:
                yield from (other, *nodes(other, typing=typing))
            continue
        yield node
        yield from nodes(node, typing=typing)


def imported(source: str, *, package: str = "duet", typing: bool = True) -> set[str]:
    """The dotted names that a module of a flat package imports, "package.name" for each name taken from a module."""
    found: set[str] = set()
    for node in nodes(ast.parse(source), typing=typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = [package] if node.level else []
            parent = ".".join(parts + ([node.module] if node.module else []))
            found |= {f"{parent}.{alias.name}" for alias in node.names}
    return found


def siblings(source: str) -> set[str]:
    """The modules of the package that a module imports; "__init__" where it takes a public name."""
    found = set()
    for name in imported(source):
        package, _, rest = name.partition(".")
        if package == "duet":
            module = rest.partition(".")[0]
            is_module = module in PLACES or module.startswith("_")
            found.add(module if is_module else "__init__")
    return found


def upward(module: str, source: str) -> list[str]:
    """The imports that do not point down."""
    if module not in PLACES:
        return [f"{module} has no place in the order"]
    return sorted(
        f"{module} imports {other}"
        for other in siblings(source)
        if not (other == module == "testing")
        and (other not in PLACES or PLACES[other] >= PLACES[module] or other in FORBIDDEN.get(module, ()))
    )


def outside(source: str, forbidden: set[str]) -> list[str]:
    """The imports at run time that are forbidden, or lie below what is."""
    names = imported(source, typing=False)
    return sorted(name for name in names if any(f"{name}.".startswith(f"{top}.") for top in forbidden))


def private(source: str) -> list[str]:
    """The imports of duet's private modules and names."""
    names = imported(source, package="duet_train")
    return sorted(name for name in names if name.startswith("duet.") and "._" in name)


# The rules, kept


def modules(package: str) -> list[Path]:
    return sorted((SOURCE / package).rglob("*.py"))


def sources() -> dict[str, str]:
    """The source of each module; what lies in a folder of its own counts as one."""
    found: dict[str, str] = {}
    for path in modules("duet"):
        name = path.relative_to(SOURCE / "duet").parts[0].removesuffix(".py")
        found[name] = found.get(name, "") + path.read_text(encoding="utf-8")
    return found


MODULES = sources()
every_module = pytest.mark.parametrize("module", MODULES)


def test_there_are_modules_to_read() -> None:
    """The source is where these tests look for it."""
    assert {"__init__", "_errors", "_reward"} <= MODULES.keys()


def test_modules_lie_flat() -> None:
    """The package has no packages of its own but the test doubles."""
    assert {path.parent for path in modules("duet")} == {SOURCE / "duet", SOURCE / "duet" / "testing"}


def test_order_has_no_module_that_is_gone() -> None:
    """Every module in the order is there."""
    assert PLACES.keys() <= MODULES.keys()


@every_module
def test_imports_point_down(module: str) -> None:
    """A module imports from earlier lines of the order only."""
    assert upward(module, MODULES[module]) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module not in WIRED])
def test_network_is_the_wires(module: str) -> None:
    """No module but the wires, the embedded engine and the test doubles imports an HTTP client or a socket."""
    assert outside(MODULES[module], NETWORK) == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_no_clock_and_no_disk(module: str) -> None:
    """A pure module imports nothing that reads a clock, a disk, chance or the network."""
    assert outside(MODULES[module], IMPURE) == []


def test_training_uses_public_names() -> None:
    """The training package imports duet's public names only."""
    found = {path.stem: private(path.read_text(encoding="utf-8")) for path in modules("duet_train")}
    assert {name: names for name, names in found.items() if names} == {}


# The rules catch what they should


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_records", "from duet._parser import parse_rating"),
        ("_records", "import duet._parser"),
        ("_records", "from duet import _parser"),
        ("_records", "from . import _parser"),
        ("_records", "from ._parser import parse_rating"),
        ("_records", "def late():\n    from duet._parser import parse_rating"),
        ("_records", "if TYPE_CHECKING:\n    from duet._parser import parse_rating"),
        ("_records", "try:\n    import duet._parser\nexcept ImportError:\n    pass"),
        ("_records", "from duet import JointProfiler"),
        ("_records", "import duet"),
        ("_records", "from duet._records import User"),
        ("_records", "from duet._unheard_of import thing"),
        ("_schema", "from duet._events import SectionDelta"),
        ("_settings", "from duet._records import RatingScale"),
        ("_settings", "from duet._concurrency import map_unordered"),
        ("_reward", "from duet._profiler import JointProfiler"),
        ("_reward", "from duet._ranking import rank"),
        ("__init__", "from duet.testing import FakeServer"),
        ("_cli", "from duet import _demo"),
        ("_unheard_of", ""),
    ],
)
def test_planted_import_is_caught(module: str, source: str) -> None:
    """An import that does not point down is one violation, in whatever form it is written."""
    assert len(upward(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_parser", "from duet._records import Rating"),
        ("_parser", "import re\nfrom collections.abc import Mapping"),
        ("_settings", "from duet._errors import ConfigurationError"),
        ("_reward", "from duet._recommender import Recommender"),
        ("testing", "from duet import JointProfiler, local"),
        ("_events", "import duetto\nfrom duets import _parser"),
        ("_events", "'''from duet._profiler import JointProfiler'''"),
    ],
)
def test_other_imports_are_none(module: str, source: str) -> None:
    """An import that points down, or to another package, is no violation."""
    assert upward(module, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import httpx",
        "import httpx._client",
        "from httpx import AsyncClient",
        "import socket as wire",
        "from http.client import HTTPConnection",
        "from http import client",
        "from urllib import request",
        "def late():\n    import aiohttp",
        "if TYPE_CHECKING:\n    import anyio\nelse:\n    import httpx",
    ],
)
def test_planted_network_import_is_caught(source: str) -> None:
    """An import of a client or a socket at run time is one violation."""
    assert len(outside(source, NETWORK)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "if TYPE_CHECKING:\n    import httpx",
        "from http import HTTPStatus",
        "import sockets",
        "from urllib.parse import quote",
    ],
)
def test_other_imports_are_no_network(source: str) -> None:
    """An import for type checkers, or of a namesake, is no violation."""
    assert outside(source, NETWORK) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from duet._parser import parse_rating", ["duet._parser.parse_rating"]),
        ("from duet import _parser", ["duet._parser"]),
        ("import duet._parser as parser", ["duet._parser"]),
        ("from duet.testing import _hidden", ["duet.testing._hidden"]),
        ("from duet import JointProfiler\nfrom duet.testing import FakeServer\nimport duet", []),
        ("from duet_train import _helper\nfrom . import _helper\nfrom _thread import RLock", []),
    ],
)
def test_planted_private_import_is_caught(source: str, expected: list[str]) -> None:
    """An import of a private module or name of duet is a violation, and no other import is."""
    assert private(source) == expected
