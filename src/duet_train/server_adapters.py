"""The policy's adapter on its way to a server: saved as safetensors, loaded under a fresh name, the old one dropped."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from duet import ConfigurationError, DuetError, EndpointError, EndpointRejected
from duet_train.server_client import VLLMServer

T = TypeVar("T")

HOW_TO_START = (
    "the server does not load adapters while it runs: start it with --enable-lora and, in its environment, "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CHANGES_THE_BASE = re.compile("pissa|olora|corda|loftq", re.I)

log = logging.getLogger("duet_train")


def check_name(name: str) -> str:
    """An adapter's name, which is the name of a folder too.

    Raises:
        ConfigurationError: It holds more than letters, digits, ".", "_" and "-".
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"an adapter's name holds letters, digits, '.', '_' and '-' only, got {name!r}")
    return name


def check_lora(config: Any) -> None:
    """That vLLM can serve what PEFT will train.

    Args:
        config: A PeftConfig; None where all weights are trained.

    Raises:
        ConfigurationError: It cannot.
    """
    if config is None:
        raise ConfigurationError(
            "rollouts from a server need a LoRA (use_peft: true): the trained weights reach it as an adapter"
        )
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ConfigurationError(f"rollouts from a server need an adapter of type LORA, got {kind}")
    refused = [name for name in ("use_dora", "lora_bias", "modules_to_save") if getattr(config, name, None)]
    if getattr(config, "bias", "none") != "none":
        refused.append("bias")
    if _CHANGES_THE_BASE.match(str(getattr(config, "init_lora_weights", ""))):
        refused.append("init_lora_weights")
    if refused:
        raise ConfigurationError(f"vLLM serves plain LoRA only, without {', '.join(refused)}")


def on_main(trainer: Any, function: Callable[[], T]) -> T:
    """What a function gives in the main process, in every process; and what goes wrong there is raised in all.

    Args:
        trainer: Of transformers.
        function: Is called in the main process only.
    """
    outcome: list[Any] = [None]
    if trainer.accelerator.is_main_process:
        try:
            outcome = [function()]
        except (DuetError, OSError) as exc:
            outcome = [exc]
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    result: T = outcome[0]
    return result


def is_sharded(model: Any) -> bool:
    """Whether this process holds only a part of each weight (FSDP, ZeRO-3)."""
    parameter = next(iter(model.parameters()))
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id")


def adapter_weights(trainer: Any) -> dict[str, Any]:
    """The adapter's weights, whole, by PEFT's names. Where the model is sharded every process has to call this.

    Args:
        trainer: Of transformers, with a PEFT model.
    """
    if getattr(trainer, "deepspeed", None) is not None and is_sharded(trainer.model):
        return dict(trainer.accelerator.get_state_dict(trainer.deepspeed) or {})  # None but in the first process
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled and type(trainer.model).__name__ == "FullyShardedDataParallel":
        return dict(trainer.accelerator.get_state_dict(trainer.model))
    # FSDP's second version hands out each weight by itself, so the base model's stay where they are.
    return {name: _whole(weight) for name, weight in model.named_parameters() if weight.requires_grad}


