"""Trained adapters: read and compared with their base before a model is loaded, and written as llama.cpp takes them.

An adapter is a folder as PEFT saves it. A LoRA adds to a weight W (out, in) the product s·B·A with A (rank, in),
B (out, rank) and the scaling s = alpha / rank, or alpha / √rank under rslora (Hu et al., arXiv 2106.09685;
Kalajdzievski, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from duet import ConfigurationError
from duet_train.bases import HUB_NAME, Base, for_gguf, gguf_name, read_json
from duet_train.tensor_files import TensorPlace, metadata_bytes, read_safetensors_header, read_tensor, write_gguf

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

ARCHITECTURES = ("llama", "qwen3")
"""The ones whose adapters and weights are written as GGUF."""

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
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
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ConfigurationError(f"{folder} holds an adapter of type {config.get('peft_type')!r}; only LORA is served")
    used = [key for key in _REFUSED if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
    if used:
        raise ConfigurationError(f"{folder} is no plain LoRA: its configuration has {', '.join(used)}")
    if not (folder / WEIGHTS).is_file():
        raise ConfigurationError(f"{folder} has no {WEIGHTS}: adapters are read as safetensors and in no other format")
    alphas = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise ConfigurationError(f"{folder}: lora_alpha and alpha_pattern must be numbers; got {alphas}")
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


def check_fits(adapter: Adapter, base: Base) -> None:
    """That an adapter belongs to a base, as far as names and shapes tell.

    Where both are names of a hub, they have to be the same. A path says nothing, since folders are moved and copied.

    Args:
        adapter: What is to be served.
        base: What it is to be served on.

    Raises:
        ConfigurationError: It was trained on another one.
    """
    known = [one for one in (adapter.base, base.source) if HUB_NAME.fullmatch(one) and not Path(one).exists()]
    if len(set(known)) == 2:
        raise ConfigurationError(f"{adapter.path} was trained on {adapter.base}, not on {base.source}")
    leaves = {module.rpartition(".")[2] for module in base.shapes}
    for module, (a, b) in adapter.pairs.items():
        shape, wanted = base.shapes.get(module), (b.shape[0], a.shape[1])
        if shape is None and (base.is_gguf or module.rpartition(".")[2] in leaves):
            raise ConfigurationError(f"{adapter.path} is for another base: {base.source} has no {module}")
        if shape is not None and shape != wanted:
            raise ConfigurationError(
                f"{adapter.path} is for another base: {module} is {_by(wanted)} there and {_by(shape)} in {base.source}"
            )


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


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
