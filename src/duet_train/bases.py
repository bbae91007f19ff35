"""Base models on disk: what they are made of, read without loading them, and how llama.cpp names and orders it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from duet import ConfigurationError
from duet_train.models import packaged_file
from duet_train.settings import PACKAGED
from duet_train.tensor_files import read_gguf_header, read_safetensors_header

if TYPE_CHECKING:
    from duet_train.tensor_files import Floats

GGUF_NAMES: Mapping[str, str] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
    "model.norm": "output_norm",
    "model.embed_tokens": "token_embd",
}
"""What llama.cpp calls the modules of Llama and Qwen3."""

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@attrs.frozen
class Base:
    """The model under the adapters.

    Args:
        source: As it was named: a folder, a GGUF file, "packaged", or a hub's name.
        path: The folder or file; None for a hub's name, of which nothing else is known.
        architecture: As its configuration has it, such as "llama" or "qwen3"; "" where unknown.
        heads: Heads of queries and of keys; None where unknown.
        shapes: Of its weights, by module; empty where unknown.
    """

    source: str
    path: Path | None
    architecture: str = ""
    heads: tuple[int, int] | None = None
    shapes: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict, repr=False)

    @property
    def is_gguf(self) -> bool:
        """Whether it is a file for llama.cpp."""
        return self.path is not None and self.path.is_file()

    @property
    def name(self) -> str:
        """The name to serve it under: the hub's, or the last part of its path without ".gguf"."""
        if self.path is None:
            return self.source
        path = self.path.resolve()
        return path.stem if self.is_gguf else path.name


def read_base(source: str) -> Base:
    """A base model, all but its numbers.

    Args:
        source: A folder of safetensors, a GGUF file, "packaged", or a hub's name.

    Raises:
        ConfigurationError: It is none of these.
        MissingExtraError: "packaged", and the packaged model is not installed.
    """
    path = packaged_file() if source == PACKAGED else Path(source)
    if path.is_file():
        return _gguf_base(source, path)
    if path.is_dir():
        return _folder_base(source, path)
    if HUB_NAME.fullmatch(source):
        return Base(source, None)
    raise ConfigurationError(f"{source}: there is no such folder or GGUF file")


def _gguf_base(source: str, path: Path) -> Base:
    header = read_gguf_header(path)
    architecture = str(header.metadata.get("general.architecture", ""))
    queries = header.metadata.get(f"{architecture}.attention.head_count", 0)
    keys = header.metadata.get(f"{architecture}.attention.head_count_kv", queries)
    shapes = {module_name(name): shape for name, shape in header.shapes.items()}
    return Base(source, path, architecture, (int(queries), int(keys)), shapes)


def _folder_base(source: str, path: Path) -> Base:
    config = read_json(path / "config.json")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigurationError(f"{path} has no .safetensors: weights are read in this format and no other")
    shapes = {
        name.removesuffix(".weight"): place.shape
        for file in files
        for name, place in read_safetensors_header(file).items()
        if name.endswith(".weight")
    }
    queries = config.get("num_attention_heads")
    heads = (int(queries), int(config.get("num_key_value_heads") or queries)) if queries else None
    return Base(source, path, str(config.get("model_type", "")), heads, shapes)


def module_name(tensor: str) -> str:
    """The module of a weight in a GGUF file, as PEFT and transformers name it.

    Args:
        tensor: Such as "blk.3.attn_q.weight".
    """
    stem, own = tensor.removesuffix(".weight"), {gguf: name for name, gguf in GGUF_NAMES.items()}
    block = _BLOCK.fullmatch(stem)
    return f"model.layers.{block[1]}.{own.get(block[2], block[2])}" if block else own.get(stem, stem)


def gguf_name(module: str) -> str:
    """The weight in a GGUF file that belongs to a module.

    Args:
        module: Such as "model.layers.3.self_attn.q_proj".

    Raises:
        ConfigurationError: llama.cpp has none.
    """
    layer = _LAYER.fullmatch(module)
    name = GGUF_NAMES.get(layer[2] if layer else module)
    if name is None:
        raise ConfigurationError(f"the embedded engine has no weights for {module}; serve it with vLLM")
    return f"blk.{layer[1]}.{name}.weight" if layer else f"{name}.weight"


def permuted(weights: Floats, heads: int) -> Floats:
    """The rows of a query or key projection in the order that llama.cpp wants for the architecture Llama.

    Transformers turns the first half of a head's entries against the second half, llama.cpp each even one against the
    odd one beside it; so the two halves are interleaved, head by head.

    Args:
        weights: Rows are the outputs.
        heads: Of the queries, or of the keys.
    """
    halves = weights.reshape(heads, 2, -1, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def for_gguf(module: str, weights: Floats, base: Base) -> Floats:
    """Weights (rows are the outputs) in the order of a GGUF file.

    Args:
        module: Whose they are.
        weights: All of them, or B of a LoRA.
        base: Says architecture and heads.
    """
    leaf = module.rpartition(".")[2]
    if base.architecture != "llama" or leaf not in ("q_proj", "k_proj"):
        return weights
    assert base.heads is not None
    return permuted(weights, base.heads[leaf == "k_proj"])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It is missing or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} is not a JSON object")
    return value