def _whole(weight: Any) -> Any:
    weight = weight.detach()
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def write_adapter(trainer: Any, weights: dict[str, Any], folder: Path) -> None:
    """Save the adapter that is trained, as PEFT does, in safetensors.

    Args:
        trainer: As `adapter_weights`.
        weights: From there.
        folder: Made here.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    # The embeddings are none of a LoRA's; the default would look the base model's size up at the hub.
    model.save_pretrained(
        folder, state_dict=weights, safe_serialization=True, selected_adapters=["default"], save_embedding_layers=False
    )


class AdapterVersions:
    """One adapter at one server, in version after version; no name is used twice.

    vLLM keeps what it computed of a prompt by the adapter's name, so new weights under an old name may be answered with
    old states (vllm issue 42125). A name is therefore `NAME-TOKEN-vSTEP`, with a token of this object's own: a run
    that was killed and goes on from an earlier step does not meet its own old versions.

    Args:
        server: Where the versions are loaded.
        folder: Where they are written, each in a folder of its own; the server reads them there.
        name: The first part of their names.
        folder_on_server: The same folder as the server sees it, where that differs (a container).

    Attributes:
        current: Name of the version that is loaded; None before the first.

    Raises:
        ConfigurationError: The name cannot be one.
    """

    def __init__(self, server: VLLMServer, folder: Path, name: str, *, folder_on_server: str | None = None) -> None:
        self.current: str | None = None
        self._server = server
        self._folder = folder.resolve()
        self._seen_at = (folder_on_server or str(self._folder)).rstrip("/")
        self._name = check_name(name)
        self._ours = re.compile(rf"{re.escape(name)}-[0-9a-f]{{6}}-v\d+")
        self._used: set[str] = set()
        self._outdated: list[str] = []
        self._token = secrets.token_hex(3)

    def publish(self, write: Callable[[Path], object], step: int) -> str:
        """Write a version, load it, and drop the one before.

        Args:
            write: Writes the adapter into the folder it is given.
            step: Becomes the version's number.

        Returns:
            The name to ask the server for.

        Raises:
            EndpointError: The server is gone or refuses; the message says what to do.
            OSError: The folder cannot be written.
        """
        if not self._used:
            self._clear_leftovers()
        name = self._fresh_name(step)
        write(self._folder / name)
        self._load(name)
        if self.current is not None:
            self._outdated.append(self.current)
        self.current = name
        self._drop_outdated()
        return name

    def close(self) -> None:
        """Drop the version that is loaded; a server that is gone is only a warning."""
        if self.current is not None:
            self._outdated.append(self.current)
            self.current = None
        self._drop_outdated()

    def _fresh_name(self, step: int) -> str:
        name = f"{self._name}-{self._token}-v{step}"
        if name in self._used:
            self._token = secrets.token_hex(3)
            name = f"{self._name}-{self._token}-v{step}"
        self._used.add(name)
        return name

    def _load(self, name: str) -> None:
        path = f"{self._seen_at}/{name}"
        try:
            self._server.post("load_lora_adapter", {"lora_name": name, "lora_path": path})
        except EndpointRejected as exc:
            # The answer to an earlier attempt was lost on its way.
            if "already been loaded" not in str(exc):
                raise EndpointRejected(_advice(exc, path), endpoint=exc.endpoint, status_code=exc.status_code) from exc

    def _drop_outdated(self) -> None:
        for name in list(self._outdated):
            try:
                self._server.post("unload_lora_adapter", {"lora_name": name})
            except EndpointError as exc:
                if exc.status_code != 404:
                    log.warning("The old adapter %s is still loaded: %s", name, exc)
                    continue
            self._outdated.remove(name)
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Versions of an earlier start of the same run, which was killed: told by their name and their folder."""
        for folder in self._folder.glob(f"{self._name}-*"):
            if self._ours.fullmatch(folder.name):
                self._outdated.append(folder.name)
        self._outdated += [name for name in self._loaded_before() if name not in self._outdated]
        self._drop_outdated()

    def _loaded_before(self) -> Iterator[str]:
        for model in self._server.get("models").get("data", []):
            name, root = str(model.get("id")), str(model.get("root"))
            if self._ours.fullmatch(name) and root == f"{self._seen_at}/{name}":
                yield name


def _advice(exc: EndpointRejected, path: str) -> str:
    """The refusal in words that say what to do."""
    text = str(exc)
    if "No adapter found" in text:
        return (
            f"the server cannot read {path}: it has to see the folder of the adapters, under the same path or under "
            "the one given as folder_on_server"
        )
    if "LoRA is not enabled" in text or (exc.status_code in (404, 405) and "add_lora" not in text):
        return f"{HOW_TO_START} ({text})"
    if "max_lora_rank" in text:
        return f"start the server with a --max-lora-rank of at least the adapter's rank ({text})"
    return f"the server refuses the adapter: {text}"
