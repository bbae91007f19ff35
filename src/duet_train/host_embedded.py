"""Hosting with the embedded engine: one model at a time, restarted on its port when another adapter is published."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from duet import ConfigurationError, local
from duet_train.adapters import Adapter, write_gguf_adapter
from duet_train.bases import Base, for_gguf, gguf_name, module_name, read_base
from duet_train.settings import PACKAGED
from duet_train.tensor_files import (
    metadata_bytes,
    read_gguf_header,
    read_gguf_strings,
    read_safetensors_header,
    read_tensor,
    write_gguf,
)

if TYPE_CHECKING:
    from duet_train.tensor_files import Floats, TensorPlace

TOKENS, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.chat_template"


class EmbeddedServer:
    """llama.cpp in a child process, with the adapter as a GGUF file.

    Args:
        base: A GGUF file, or a folder with a fine-tuned copy of the packaged model.
        work: A folder of its own for the files that it writes.
        port: On loopback; 0 takes a free one and keeps it.
        settings: Further keyword arguments of `duet.local.start`.

    Raises:
        ConfigurationError: The engine cannot serve this base.
    """

    name = "llama.cpp"
    one_adapter = True

    def __init__(self, base: Base, work: Path, *, port: int = 0, **settings: Any) -> None:
        if not base.is_gguf:
            check_folder(base)
        self._base = base
        self._work = work
        self._port = port
        self._settings = settings
        self._engine: local.LocalEngine | None = None
        self._serving: tuple[str, Path | None] | None = None
        self.base_url = ""

    @property
    def failure(self) -> str:
        """Why it serves no more; empty while it does."""
        return "" if self._engine is None or self._engine.running else "the embedded engine's process has ended"

    async def start(self) -> None:
        """Write the weights as GGUF where they are not."""
        if not self._base.is_gguf:
            path = self._work / f"{self._base.name}.gguf"
            await anyio.to_thread.run_sync(write_gguf_weights, self._base, path)
            self._base = read_base(str(path))

    async def serve(self, adapters: Mapping[str, Adapter]) -> None:
        """Serve the one adapter there is under its name, or the base under its own.

        Where the new adapter does not load, the one before is served again.

        Args:
            adapters: By the name to serve them under.

        Raises:
            ConfigurationError: The adapter cannot be written for this engine, or does not load.
        """
        before, name, path = self._serving, self._base.name, None
        for name, adapter in adapters.items():
            path = self._work / f"{name}.gguf"
            await anyio.to_thread.run_sync(write_gguf_adapter, adapter, self._base, path)
        with anyio.CancelScope(shield=True):  # between two engines there is none
            await self._restart(name, path)
        if before is not None and before[1] is not None:
            before[1].unlink()

    async def _restart(self, name: str, adapter: Path | None) -> None:
        before = self._serving
        await self.aclose()
        try:
            await anyio.to_thread.run_sync(self._launch, name, adapter)
        except ConfigurationError:
            if before is not None:
                await anyio.to_thread.run_sync(self._launch, *before)
            raise

    def _launch(self, name: str, adapter: Path | None) -> None:
        start = partial(local.start, self._base.path, name=name, adapter=adapter, port=self._port)
        self._engine = start(**self._settings)
        self._serving = name, adapter
        self.base_url = self._engine.base_url
        self._port = int(self.base_url.removesuffix("/v1").rpartition(":")[2])

    async def aclose(self) -> None:
        """Stop it; requests under way break off."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(engine.close)


# A folder of weights as a GGUF file


def check_folder(base: Base) -> None:
    """That a folder holds a fine-tuned copy of the packaged model, whose GGUF file then gives all but the weights.

    Args:
        base: A folder of safetensors, or a hub's name.

    Raises:
        ConfigurationError: It is another model.
        MissingExtraError: The packaged model is not installed.
    """
    packaged = read_base(PACKAGED)
    if base.path is None or not (_same_shape(base, packaged) and _same_tokens(base.path, packaged)):
        raise ConfigurationError(
            f"the embedded engine serves a GGUF file, or a folder with a fine-tuned copy of the packaged model, which "
            f"{base.source} is not: convert it with llama.cpp's convert_hf_to_gguf.py, or install vllm"
        )


def _same_shape(base: Base, packaged: Base) -> bool:
    assert base.path is not None
    assert packaged.path is not None
    config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    turns = (config.get("rope_parameters") or config).get("rope_theta")
    wanted = read_gguf_header(packaged.path).metadata["llama.rope.freq_base"]
    one = (base.architecture, base.heads, turns, dict(base.shapes))
    return one == (packaged.architecture, packaged.heads, wanted, dict(packaged.shapes))


def _same_tokens(folder: Path, packaged: Base) -> bool:
    assert packaged.path is not None
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        ids = tokenizer["model"]["vocab"] | {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(ids == {token: number for number, token in enumerate(read_gguf_strings(packaged.path, TOKENS))})


def write_gguf_weights(base: Base, path: Path) -> None:
    """Write a fine-tuned copy of the packaged model as a GGUF file, in float16.

    Tokenizer and settings are the packaged file's, the chat template the folder's where it has one.

    Args:
        base: Checked by `check_folder`.
        path: The file to write.
    """
    packaged = read_base(PACKAGED)
    assert base.path is not None
    assert packaged.path is not None
    header = read_gguf_header(packaged.path)
    tensors = [(name, shape, "F16" if len(shape) > 1 else "F32") for name, shape in header.shapes.items()]
    write_gguf(path, _metadata(packaged.path, base.path), tensors, _weights(base, [name for name, _, _ in tensors]))


def _metadata(packaged: Path, folder: Path) -> list[bytes]:
    template = folder / "chat_template.jinja"
    own = {"general.file_type": metadata_bytes("general.file_type", 1)}  # mostly float16
    if template.is_file():
        own[TEMPLATE] = metadata_bytes(TEMPLATE, template.read_text(encoding="utf-8"))
    raw = packaged.read_bytes()
    spans = read_gguf_header(packaged).spans
    return [own.get(key, raw[begin:end]) for key, (begin, end) in spans.items()]


def _weights(base: Base, names: list[str]) -> Iterator[Floats]:
    assert base.path is not None
    places: dict[str, tuple[Path, TensorPlace]] = {}
    for file in base.path.glob("*.safetensors"):
        places |= {name: (file, place) for name, place in read_safetensors_header(file).items()}
    for name in names:
        module = module_name(name)
        assert gguf_name(module) == name
        yield for_gguf(module, read_tensor(*places[f"{module}.weight"]), base)
