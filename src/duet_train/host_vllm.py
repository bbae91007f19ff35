"""Hosting with vLLM: ``vllm serve`` as a child process, adapters loaded and unloaded while it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx

from duet import ConfigurationError, EndpointUnavailable
from duet_train import host_child
from duet_train.adapters import CONFIG, WEIGHTS, Adapter
from duet_train.bases import Base

RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Of ``--max-lora-rank``, from its default on."""

GRACE = 15
"""Seconds that it has to end on its own."""

_POLL = 0.25


class VLLMServer:
    """A child process that serves a base model and any number of adapters.

    Args:
        base: A folder or a hub's name.
        work: A folder of its own for copies of the adapters.
        command: The executable.
        port: On loopback.
        adapters: How many names will be served at most.
        rank: The largest rank that they may have.
        context: Tokens of prompt and completion together; None leaves it to vLLM.
        parallel: Requests served at once; None leaves it to vLLM.
        api_key: What requests must send; empty for none.
        thinking: Whether the chat templates of models such as Qwen3 have the model think.
        extra: Further arguments of ``vllm serve``, which win over those made here.
        ready_within: Seconds that it may take to start.

    Raises:
        ConfigurationError: It cannot serve this base.
    """

    name = "vllm"
    one_adapter = False

    def __init__(
        self,
        base: Base,
        work: Path,
        *,
        command: str,
        port: int,
        adapters: int = 1,
        rank: int = 16,
        context: int | None = None,
        parallel: int | None = None,
        api_key: str = "",
        thinking: bool = False,
        extra: Sequence[str] = (),
        ready_within: float = 1800.0,
    ) -> None:
        if base.is_gguf:
            raise ConfigurationError(f"vllm serves a folder of safetensors or a hub's name; {base.source} is GGUF")
        self._base = base
        self._work = work
        self._api_key = api_key
        self._ready_within = ready_within
        self._served: dict[str, Adapter] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._root = f"http://127.0.0.1:{port}"
        self.base_url = f"{self._root}/v1"
        own = {"--max-model-len": context, "--max-num-seqs": parallel}
        self.command = [
            *(command, "serve", str(base.path or base.source), "--served-model-name", base.name),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--enable-lora", "--max-lora-rank", str(_allowed(rank))),
            # Before and after a publish both versions may have requests under way.
            *("--max-loras", str(adapters + 1), "--max-cpu-loras", str(2 * adapters + 1)),
            *(word for key, value in own.items() if value is not None for word in (key, str(value))),
            *("--default-chat-template-kwargs", json.dumps({"enable_thinking": thinking})),
            *extra,
        ]

    @property
    def failure(self) -> str:
        """Why it serves no more; empty while it does."""
        code = None if self._process is None else self._process.poll()
        return "" if code is None else f"vllm ended with exit code {code}; what it said is above"

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            EndpointUnavailable: It ended, or took too long.
        """
        self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; the user's own vllm
            [sys.executable, host_child.__file__, str(GRACE), *self.command],
            stdin=subprocess.PIPE,
            stdout=2,
            env=environment(self._api_key),
            start_new_session=True,
        )
        with anyio.move_on_after(self._ready_within):
            while not await self._answers():
                if self.failure:
                    raise EndpointUnavailable(self.failure)
                await anyio.sleep(_POLL)
            return
        raise EndpointUnavailable(f"vllm was not ready within {self._ready_within:g} seconds")

    async def serve(self, adapters: Mapping[str, Adapter]) -> None:
        """Load what is new, then unload what is not wanted any more.

        A name is never used for a second adapter: what vLLM has cached under it would be served for the new one.

        Args:
            adapters: All that are to be served from now on, by name.

        Raises:
            ConfigurationError: One is not to vLLM's liking.
            EndpointUnavailable: vLLM does not answer.
        """
        for name, adapter in adapters.items():
            if name not in self._served:
                # A copy, since vLLM may read the folder again much later.
                folder = self._work / name
                await anyio.to_thread.run_sync(_copy, adapter.path, folder)
                await self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
                self._served[name] = adapter
        for name in [name for name in self._served if name not in adapters]:
            await self._post("unload_lora_adapter", {"lora_name": name})
            del self._served[name]
            await anyio.to_thread.run_sync(shutil.rmtree, self._work / name)

    async def aclose(self) -> None:
        """Stop it and all that it started."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._process.wait)

    def _client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        return httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=120.0, trust_env=False)

    async def _answers(self) -> bool:
        try:
            async with self._client() as client:
                answer = await client.get("/models")
            return answer.status_code == 200 and self._base.name in [one["id"] for one in answer.json()["data"]]
        except (httpx.TransportError, ValueError, KeyError, TypeError):
            return False

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            async with self._client() as client:
                answer = await client.post(f"/{path}", json=body)
        except httpx.TransportError as exc:
            raise EndpointUnavailable(f"vllm does not answer: {exc!r}", endpoint=self.base_url) from exc
        if answer.status_code != 200:
            raise ConfigurationError(f"vllm answers {path} with {answer.status_code}: {_message(answer)}")


def environment(api_key: str) -> dict[str, str]:
    """The child's environment: adapters may change while it runs, nothing is reported to anyone.

    Args:
        api_key: Empty for none.
    """
    own = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
    # In the environment and not among the arguments, which every user of the machine can read.
    return inherited | own | ({"VLLM_API_KEY": api_key} if api_key else {})


def _allowed(rank: int) -> int:
    for allowed in RANKS:
        if rank <= allowed:
            return allowed
    raise ConfigurationError(f"vllm serves adapters up to rank {RANKS[-1]}; this one has {rank}")


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, folder / name)


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return re.sub(r"\s+", " ", answer.text)[:300]
