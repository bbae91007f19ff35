"""Files of tensors: headers of safetensors and GGUF read without a framework, and GGUF written.

The two formats are small: a header that says where each tensor lies, then the numbers. Reading headers alone lets an
adapter be compared with its base in milliseconds, before any model is loaded.

Sources: the description of the safetensors format (huggingface/safetensors) and of GGUF version 3 (ggml-org/ggml,
docs/gguf.md).
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from duet import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]

_MAX_HEADER = 100_000_000  # as safetensors itself has it
_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@attrs.frozen
class TensorPlace:
    """Where a tensor lies in a safetensors file.

    Args:
        dtype: As the format names it: "F32", "F16", "BF16" and others.
        shape: Outermost axis first.
        begin: First byte, counted from the start of the file.
        end: Byte after the last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors_header(path: Path) -> dict[str, TensorPlace]:
    """The tensors of a safetensors file, by name.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It is missing, or not in this format.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(min(length, _MAX_HEADER)))
        entries.pop("__metadata__", None)
        return {name: _place(entry, 8 + length, path.stat().st_size) for name, entry in entries.items()}
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise ConfigurationError(f"{path} is not a safetensors file, or is cut off") from exc


def _place(entry: Mapping[str, Any], start: int, size: int) -> TensorPlace:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    if not start <= begin <= end <= size:
        raise ValueError
    return TensorPlace(str(entry["dtype"]), tuple(map(int, entry["shape"])), begin, end)


def read_tensor(path: Path, place: TensorPlace) -> Floats:
    """One tensor of a safetensors file as numpy holds it; bfloat16 comes as float32.

    Args:
        path: The file.
        place: From `read_safetensors_header`.

    Raises:
        ConfigurationError: Its numbers are of a kind that is not read here.
    """
    np = _numpy()
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    if place.dtype not in kinds:
        raise ConfigurationError(f"{path} holds tensors of type {place.dtype}; save it in float32, float16 or bfloat16")
    with path.open("rb") as file:
        file.seek(place.begin)
        raw: Floats = np.frombuffer(file.read(place.end - place.begin), kinds[place.dtype]).reshape(place.shape)
    if place.dtype == "BF16":  # the upper half of a float32
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw


def _numpy() -> Any:
    try:
        import numpy
    except ModuleNotFoundError as exc:
        raise MissingExtraError('numpy is not installed; install it with: pip install "duet-profiles[train]"') from exc
    return numpy


@attrs.frozen
class GGUFHeader:
    """What a GGUF file says of itself.

    Args:
        metadata: Keys with one value. Of an array, such as the tokens, the number of entries.
        shapes: Of each tensor, outermost axis first, which is the reverse of the file's order.
        spans: Of each key, the bytes of key and value in the file.
    """

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    spans: Mapping[str, tuple[int, int]]


def read_gguf_header(path: Path) -> GGUFHeader:
    """The header of a GGUF file.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It is missing, or not in this format.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Reader(view).header()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, struct.error) as exc:
        raise ConfigurationError(f"{path} is not a GGUF file, or is cut off") from exc


def read_gguf_strings(path: Path, key: str) -> list[str]:
    """An array of strings of a GGUF file, such as its tokens.

    Args:
        path: The file.
        key: Such as "tokenizer.ggml.tokens".

    Raises:
        ConfigurationError: The file has no such array.
    """
    begin, end = read_gguf_header(path).spans.get(key, (0, 0))
    with path.open("rb") as file:
        file.seek(begin)
        reader = _Reader(file.read(end - begin))
    if end == 0 or (reader.string(), reader.unpack("I"), reader.unpack("I")) != (key, _ARRAY, _STRING):
        raise ConfigurationError(f"{path} has no list of strings {key!r}")
    return [reader.string() for _ in range(reader.unpack("Q"))]


class _Reader:
    """Reads on from where it is."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self._at = 0

    def header(self) -> GGUFHeader:
        if self._view[:4] != b"GGUF" or struct.unpack("<I", self._view[4:8]) != (3,):
            raise ValueError
        self._at = 8
        tensors, keys = self.unpack("Q"), self.unpack("Q")
        metadata, spans = {}, {}
        for _ in range(keys):
            begin, key = self._at, self.string()
            metadata[key], spans[key] = self.value(self.unpack("I")), (begin, self._at)
        return GGUFHeader(metadata, dict(self._shape() for _ in range(tensors)), spans)

    def unpack(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._view, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value

    def string(self) -> str:
        length = self.unpack("Q")
        text: bytes = self._view[self._at : self._at + length]
        if len(text) != length:
            raise ValueError
        self._at += length
        return text.decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        return self.unpack(_SCALARS[kind]) if kind != _ARRAY else self._skip_array()

    def _skip_array(self) -> int:
        kind, length = self.unpack("I"), self.unpack("Q")
        if kind in _SCALARS:
            self._at += length * struct.calcsize(f"<{_SCALARS[kind]}")
            return int(length)
        for _ in range(length):
            self.value(kind)
        return int(length)

    def _shape(self) -> tuple[str, tuple[int, ...]]:
        name = self.string()
        axes = [int(self.unpack("Q")) for _ in range(self.unpack("I"))]
        self.unpack("I"), self.unpack("Q")
        return name, tuple(reversed(axes))


def metadata_bytes(key: str, value: str | float) -> bytes:
    """One key of a GGUF file with a text, a whole number or a float32.

    Args:
        key: Its name.
        value: What it holds.
    """
    head = _string(key)
    if isinstance(value, str):
        return head + struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, int):
        return head + struct.pack("<II", 4, value)
    return head + struct.pack("<If", 6, value)


def write_gguf(
    path: Path,
    metadata: Sequence[bytes],
    tensors: Sequence[tuple[str, tuple[int, ...], str]],
    numbers: Iterable[Floats],
) -> None:
    """Write a GGUF file.

    Args:
        path: The file; what is there is replaced.
        metadata: Keys with their values, from `metadata_bytes` or as another file has them.
        tensors: Name, shape and type of each, the type "F32" or "F16".
        numbers: Their numbers, in the same order; taken one at a time, so that a large model never is in memory whole.
    """
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata))
        file.write(b"".join(_infos(tensors)))
        for (_, shape, kind), values in zip(tensors, numbers, strict=True):
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            assert values.shape == shape
            file.write(values.astype("<f4" if kind == "F32" else "<f2").tobytes())
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))


def _infos(tensors: Sequence[tuple[str, tuple[int, ...], str]]) -> Iterator[bytes]:
    offset = 0
    for name, shape, kind in tensors:
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        yield _string(name) + axes + struct.pack("<IQ", {"F32": 0, "F16": 1}[kind], offset)
        size = {"F32": 4, "F16": 2}[kind]
        for axis in shape:
            size *= axis
        offset += size + -size % _ALIGNMENT


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
