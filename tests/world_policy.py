"""A policy small enough to learn in the generated world, and the commands that train it there."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
from world import HISTORY, IMPERSONAL, QUALITIES, TEMPERS, Words, World, completion, honest, make_world, prepared

from duet_train.__main__ import main
from duet_train.data.prepared import Prepared
from duet_train.dataset import Row, held_out_rows, training_rows
from duet_train.settings import Settings

WARNINGS = "ignore:.*gradient_checkpointing.*:FutureWarning"
COMPLETION_TOKENS = 40


# The policy

PAD, END, UNKNOWN, START = "<pad>", "<end>", "<unknown>", "<start>"
TAGS = tuple(
    f"<{slash}{name}>"
    for name in ("user_profile", "item_profile", "cue", "constructed_prompt", "profile")
    for slash in ("", "/")
)
# As with models that know no system role, the instructions are left out; the form comes from the warm start.
CHAT_TEMPLATE = """
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' %}{{ ' <start> ' + message['content'] + ' <end>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' <start> ' }}{% endif %}""".strip()


def word_tokenizer(texts: Iterable[str]) -> Any:
    """One token a word and one a tag, of the words in some texts."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in re.sub("<[^<>]*>", " ", text).split()})
    vocabulary = {word: place for place, word in enumerate((PAD, END, UNKNOWN, START, *words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_policy(folder: Path, texts: Iterable[str], *, width: int = 64, seed: int = 0) -> Path:
    """A random policy of two layers that knows the words of some texts, in a folder that `from_pretrained` reads."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = word_tokenizer(texts)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=width // 2,
        max_position_embeddings=512,
        # Wide weights and a short base of positions: so a model this small learns to copy in some hundred steps.
        initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# The warm start

SHARES = (0.55, 0.3, 0.15)
"""Of words in the profiles of the warm start: impersonal, right, made up."""


def warm_start(world: World, data: Prepared, path: Path, *, each: int = 24, seed: int = 0) -> Path:
    """Completions to fine-tune on: cues that are right, and profiles of which each word is mostly an impersonal phrase.

    At times it is right and at times made up.

    Args:
        world: That the data was made from.
        data: Its training rows are used.
        path: Of the file to write.
        each: Completions for every row.
        seed: Of what is drawn.
    """
    chance = random.Random(seed)
    lines = []
    for one in data.examples("train"):
        right = honest(world, one.example)
        drawn = [completion(right, _vague(chance, right)) for _ in range(each)]
        lines += [{"example": one.id, "completion": text} for text in drawn]
    chance.shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _vague(chance: random.Random, right: Words) -> Words:
    loves, hates = chance.choices(QUALITIES, k=2)
    made_up = Words(loves, hates, chance.choice(list(TEMPERS)), chance.choice(QUALITIES))
    slots = zip(*map(attrs.astuple, (IMPERSONAL, right, made_up)), strict=True)
    return Words(*(chance.choices(slot, weights=SHARES)[0] for slot in slots))


# The commands


@attrs.frozen
class Ground:
    """What training starts from.

    Args:
        world: The world.
        data: As `prepare` left it.
        policy: Folder of the policy after its warm start.
        untrained: Folder of the policy before it.
    """

    world: World
    data: Prepared
    policy: Path
    untrained: Path


def command(verb: str, data: Prepared, policy: Path, run: Path, /, **options: object) -> list[str]:
    """A command line that trains every weight of the policy on its two kinds of texts."""
    given: dict[str, object] = {
        "data": data.directory,
        "model_name_or_path": policy,
        "output_dir": run,
        "history_limit": HISTORY,
        "evidence_limit": 1,
        "max_completion_length": COMPLETION_TOKENS,
        "use_peft": "false",
        "use_cpu": "true",
    }
    return [verb, *(part for name, value in (given | options).items() for part in (f"--{name}", str(value)))]


def rows_of(data: Prepared) -> tuple[list[Row], list[Row]]:
    """The rows of training and of validation, with the prompts of `command`."""
    settings = Settings(history_limit=HISTORY, evidence_limit=1, held_out=10_000)
    return training_rows(data, settings, seed=0), held_out_rows(data, settings, seed=0)


def break_ground(folder: Path, *, each: int = 24) -> Ground:
    """A world, its data, and a policy after its warm start by `sft`; made once in a folder, which modules may share.

    Args:
        folder: Where all of it is kept.
        each: Completions of each row that the warm start is on: 24 teach to copy from the prompt, 8 the form alone.
    """
    world = make_world()
    if not (folder / "warm" / "model").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        data = prepared(folder / "data", world)
        train, held_out = rows_of(data)
        texts = [row.messages[-1]["content"] for row in (*train, *held_out)]
        save_policy(folder / "random", [*texts, completion(IMPERSONAL, IMPERSONAL), *QUALITIES, *TEMPERS])
        completions = warm_start(world, data, folder / "completions.jsonl", each=each)
        assert main(_sft(data, folder, completions)) == 0
    return Ground(world, Prepared.open(folder / "data"), folder / "warm" / "model", folder / "random")


def _sft(data: Prepared, folder: Path, completions: Path) -> list[str]:
    options = {"completions": completions, "per_device_train_batch_size": 32, "num_train_epochs": 1}
    rate = {"learning_rate": 5e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10}
    rare = {"save_steps": 1000, "logging_steps": 20, "disable_tqdm": "true"}
    return command("sft", data, folder / "random", folder / "warm", **options, **rate, **rare)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
