"""A double of a vLLM server: it answers as vLLM 0.32 does, and really samples, from a tiny model and its adapters."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import attrs

Body = Mapping[str, Any]
Reply = tuple[int, Any]
LOST = -1


@attrs.frozen
class Seen:
    """A request as it came in."""

    path: str
    body: Body
    authorization: str | None


@attrs.define(eq=False)
class VLLMDouble:
    """Use as a context manager; it listens on loopback in a thread of its own.

    Args:
        make: Builds the base model, anew for each adapter.
        tokenizer: Of the model.
        name: What the base model is served as.
        version: That it claims to be.
        window: Most tokens of prompt and completion.
        key: That it wants; None for none.
        updating: Whether VLLM_ALLOW_RUNTIME_LORA_UPDATING is set.
        lora: Whether --enable-lora is given.
        rank: --max-lora-rank.
        processed: Whether --logprobs-mode is processed_logprobs.
        owner: Of the models that it lists.

    Attributes:
        stale: While true, an adapter that is loaded is taken by its name, and answers with the weights of the one
            before: what a cache in between, or a reload under an old name, does.
        failing: Statuses to answer with, by path, first come; 0 closes the connection without a word, `LOST` does so
            when the request is done.
        seen: All requests.
        loaded: Adapters by name: where from, and the model with it.
    """

    make: Any
    tokenizer: Any
    name: str = attrs.field(default="base", kw_only=True)
    version: str = attrs.field(default="0.32.0", kw_only=True)
    window: int = attrs.field(default=512, kw_only=True)
    key: str | None = attrs.field(default=None, kw_only=True)
    updating: bool = attrs.field(default=True, kw_only=True)
    lora: bool = attrs.field(default=True, kw_only=True)
    rank: int = attrs.field(default=16, kw_only=True)
    processed: bool = attrs.field(default=False, kw_only=True)
    owner: str = attrs.field(default="vllm", kw_only=True)
    stale: bool = attrs.field(default=False, init=False)
    failing: dict[str, list[int]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    seen: list[Seen] = attrs.field(factory=list, init=False)
    loaded: dict[str, tuple[str, Any]] = attrs.field(factory=dict, init=False)
    _base: Any = attrs.field(default=None, init=False)
    _latest: Any = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _server: Any = attrs.field(default=None, init=False)

    def __enter__(self) -> Self:
        self._base = self.make().eval()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                double.answer(self, {})

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                double.answer(self, json.loads(self.rfile.read(length)))

            def log_message(self, format: str, *args: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        """As a client wants it."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def bodies(self, path: str) -> list[Body]:
        """What was posted to a path, in order."""
        return [one.body for one in self.seen if one.path == path]

    def answer(self, handler: BaseHTTPRequestHandler, body: Body) -> None:
        """One request, whatever it is."""
        authorization = handler.headers["authorization"]
        self.seen.append(Seen(handler.path, body, authorization))
        failures = self.failing[handler.path]
        failure = failures.pop(0) if failures else None
        done = failure in (None, LOST)
        status, content = self._reply(handler.path, body, authorization) if done else (failure or 0, "busy")
        if failure in (0, LOST):
            handler.close_connection = True
            return
        is_text = isinstance(content, str)
        data = (content if is_text else json.dumps(content)).encode()
        with suppress(ConnectionError):  # a client that no longer waits
            handler.send_response(status)
            handler.send_header("content-type", "text/plain" if is_text else "application/json")
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

    def _reply(self, path: str, body: Body, authorization: str | None) -> Reply:
        if path == "/version":
            return 200, {"version": self.version}
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        routes = {"/v1/models": self._models, "/v1/completions": self._complete}
        if self.updating:
            routes |= {"/v1/load_lora_adapter": self._load, "/v1/unload_lora_adapter": self._unload}
        if path not in routes:
            return 404, {"detail": "Not Found"}
        with self._lock:
            return routes[path](body)

    def _models(self, _: Body) -> Reply:
        card = {"object": "model", "owned_by": self.owner}
        base = {"id": self.name, **card, "root": "/models/tiny", "parent": None, "max_model_len": self.window}
        adapters = [
            {"id": name, **card, "root": root, "parent": self.name, "max_model_len": None}
            for name, (root, _) in self.loaded.items()
        ]
        return 200, {"object": "list", "data": [base, *adapters]}

    def _load(self, body: Body) -> Reply:
        from peft import PeftConfig, PeftModel

        name, path = body["lora_name"], body["lora_path"]
        if name in self.loaded:
            return _error(400, f"The lora adapter '{name}' has already been loaded. If you want to ...")
        if not self.lora:
            return _engine_error("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        if not (Path(path) / "adapter_config.json").is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = PeftConfig.from_pretrained(path).r
        if rank > self.rank:
            return _engine_error(f"LoRA rank {rank} is greater than max_lora_rank {self.rank}.")
        if not self.stale or self._latest is None:
            self._latest = PeftModel.from_pretrained(self.make(), path).eval()
        self.loaded[name] = (path, self._latest)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, body: Body) -> Reply:
        name = body["lora_name"]
        if name not in self.loaded:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _complete(self, body: Body) -> Reply:
        if body["model"] != self.name and body["model"] not in self.loaded:
            return _error(404, f"The model `{body['model']}` does not exist. Valid aliases: {self.name}.")
        model = self._base if body["model"] == self.name else self.loaded[body["model"]][1]
        prompt = body["prompt"]
        prompt = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        if len(prompt) >= self.window:
            return _error(400, f"This model's maximum context length is {self.window} tokens. However, your prompt ...")
        choices = self._sample(model, prompt, body)
        if body.get("prompt_logprobs") is not None:
            choices[0]["prompt_logprobs"] = _prompt_logprobs(model, prompt)
        return 200, {"object": "text_completion", "model": body["model"], "choices": choices}

    def _sample(self, model: Any, prompt: list[int], body: Body) -> list[dict[str, Any]]:
        import torch

        n, room = body.get("n", 1), self.window - len(prompt)
        ids = torch.tensor([prompt] * n)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(body.get("seed", 0))
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=min(body["max_tokens"], room),
                temperature=body["temperature"],
                top_p=body.get("top_p", 1.0),
                top_k=body.get("top_k", 0),
                min_p=body.get("min_p") or None,
                return_dict_in_generate=True,
                output_logits=True,
                output_scores=True,
            )
        scores = torch.stack(made.scores if self.processed else made.logits, dim=1).float().log_softmax(-1)
        tokens = made.sequences[:, len(prompt) :]
        logps = scores.gather(-1, tokens[..., None])[..., 0]
        return [_choice(i, *row, body) for i, row in enumerate(zip(tokens.tolist(), logps.tolist(), strict=True))]


def _choice(index: int, tokens: list[int], logps: list[float], body: Body) -> dict[str, Any]:
    ends = [place for place, token in enumerate(tokens) if token in body.get("stop_token_ids", ())]
    length = ends[0] + 1 if ends else len(tokens)
    wanted = body.get("logprobs") is not None
    return {
        "index": index,
        "text": "",
        "logprobs": {"token_logprobs": logps[:length], "tokens": [""] * length} if wanted else None,
        "finish_reason": "stop" if ends else "length",
        "stop_reason": None,
        "token_ids": tokens[:length] if body.get("return_token_ids") else None,
        "prompt_logprobs": None,
    }


def _prompt_logprobs(model: Any, prompt: list[int]) -> list[Any]:
    import torch

    with torch.no_grad():
        scores = model(input_ids=torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    return [
        None,
        *({str(t): {"logprob": float(row[t]), "rank": 1}} for t, row in zip(prompt[1:], scores, strict=False)),
    ]


def _error(status: int, message: str) -> Reply:
    return status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}


def _engine_error(message: str) -> Reply:
    text = f"Call to add_lora method failed: Worker failed with error '{message}', please check the stack trace above"
    return 500, {"error": {"message": text, "type": "InternalServerError", "param": None, "code": 500}}
