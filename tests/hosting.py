"""What the tests of hosting share: adapters written byte by byte, tiny GGUF models, a `vllm` that is a script."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from duet import local
from duet_train.bases import gguf_name, read_base
from duet_train.tensor_files import metadata_bytes, write_gguf

Arrays = Mapping[str, npt.NDArray[Any]]

PREFIX = "base_model.model."
KINDS = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8"}


def write_safetensors(path: Path, arrays: Arrays) -> None:
    """A safetensors file; unsigned 16-bit numbers are the bits of bfloat16."""
    header, body = {}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        place = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": KINDS[str(array.dtype)], "shape": list(array.shape), "data_offsets": place}
        body += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def lora(modules: Mapping[str, tuple[int, int]], *, rank: int = 2, seed: int = 0, size: float = 0.05) -> Arrays:
    """Random A and B of modules, each given as outputs and inputs."""
    draw = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for module, (outputs, inputs) in modules.items():
        arrays[f"{PREFIX}{module}.lora_A.weight"] = draw.normal(0, size, (rank, inputs)).astype(np.float32)
        arrays[f"{PREFIX}{module}.lora_B.weight"] = draw.normal(0, 1, (outputs, rank)).astype(np.float32)
    return arrays


def write_adapter(folder: Path, arrays: Arrays, **config: Any) -> Path:
    """An adapter as PEFT saves it."""
    folder.mkdir()
    own = {"peft_type": "LORA", "base_model_name_or_path": "packaged", "r": 2, "lora_alpha": 4, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(own | config))
    write_safetensors(folder / "adapter_model.safetensors", arrays)
    return folder


def packaged_adapter(folder: Path, *, seed: int = 0, size: float = 0.05, **config: Any) -> Path:
    """One for the queries and values of the packaged model's first layers."""
    modules = {
        f"model.layers.{layer}.self_attn.{name}_proj": (outputs, 576)
        for layer in range(4)
        for name, outputs in (("q", 576), ("v", 192))
    }
    return write_adapter(folder, lora(modules, seed=seed, size=size), **config)


def write_base(folder: Path, modules: Mapping[str, tuple[int, int]], **config: Any) -> Path:
    """A folder of safetensors with weights of these shapes."""
    folder.mkdir()
    own = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}
    (folder / "config.json").write_text(json.dumps(own | config))
    weights = {f"{module}.weight": np.zeros(shape, np.float32) for module, shape in modules.items()}
    write_safetensors(folder / "model.safetensors", weights)
    return folder


# A tiny model as a GGUF file


def strings(key: str, values: list[str]) -> bytes:
    """A list of texts in the metadata of a GGUF file."""
    entries = b"".join(_text(value) for value in values)
    return _text(key) + struct.pack("<IIQ", 9, 8, len(values)) + entries


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_metadata(model: Any, tokenizer: Any, template: str) -> list[bytes]:
    """What llama.cpp wants to know of a tiny model."""
    config, kind = model.config, model.config.model_type
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    numbers: dict[str, str | float] = {
        "general.architecture": kind,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.key_length": config.head_dim,
        f"{kind}.attention.value_length": config.head_dim,
        f"{kind}.rope.dimension_count": config.head_dim,
        f"{kind}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{kind}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{kind}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
        "tokenizer.chat_template": template,
    }
    types = [3 if token.startswith("<|") else 1 for token in tokens]
    return [
        *(metadata_bytes(key, value) for key, value in numbers.items()),
        strings("tokenizer.ggml.tokens", tokens),
        strings("tokenizer.ggml.merges", ["a b"]),
        _text("tokenizer.ggml.token_type") + struct.pack(f"<IIQ{len(types)}i", 9, 5, len(types), *types),
    ]


def write_tiny_gguf(folder: Path, model: Any, tokenizer: Any, path: Path) -> Path:
    """The same tiny model as a GGUF file in float32; its folder is read for shapes and heads."""
    from duet_train.bases import for_gguf

    base = read_base(str(folder))
    arrays = {
        name.removesuffix(".weight"): value.numpy()
        for name, value in model.state_dict().items()
        if "lm_head" not in name
    }
    tensors = [(gguf_name(module), array.shape, "F32") for module, array in arrays.items()]
    numbers = [for_gguf(module, array, base) for module, array in arrays.items()]
    write_gguf(path, gguf_metadata(model, tokenizer, tokenizer.chat_template), tensors, numbers)
    return path


