"""Whether a host serves the model that was trained: log-probabilities of fixed texts, in process and over HTTP.

    python benchmarks/host_parity.py --base packaged --engine llama.cpp --work DIR
    python benchmarks/host_parity.py --base DIR --engine vllm --vllm-command vllm --work DIR

A LoRA (rank 8, all linear layers) is trained for some steps on made-up notes and saved twice on the way. The host
starts with the early one and publishes the late one. For each, and for the base alone, the log-probability of every
token of texts that were not trained on is taken from the host, and compared with transformers and PEFT in this process,
in float32. vLLM gives those of a prompt in one request. llama.cpp gives those of generated tokens alone, so each token
is generated after the ones before it, forced by a logit bias, which its log-probabilities leave out.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx

from duet_train.host import Hosted, serve
from duet_train.models import load_model, load_tokenizer

Rows = list[list[float]]

THINGS = ["guitar", "record", "novel", "lamp", "kettle", "garden", "song", "soup", "window", "bicycle"]
WORDS = ["warm", "quiet", "plain", "honest", "slow", "bright", "dry", "careful", "loud", "sweet"]
STEPS = {"early": 10, "late": 30}
TEXTS, TOKENS = 6, 150


def note(seed: int) -> str:
    """A text in a style that the base has not seen."""
    draw = random.Random(seed)
    lines = [
        f"Note {number}: the {draw.choice(THINGS)} is {draw.choice(WORDS)}; "
        f"a {draw.choice(WORDS)} {draw.choice(THINGS)} was returned on day {draw.randint(2, 29)}."
        for number in range(1, 10)
    ]
    return "\n".join(["<profile>", *lines, "</profile>"])


def trained(base: str, tokenizer: Any, work: Path) -> Any:
    """The model with its adapter, saved after each count of steps."""
    import torch
    from peft import LoraConfig, get_peft_model
    from trl import ModelConfig

    torch.manual_seed(0)
    model = load_model(ModelConfig(model_name_or_path=base, dtype="float32", use_peft=True))
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    for step in range(1, max(STEPS.values()) + 1):
        ids = torch.tensor([tokenizer(note(step)).input_ids])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, steps in STEPS.items():
            if step == steps:
                model.save_pretrained(str(work / name))
    return model.eval()


def in_process(model: Any, texts: Sequence[Sequence[int]]) -> Rows:
    """Of each token but the first, in nats."""
    import torch

    rows = []
    with torch.no_grad():
        for ids in texts:
            scores = model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
            rows.append(scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return rows


def references(args: argparse.Namespace, tokenizer: Any, texts: Sequence[Sequence[int]]) -> dict[str, Rows]:
    """Of each saved adapter, read back from its folder, and of the base; kept for the next run on the same base."""
    kept = args.work / "references.json"
    if kept.exists():
        return {name: list(rows) for name, rows in json.loads(kept.read_text(encoding="utf-8")).items()}
    model, found = trained(args.base, tokenizer, args.work), {}
    for name in STEPS:
        model.load_adapter(str(args.work / name), name)
        model.set_adapter(name)
        found[name] = in_process(model, texts)
    with model.disable_adapter():
        found["base"] = in_process(model, texts)
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


async def over_http(hosted: Hosted, model: str, texts: Sequence[Sequence[int]]) -> Rows:
    """The same from the host."""
    ask = _from_vllm if hosted.engine == "vllm" else _from_llama_cpp
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        return [await ask(client, hosted.base_url, model, list(ids)) for ids in texts]


async def _from_vllm(client: httpx.AsyncClient, base_url: str, model: str, ids: list[int]) -> list[float]:
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = (await client.post(f"{base_url}/completions", json=body)).raise_for_status().json()
    entries = answer["choices"][0]["prompt_logprobs"]
    return [entries[at][str(ids[at])]["logprob"] for at in range(1, len(ids))]


async def _from_llama_cpp(client: httpx.AsyncClient, base_url: str, model: str, ids: list[int]) -> list[float]:
    found = []
    for at in range(1, len(ids)):
        body = {"prompt": ids[:at], "n_predict": 1, "n_probs": 1, "temperature": 0, "logit_bias": [[ids[at], 1000]]}
        answer = await client.post(f"{base_url.removesuffix('/v1')}/completion", json={**body, "model": model})
        (entry,) = answer.raise_for_status().json()["completion_probabilities"]
        assert entry["id"] == ids[at]
        found.append(entry["logprob"])
    return found


async def served(args: argparse.Namespace, texts: Sequence[Sequence[int]]) -> dict[str, Rows]:
    """Of the early adapter, of the late one after it was published, and of the base."""
    settings: dict[str, Any] = {"engine": args.engine, "context": 1024, "threads": args.threads}
    settings |= {"vllm_command": args.vllm_command, "vllm_args": shlex.split(args.vllm_args)}
    found = {}
    async with serve(args.base, {"policy": args.work / "early"}, **settings) as hosted:
        found["early"] = await over_http(hosted, hosted.model, texts)
        found["late"] = await over_http(hosted, await hosted.publish("policy", args.work / "late"), texts)
        if hosted.engine == "vllm":
            found["base"] = await over_http(hosted, hosted.base_model, texts)
    if "base" not in found:
        async with serve(args.base, **settings) as hosted:
            found["base"] = await over_http(hosted, hosted.model, texts)
    return found


def difference(left: Rows, right: Rows) -> dict[str, float]:
    """Mean and largest distance, in nats a token."""
    gaps = [abs(one - other) for a, b in zip(left, right, strict=True) for one, other in zip(a, b, strict=True)]
    return {"mean": sum(gaps) / len(gaps), "largest": max(gaps)}


def table(found: dict[str, Rows], expected: dict[str, Rows]) -> tuple[str, dict[str, Any]]:
    """Each served model beside each model in process."""
    lines = [f"| served | {' | '.join(expected)} |", f"| --- |{' ---: |' * len(expected)}"]
    figures: dict[str, Any] = {}
    for name, rows in found.items():
        figures[name] = {other: difference(rows, reference) for other, reference in expected.items()}
        means = [f"{one['mean']:.4f}" for one in figures[name].values()]
        lines.append(f"| {name} | {' | '.join(means)} |")
    return "\n".join(lines), figures


def main() -> None:
    """Train, serve, compare, print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="packaged")
    parser.add_argument("--engine", default="llama.cpp", choices=("llama.cpp", "vllm"))
    parser.add_argument("--work", type=Path, required=True, help="for adapters and references of one base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vllm-command", default="vllm")
    parser.add_argument("--vllm-args", default="")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(args.base)
    texts = [tokenizer(note(1000 + number)).input_ids[:TOKENS] for number in range(TEXTS)]
    expected = references(args, tokenizer, texts)
    text, figures = table(anyio.run(served, args, texts), expected)
    print(f"{TEXTS} texts of {TOKENS} tokens, {args.engine}, {platform.machine()}\nmean |Δ log-probability| in nats\n")
    print(text)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
