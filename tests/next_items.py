"""A planted world of next items: users keep to a topic, items say theirs; with a policy and an embedder built in code.

Words are tokens here, so prompts are short and a policy of two layers learns in seconds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import CHAT_TEMPLATE, END, PAD, START, tiny_model

from duet_train.data.formats import FORMATS
from duet_train.data.prepared import Prepared
from duet_train.data.settings import Settings as PrepareSettings
from duet_train.prepare import prepare

TOPICS = ("jazz", "opera", "chess", "cats", "ships", "bread")
KINDS = 8
USERS = 48
TURNS = 7
UNKNOWN = "<|unk|>"
TAGS = ("<user_profile>", "<profile>", "</profile>", "</user_profile>")


def world(folder: Path, *, seed: int = 0) -> Prepared:
    """Users of one topic each, who never take an item twice, as `prepare` leaves them.

    Args:
        folder: Where files go.
        seed: Of who takes what when.
    """
    chance = random.Random(seed)
    items = [{"item_id": f"{topic}{kind}", "title": f"{topic} n{kind}"} for topic in TOPICS for kind in range(KINDS)]
    rows = []
    for user in range(USERS):
        topic = TOPICS[user % len(TOPICS)]
        for turn, kind in enumerate(chance.sample(range(KINDS), TURNS)):
            rows.append(
                {"user_id": f"u{user}", "item_id": f"{topic}{kind}", "rating": 4, "timestamp": 1000 * turn + user}
            )
    for name, lines in (("interactions", rows), ("items", items)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def read(db: Any) -> Any:
        return FORMATS["jsonl"](db, interactions=folder / "interactions.jsonl", items=folder / "items.jsonl")

    asked = PrepareSettings(core=0, split="leave-last-one-out", min_history=3)
    prepare(read, folder / "data", asked, progress=False)
    return Prepared.open(folder / "data")


def topic_of(text: str) -> str:
    """The topic that an id or a title begins with."""
    return next(topic for topic in TOPICS if text.startswith(topic))


def after(topic: str) -> str:
    """Another topic, the same for each."""
    return TOPICS[(TOPICS.index(topic) + 1) % len(TOPICS)]


def word_tokenizer(words: Sequence[str]) -> Any:
    """One token for each of these words, the special ones last, as `tiny_model` has them; it is blind to all others."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = "|".join(rf"\b{word}\b" if word.isalnum() else word for word in words)
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate([UNKNOWN, *words])}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(known), "removed", invert=True)
    core.add_special_tokens([AddedToken(token, special=True) for token in (PAD, START, END)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, bos_token=START, eos_token=END, unk_token=UNKNOWN
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def completion(topic: str) -> str:
    """What a policy should write of a user of that topic."""
    opening, inner, end, closing = TAGS
    return f"{opening} {inner} {topic} {end} {closing}"


def embedder_folder(folder: Path, *, width: int = 32, seed: int = 0) -> Path:
    """A random sentence-transformers model of one layer, with the topics and item numbers as its words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel

    words = [*TOPICS, *(f"n{kind}" for kind in range(KINDS))]
    tokenizer = word_tokenizer(words)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder / "words")
    tokenizer.save_pretrained(folder / "words")
    SentenceTransformer(str(folder / "words"), device="cpu").save(str(folder / "embedder"), create_model_card=False)
    return folder / "embedder"


def warm_policy(
    folder: Path, prompts: Sequence[Sequence[Any]], topics: Sequence[str], *, right: float, updates: int
) -> Path:
    """A policy that writes profiles in form, and names the user's topic as often as asked, else the topic after it.

    Args:
        folder: Where the model goes.
        prompts: Chat messages.
        topics: The right one of each prompt.
        right: How often it is in what is learnt from.
        updates: Of supervised learning.
    """
    import torch

    tokenizer = word_tokenizer([*TAGS, *TOPICS])
    model = tiny_model(vocab=len(tokenizer), spread=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, updates)
    chance = random.Random(0)
    ids = [tokenizer.apply_chat_template(list(one), add_generation_prompt=True)["input_ids"] for one in prompts]
    for _ in range(updates):
        chosen = chance.choices(range(len(ids)), k=32)
        written = []
        for place in chosen:
            topic = topics[place] if chance.random() < right else after(topics[place])
            written.append(tokenizer(completion(topic) + END)["input_ids"])
        width = max(len(ids[place]) for place in chosen)
        rows = [
            [tokenizer.pad_token_id] * (width - len(ids[place])) + ids[place] + answer
            for place, answer in zip(chosen, written, strict=True)
        ]
        batch = torch.tensor(rows)
        tail = len(written[0])
        logits = model(batch, attention_mask=batch != tokenizer.pad_token_id, logits_to_keep=tail + 1).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, -tail:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