def served(model: Path, ids: list[int], adapter: Path | None = None) -> list[float]:
    """Log-probability of each token but the first, as the engine has it: each is forced by a bias it leaves out."""
    found = []
    with local.start(model, adapter=adapter, api_key="", context=256, threads=1) as engine:
        with httpx.Client(base_url=engine.base_url.removesuffix("/v1"), timeout=30, trust_env=False) as client:
            for at in range(1, len(ids)):
                body = {"prompt": ids[:at], "n_predict": 1, "n_probs": 1, "logit_bias": [[ids[at], 1000]]}
                answer = client.post("/completion", json=body).raise_for_status().json()
                found.append(answer["completion_probabilities"][0]["logprob"])
    return found


# A server that is a script

FAKE_VLLM = """#!{python}
import http.server, json, os, signal, subprocess, sys, time

folder = {folder!r}
mode = open(os.path.join(folder, "mode")).read()
words = sys.argv[1:]
after = lambda name: words[words.index(name) + 1]

def note(**event):
    with open(os.path.join(folder, "events.jsonl"), "a") as file:
        file.write(json.dumps(event) + "\\n")

helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
note(what="start", words=words, env=dict(os.environ), pid=os.getpid(), helper=helper.pid)
print("a word on stdout")
if mode == "dies":
    sys.exit(3)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "slow":
    time.sleep(1)
names = [after("--served-model-name")]

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        key = os.environ.get("VLLM_API_KEY")
        if key and self.headers["authorization"] != "Bearer " + key:
            return self.answer(401, dict(error="Unauthorized"))
        if mode == "never":
            return self.answer(503, dict(error="starting"))
        self.answer(200, dict(data=[dict(id=name, owned_by="vllm") for name in names]))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        action = self.path.rsplit("/", 1)[1]
        if action == "load_lora_adapter":
            config = json.load(open(os.path.join(body["lora_path"], "adapter_config.json")))
            if config.get("unwanted"):
                return self.answer(400, dict(error=dict(message="vllm does not want it")))
            names.append(body["lora_name"])
        elif action == "unload_lora_adapter":
            names.remove(body["lora_name"])
        note(what=action, body=body, files=sorted(os.listdir(body["lora_path"])) if "lora_path" in body else [])
        self.answer(200, "Success")

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(after("--port"))), Handler)
note(what="ready")
server.serve_forever()
"""


class FakeVLLM:
    """An executable that answers as ``vllm serve`` does where a host speaks to it, and notes what it was asked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.path = folder / "vllm"
        self.path.write_text(FAKE_VLLM.format(python=sys.executable, folder=str(folder)))
        self.path.chmod(0o755)
        self.mode("plain")

    def mode(self, name: str) -> None:
        """How the next one behaves: plain, slow, dies, never (gets ready) or stubborn."""
        (self._folder / "mode").write_text(name)

    def events(self, what: str | None = None) -> list[dict[str, Any]]:
        """What happened so far, in order."""
        path = self._folder / "events.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if what in (None, line["what"])]


# Processes


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """The processes that a process started and that still run."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return [child for child, parent in parents.items() if parent == pid]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what another process does."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


class HostProcess:
    """``python -m duet_train host`` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> dict[str, str]:
        """The next line that it prints, as variables."""
        assert self.process.stdout is not None
        return dict(word.split("=", 1) for word in self.process.stdout.readline().split())

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit code, and all that was said on stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; the exit code, and all that was said on stderr."""
        said = self.process.communicate(timeout=50)[1]
        return self.process.returncode, said


@contextmanager
def host_process(*words: str | Path, **env: str) -> Iterator[HostProcess]:
    """A host for the length of a block."""
    command = [sys.executable, "-m", "duet_train", "host", *map(str, words)]
    process = subprocess.Popen(  # noqa: S603 - this package's own command
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    )
    try:
        yield HostProcess(process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=50)
