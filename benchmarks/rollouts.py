"""What sampling a group costs with its prompt read once, beside TRL's own sampling of the same completions.

    python benchmarks/rollouts.py --model DIR --dtype float32 --completions 96 192 --rounds 3 --json rollouts.json

Both sample in turns, at the same seed, from the same model with a LoRA adapter; no completion ends early, so that both
always do the whole work. CPU seconds are those of the process; the table holds medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRL_EXPERIMENTAL_SILENCE"):
    os.environ.setdefault(name, "1")

_TEXT = """
the a of and to it is was in my for with this that but on as one not very great good bad never again story sound
price taste room staff cover song page plot voice heavy light quick slow warm cold loud quiet fresh stale clean
"""


def prompt(tokenizer: Any, length: int, salt: int) -> str:
    """About as many tokens as asked, all words; the salt makes prompts differ."""
    words = _TEXT.split()
    ids: list[int] = tokenizer(" ".join(words[(salt + 7 * place) % len(words)] for place in range(length)))["input_ids"]
    text: str = tokenizer.decode(ids[:length])
    return text


def build(args: argparse.Namespace, texts: list[str], tokenizer: Any, folder: str) -> Any:
    """A trainer as GRPO runs have it, which is never trained here."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=folder,
            num_generations=args.generations,
            per_device_train_batch_size=args.generations,
            max_completion_length=1,
            use_cpu=not args.gpu,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=args.lora_rank, target_modules="all-linear"),
    )
    trainer.generation_config.suppress_tokens = trainer.eos_token_ids
    return trainer


def measure(sample: Callable[[], Any], seed: int) -> tuple[dict[str, float], Any]:
    """CPU and wall seconds of one call, and what it gave."""
    import torch

    torch.manual_seed(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    made = sample()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}, made


def runs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One result for each length of completions."""
    import torch
    from transformers import AutoTokenizer

    from duet_train.rollouts import SharedPrefixRollout

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = [prompt(tokenizer, args.prompt_tokens, salt) for salt in range(args.prompts)]
    batch = [text for text in texts for _ in range(args.generations)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(args, texts, tokenizer, folder)
        ids = trainer._tokenize_prompts(batch)[0]
        ways = {
            "trl": lambda: trainer._generate_single_turn(ids, None, {}, args.generations)[0],
            "shared_prefix": lambda: SharedPrefixRollout()(batch, trainer)["completion_ids"],
        }
        for length in args.completions:
            trainer.generation_config.max_new_tokens = length
            yield result(args, ways, prompt_tokens=len(ids[0]), completion_tokens=length)


def result(args: argparse.Namespace, ways: dict[str, Callable[[], Any]], **facts: Any) -> dict[str, Any]:
    """Both ways in turns, the first of a round alternating."""
    rounds, same = [], []
    for number in range(args.rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        measured = {way: measure(ways[way], number) for way in order}
        rounds.append({way: took for way, (took, _) in measured.items()})
        pairs = zip(*(made for _, made in measured.values()), strict=True)
        same.append(statistics.fmean(one == other for one, other in pairs))
    medians = {
        way: {unit: round(statistics.median(one[way][unit] for one in rounds), 2) for unit in ("cpu_s", "wall_s")}
        for way in ways
    }
    ratios = [one["trl"]["cpu_s"] / one["shared_prefix"]["cpu_s"] for one in rounds]
    return {
        **facts,
        **medians,
        "ratio_cpu": round(statistics.median(ratios), 2),
        "ratio_cpu_least": round(min(ratios), 2),
        "same_completions": statistics.fmean(same),
        "rounds": rounds,
    }


def table(results: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The measurements as a Markdown table."""
    titles = (
        "weights | prompt | completion | TRL CPU s | shared CPU s | ratio | least | TRL wall s | shared wall s | same"
    )
    lines = [f"| {titles} |", "|" + " --- |" * 10]
    for one in results:
        trl, shared = one["trl"], one["shared_prefix"]
        lines.append(
            f"| {args.dtype} | {args.prompts} × {one['prompt_tokens']} "
            f"| {args.prompts * args.generations} × {one['completion_tokens']} "
            f"| {trl['cpu_s']} | {shared['cpu_s']} | {one['ratio_cpu']} | {one['ratio_cpu_least']} "
            f"| {trl['wall_s']} | {shared['wall_s']} | {one['same_completions']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder with safetensors and a tokenizer")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--prompts", type=int, default=1, help="groups in a batch")
    parser.add_argument("--generations", type=int, default=8, help="completions a prompt")
    parser.add_argument("--completions", type=int, nargs="+", default=[96, 192], help="their lengths in tokens")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="where there is one; the wall time then counts")
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()
    results = list(runs(args))
    print(table(results, args))
    if args.json:
        facts = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        args.json.write_text(json.dumps({**facts, "settings": settings, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
