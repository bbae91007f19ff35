"""Trained adapters: read and compared with their base before a model is loaded, and written as llama.cpp takes them.

An adapter is a folder as PEFT saves it. A LoRA adds to a weight W (out, in) the product s·B·A with A (rank, in),
B (out, rank) and the scaling s = alpha / rank, or alpha / √rank under rslora (Hu et al., arXiv 2106.09685;
Kalajdzievski, arXiv 2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from duet import ConfigurationError
from duet_train.models import PACKAGED, packaged_file
from duet_train.tensor_files import (
    TensorPlace,
    metadata_bytes,
    read_gguf_header,
    read_safetensors_header,
    read_tensor,
    write_gguf,
)

if TYPE_CHECKING:
    from duet_train.tensor_files import Floats

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

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

ARCHITECTURES = ("llama", "qwen3")
"""The ones whose adapters and weights are written as GGUF."""

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REFUSED = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias", "use_qalora")


@attrs.frozen
class Adapter:
    """A LoRA on disk.

    Args:
        path: Its folder.
        base: The model that it was trained on, as recorded: a path or a hub's name.
        config: All of its ``adapter_config.json``.
        pairs: Of each module, where A and B lie in its safetensors file.
    """

    path: Path
    base: str
    config: Mapping[str, Any] = attrs.field(repr=False)
    pairs: Mapping[str, tuple[TensorPlace, TensorPlace]] = attrs.field(repr=False)

    @property
    def rank(self) -> int:
        """The largest of its modules."""
        return max(a.shape[0] for a, _ in self.pairs.values())

    def scaling(self, module: str) -> float:
        """What B·A is multiplied with.

        Args:
            module: A key of `pairs`.
        """
        patterns = self.config.get("alpha_pattern") or {}
        found = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = float(patterns[found] if found is not None else self.config["lora_alpha"])
        rank = self.pairs[module][0].shape[0]
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def read_adapter(folder: Path) -> Adapter:
    """An adapter, all but its numbers.

    Args:
        folder: As PEFT's ``save_pretrained`` writes it.

    Raises:
        ConfigurationError: A file is missing or damaged, the weights are not safetensors, or it is no plain LoRA.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: there is no such folder with an adapter")
    config = _read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ConfigurationError(f"{folder} holds an adapter of type {config.get('peft_type')!r}; only LORA is served")
    used = [key for key in _REFUSED if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
    if used:
        raise ConfigurationError(f"{folder} is no plain LoRA: its configuration has {', '.join(used)}")
    if not (folder / WEIGHTS).is_file():
        raise ConfigurationError(f"{folder} has no {WEIGHTS}: adapters are read as safetensors and in no other format")
    base = config.get("base_model_name_or_path")
    return Adapter(folder, base if isinstance(base, str) else "", config, _pairs(folder / WEIGHTS))


def _pairs(path: Path) -> dict[str, tuple[TensorPlace, TensorPlace]]:
    sides: dict[str, dict[str, TensorPlace]] = {}
    for name, place in read_safetensors_header(path).items():
        match = _TENSOR.fullmatch(name)
        if match is None or len(place.shape) != 2:
            raise ConfigurationError(f"{path} is no plain LoRA: it holds {name!r}")
        sides.setdefault(match["module"], {})[match["side"]] = place
    for module, found in sides.items():
        if len(found) != 2 or found["A"].shape[0] != found["B"].shape[1]:
            raise ConfigurationError(f"{path}: A and B of {module} do not belong together")
    if not sides:
        raise ConfigurationError(f"{path} holds no LoRA weights")
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} is not a JSON object")
    return value


# The base


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
    if _HUB.fullmatch(source):
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
    config = _read_json(path / "config.json")
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


def check_fits(adapter: Adapter, base: Base) -> None:
    """That an adapter belongs to a base, as far as names and shapes tell.

    Where both are names of a hub, they have to be the same. A path says nothing, since folders are moved and copied.

    Args:
        adapter: What is to be served.
        base: What it is to be served on.

    Raises:
        ConfigurationError: It was trained on another one.
    """
    known = [one for one in (adapter.base, base.source) if _HUB.fullmatch(one) and not Path(one).exists()]
    if len(set(known)) == 2:
        raise ConfigurationError(f"{adapter.path} was trained on {adapter.base}, not on {base.source}")
    leaves = {module.rpartition(".")[2] for module in base.shapes}
    for module, (a, b) in adapter.pairs.items():
        shape, wanted = base.shapes.get(module), (b.shape[0], a.shape[1])
        if shape is None and module.rpartition(".")[2] in leaves:
            raise ConfigurationError(f"{adapter.path} is for another base: {base.source} has no {module}")
        if shape is not None and shape != wanted:
            raise ConfigurationError(
                f"{adapter.path} is for another base: {module} is {_by(wanted)} there and {_by(shape)} in {base.source}"
            )


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


# As llama.cpp takes it


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


def write_gguf_adapter(adapter: Adapter, base: Base, path: Path) -> None:
    """Write an adapter as a GGUF file, the scaling multiplied into B.

    Args:
        adapter: A plain LoRA.
        base: The model that it is for.
        path: The file to write.

    Raises:
        ConfigurationError: The base is of an architecture that is not written here, or has no such weights.
    """
    if base.architecture not in ARCHITECTURES:
        raise ConfigurationError(
            f"the embedded engine takes adapters for {' and '.join(ARCHITECTURES)}, not for {base.architecture!r}; "
            "serve it with vLLM"
        )
    metadata = {"general.architecture": base.architecture, "general.type": "adapter", "adapter.type": "lora"}
    # With an alpha of zero the engine applies the weights as they are.
    entries = [metadata_bytes(key, text) for key, text in metadata.items()]
    entries.append(metadata_bytes("adapter.lora.alpha", 0.0))
    tensors, numbers = [], []
    for module, (a, b) in adapter.pairs.items():
        name, file = gguf_name(module), adapter.path / WEIGHTS
        up = for_gguf(module, read_tensor(file, b).astype("float32") * adapter.scaling(module), base)
        tensors += [(f"{name}.lora_a", a.shape, "F32"), (f"{name}.lora_b", b.shape, "F32")]
        numbers += [read_tensor(file, a), up]
    write_gguf(path, entries, tensors, numbers)
