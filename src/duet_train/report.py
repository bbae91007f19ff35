"""``python -m duet_train report``: one HTML page for a run, which needs nothing but itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import anyio

from duet import ConfigurationError, HTTPEmbedder, MissingExtraError
from duet_train.reporting.page import page
from duet_train.reporting.reading import read_run
from duet_train.reporting.texts import Vectors, unit_vectors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("directory", type=Path, metavar="RUN", help="what a training verb wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: RUN/report.html)")
    parser.add_argument(
        "--embedder", metavar="minilm|URL,MODEL", help="for the likeness of profiles (default: their words)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    if find_spec("numpy") is None:
        raise MissingExtraError('report needs numpy; install it with: pip install "duet-profiles[evaluate]"')
    written = report(args.directory, args.out, vectors=_vectors(args.embedder) if args.embedder else None)
    print(written)
    return 0


def report(directory: Path, out: Path | None = None, *, vectors: Vectors | None = None) -> Path:
    """Write the page of a run; what the file was before stays until the new one is whole.

    Args:
        directory: What a training verb wrote.
        out: The page; None for ``report.html`` in the directory.
        vectors: Of an embedder, for the likeness of profiles; None compares their words.

    Returns:
        Where the page is.

    Raises:
        ConfigurationError: There is no run, or the page cannot be written.
    """
    path = directory / "report.html" if out is None else out
    text = page(read_run(directory), vectors)
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        whole.write_text(text, encoding="utf-8")
        whole.replace(path)
    except OSError as exc:
        whole.unlink(missing_ok=True)
        raise ConfigurationError(f"the page {str(path)!r} cannot be written: {exc.strerror}") from exc
    return path


def _vectors(embedder: str) -> Vectors:
    """The embedder that an option names.

    Raises:
        ConfigurationError: It names none.
        MissingExtraError: It is not installed.
    """
    if embedder == "minilm":
        from duet_train.minilm import MiniLM

        model = MiniLM()
        return lambda texts: unit_vectors(anyio.run(model.embed, texts))
    from duet_train.tools import address_and_model

    address, name = address_and_model(embedder, "--embedder")
    return lambda texts: unit_vectors(anyio.run(_embed, address, name, texts))


async def _embed(address: str, model: str, texts: Sequence[str]) -> Sequence[Sequence[float]]:
    async with HTTPEmbedder(address, model, api_key=os.environ.get("DUET_API_KEY") or None) as embedder:
        return await embedder.embed(texts)
