"""``python -m duet_train rlso``: REBEL, the contrastive phase, and both in turn in a planted world."""

from __future__ import annotations

import _thread
import argparse
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from next_items import embedder_folder, topic_of, warm_policy, world

from duet import ConfigurationError, Example, Interaction, Item, User
from duet_train.__main__ import main
from duet_train.callbacks import read_lines
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.dataset import Row, columns, prompts_of
from duet_train.rebel import rebel_loss, rebel_trainer, train_until, updates_per_batch, whiten
from duet_train.rlso import RLSOSettings, add_arguments, arguments
from duet_train.rlso_phases import batches, first_interactions, for_template, next_item_rows
from duet_train.settings import CONFIGS, read

torch: Any = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")

# trl 1.16 reads the old name of activation checkpointing, of which transformers 5.23 warns; torch warns without a GPU.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.usefixtures("quiet_training"),
]

Floats = npt.NDArray[np.float64]
Line = dict[str, Any]


@attrs.frozen
class Planted:
    """The world on disk: prepared data, a policy that mostly names the wrong topic, and an untrained embedder."""

    data: Prepared
    policy: Path
    embedder: Path
    rows: Sequence[Row]

    def rlso(self, out: Path, *options: str) -> list[str]:
        """The words of a short run."""
        words = f"rlso --data {self.data.directory} --output_dir {out} --model_name_or_path {self.policy} --seed 1"
        words += f" --embedder {self.embedder} --use_peft false --learning_rate 1e-3 --embedder_learning_rate 3e-3"
        words += " --per_device_train_batch_size 32 --gradient_accumulation_steps 1 --max_completion_length 8"
        words += " --contrastive_batch_size 32 --review_chars 0 --held_out 48"
        words += " --iterations 2 --contrastive_updates 6 --policy_updates 12"
        return [*words.split(), *options]

    def run(self, out: Path, *options: str) -> list[Line]:
        """The history of a run that came to its end."""
        assert main(self.rlso(out, *options)) == 0
        return read_lines(out / "history.jsonl")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Made once."""
    from duet_train.models import load_tokenizer

    folder = tmp_path_factory.mktemp("world")
    torch.set_num_threads(1)
    data = world(folder)
    asked = RLSOSettings(review_chars=0)
    examples = data.examples("train")
    (prompt,) = prompts_of(asked, data.scale)
    prompts = [prompt.render(one.profile_user, one.example.item) for one in examples]
    topics = [topic_of(one.example.item.id) for one in examples]
    policy = warm_policy(folder / "policy", prompts, topics, right=0.35, updates=250)
    rows = next_item_rows(data, asked, "train", None, load_tokenizer(str(policy)), grpo_config(folder))
    return Planted(data, policy, embedder_folder(folder), rows)


@pytest.fixture(scope="module")
def finished(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with both phases, made once."""
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        planted.run(out)
    return out


def grpo_config(folder: Path, **options: Any) -> Any:
    """TRL's settings for a processor, in the form of REBEL."""
    from trl import GRPOConfig

    plain: Line = {
        "output_dir": str(folder),
        "num_generations": 2,
        "per_device_train_batch_size": 8,
        "num_iterations": 2,
        "max_completion_length": 8,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    return GRPOConfig(**plain | options)


# The loss


PAIRS = arrays(np.float64, (5, 2), elements=st.floats(-8, 8, width=32))


@settings(max_examples=50, deadline=None)
@given(PAIRS, PAIRS, st.floats(0.125, 4))
def test_loss_and_its_gradient_are_rebels(log_ratios: Floats, rewards: Floats, eta: float) -> None:
    """The loss is the mean of ([Δa − Δb] − η [Ra − Rb])², and its gradient ± 2 / n of what is squared."""
    given_ratios = torch.tensor(log_ratios, requires_grad=True)
    loss = rebel_loss(given_ratios, torch.tensor(rewards), eta)
    loss.backward()
    error = (log_ratios[:, 0] - log_ratios[:, 1]) - eta * (rewards[:, 0] - rewards[:, 1])
    assert float(loss.detach()) == pytest.approx(float(np.mean(error**2)), rel=1e-9, abs=1e-12)
    assert np.allclose(given_ratios.grad.numpy(), np.stack([2 * error / 5, -2 * error / 5], axis=1))


def test_pair_without_both_rewards_teaches_nothing() -> None:
    """A pair of which one reward is missing has no gradient, and the others keep theirs."""
    log_ratios = torch.tensor([[0.5, 0.1], [0.3, -0.4]], requires_grad=True)
    rewards = torch.tensor([[math.nan, 1.0], [1.0, 0.0]])
    rebel_loss(log_ratios, rewards).backward()
    assert log_ratios.grad[0].tolist() == [0.0, 0.0]
    assert log_ratios.grad[1].tolist() == pytest.approx([-0.3, 0.3])


@settings(max_examples=20, deadline=None)
@given(PAIRS, PAIRS, st.integers(1, 4))
def test_loss_does_not_depend_on_how_a_batch_is_cut(log_ratios: Floats, rewards: Floats, cut: int) -> None:
    """Parts of a batch, weighted by their pairs, add up to the loss of the whole, missing rewards or not."""
    rewards = rewards.copy()
    rewards[0, 0] = math.nan
    ratios, known = torch.tensor(log_ratios), torch.tensor(rewards)
    parts = rebel_loss(ratios[:cut], known[:cut]) * cut + rebel_loss(ratios[cut:], known[cut:]) * (5 - cut)
    assert float(parts / 5) == pytest.approx(float(rebel_loss(ratios, known)))


def test_minimiser_is_the_tilted_policy() -> None:
    """Over all pairs of four completions, the least loss is at log π − log π_old = η R up to a constant."""
    rewards, eta = torch.tensor([0.0, 0.3, 0.5, 1.0]), 2.0
    old = torch.log_softmax(torch.tensor([0.1, -0.5, 0.7, 0.0]), 0)
    logits = old.clone().requires_grad_()
    pairs = torch.tensor([[one, other] for one in range(4) for other in range(one)])
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        rebel_loss((torch.log_softmax(logits, 0) - old)[pairs], rewards[pairs], eta).backward()
        optimizer.step()
    best = torch.softmax(old + eta * rewards, 0)
    assert torch.softmax(logits.detach(), 0).tolist() == pytest.approx(best.tolist(), abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.floats(-3, 3, width=16), min_size=1, max_size=12))
def test_whitened_rewards_have_mean_0_and_deviation_1(values: list[float | None]) -> None:
    """Those that are there have mean 0 and deviation 1, or are all 0; those that are missing stay so."""
    rewards = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
    white = whiten(rewards)
    known = white[~rewards.isnan()]
    assert white.isnan().tolist() == rewards.isnan().tolist()
    if len(set(rewards[~rewards.isnan()].tolist())) > 1:
        assert float(known.mean()) == pytest.approx(0, abs=1e-6)
        assert float(known.std()) == pytest.approx(1, abs=1e-4)
    else:
        assert known.tolist() == [0.0] * len(known)


# The trainer


def build(planted: Planted, folder: Path, reward: Callable[..., Any], **options: Any) -> Any:
    """A trainer on the planted rows."""
    from transformers import AutoModelForCausalLM

    from duet_train.models import load_tokenizer

    return rebel_trainer(
        eta=options.pop("eta", 1.0),
        model=AutoModelForCausalLM.from_pretrained(planted.policy),
        reward_funcs=reward,
        args=grpo_config(folder, **options),
        train_dataset=columns(planted.rows),
        processing_class=load_tokenizer(str(planted.policy)),
    )


def chance_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A number for each place of the batch, all different."""
    return [float(place * place) for place in range(len(completions))]


def plain_logps(model: Any, rows: Line) -> Any:
    """Summed log-probabilities of completions, by transformers alone."""
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)
    mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits[:, :-1], dim=-1)
    width = rows["completion_ids"].shape[1]
    own = logps.gather(2, ids[:, 1:, None])[:, -width:, 0]
    return (own * rows["completion_mask"]).sum(dim=1)


def in_rows(batch: Line) -> Line:
    """Pairs laid out as completions."""
    return {name: value.flatten(0, 1) for name, value in batch.items() if value.ndim > 1}


@pytest.mark.train
def test_pairs_survive_the_shuffle(planted: Planted, tmp_path: Path) -> None:
    """After TRL's shuffle and cutting, the completions of a pair still answer one prompt and keep their own rewards."""
    seen: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def reward(prompts: Any, completion_ids: Any, example: Sequence[int], **columns: Any) -> list[float]:
        for one, ids in zip(example, completion_ids, strict=True):
            seen.setdefault((one,), []).append(tuple(ids))
        return [float(place) for place in range(len(example))]

    trainer = build(planted, tmp_path, reward, gradient_accumulation_steps=4, max_steps=1)
    trainer.train()
    batches_kept = trainer._buffered_inputs
    assert [batch["prompt_ids"].shape[:2] for batch in batches_kept] == [(4, 2)] * 4
    prompts = [pair.tolist() for batch in batches_kept for pair in batch["prompt_ids"]]
    assert all(one == other for one, other in prompts)
    # Rewards were 0, 1 for the first pair, 2, 3 for the second and so on: in a pair they lie one step apart.
    gaps = torch.cat([batch["rewards"][:, 1] - batch["rewards"][:, 0] for batch in batches_kept])
    assert gaps.tolist() == pytest.approx([float(gaps[0])] * 16, rel=1e-4)
    order = torch.cat([batch["rewards"][:, 0] for batch in batches_kept]).tolist()
    assert order != sorted(order)


@pytest.mark.train
def test_loss_of_a_batch_is_the_oracles(planted: Planted, tmp_path: Path) -> None:
    """At the start the loss is the mean squared difference of whitened rewards, then as plain transformers has it."""
    trainer = build(planted, tmp_path, chance_reward, max_steps=2, eta=2.0)
    trainer.train()
    first, second = (line["loss"] for line in trainer.state.log_history if "loss" in line)
    (batch,) = trainer._buffered_inputs
    values = np.arange(8.0) ** 2
    white = (values - values.mean()) / values.std(ddof=1)
    assert sorted(batch["rewards"].flatten().tolist()) == pytest.approx(sorted(white), abs=1e-5)
    gaps = (batch["rewards"][:, 0] - batch["rewards"][:, 1]).numpy()
    assert first == pytest.approx(float(np.mean((2 * gaps) ** 2)), rel=1e-3)
    rows = in_rows(batch)
    new, old = plain_logps(trainer.model, rows), (rows["old_per_token_logps"] * rows["completion_mask"]).sum(dim=1)
    ratios = (new - old).view(-1, 2)
    with torch.no_grad():
        loss = trainer._compute_loss(trainer.model, batch)
    assert float(loss) == pytest.approx(float(rebel_loss(ratios, batch["rewards"], 2.0)), rel=1e-3)
    assert second < first


@pytest.mark.train
def test_kl_term_is_part_of_the_reward(planted: Planted, tmp_path: Path) -> None:
    """With beta, a completion's reward loses beta times its log-ratio to the start, before whitening."""
    trainer = build(planted, tmp_path, chance_reward, max_steps=4, beta=0.5, learning_rate=3e-3)
    trainer.train()
    (batch,) = trainer._buffered_inputs
    rows = in_rows(batch)
    mask = rows["completion_mask"]
    drift = ((rows["old_per_token_logps"] - rows["ref_per_token_logps"]) * mask).sum(dim=1)
    start = plain_logps(trainer.ref_model, rows)
    assert (rows["ref_per_token_logps"] * mask).sum(dim=1).tolist() == pytest.approx(start.tolist(), abs=1e-3)
    assert float(drift.abs().max()) > 1e-3
    whitened = [whiten(torch.tensor(order) - 0.5 * drift) for order in _orders(batch)]
    assert any(torch.allclose(one, batch["rewards"].flatten(), atol=1e-4) for one in whitened)
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert kl[0] == pytest.approx(0, abs=1e-5)
    assert kl[-1] == pytest.approx(float(drift.sum() / mask.sum()), rel=1e-3)


def _orders(batch: Line) -> list[list[float]]:
    """The rewards of a batch in each order that a shuffle of its pairs may have left."""
    pairs = [(float(4 * one * one), float((2 * one + 1) ** 2)) for one in range(4)]
    return [[value for pair in order for value in pair] for order in itertools.permutations(pairs)]


@pytest.mark.train
def test_completion_without_an_end_earns_nothing(planted: Planted, tmp_path: Path) -> None:
    """A completion that reaches the limit without an end token has reward 0, whatever the reward function says."""
    trainer = build(planted, tmp_path, lambda completions, **columns: [7.0] * len(completions), max_completion_length=4)
    trainer.train()
    logged = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert logged == [0.0] * len(logged)
    assert logged


@pytest.mark.train
@pytest.mark.faults
def test_reward_that_failed_is_left_out(planted: Planted, tmp_path: Path) -> None:
    """A reward of None is neither 0 nor anybody's: its pair has no gradient, and the others are learnt from."""

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [None, *(float(place) for place in range(1, len(completions)))]

    trainer = build(planted, tmp_path, reward, max_steps=1)
    trainer.train()
    (batch,) = trainer._buffered_inputs
    assert int(batch["rewards"].isnan().sum()) == 1
    (logged,) = [line for line in trainer.state.log_history if "loss" in line]
    gaps = (batch["rewards"][:, 0] - batch["rewards"][:, 1]).nan_to_num()
    assert logged["loss"] == pytest.approx(float(gaps.square().mean()), rel=1e-3)
    assert logged["grad_norm"] > 0


@pytest.mark.train
def test_phases_are_one_run(planted: Planted, tmp_path: Path) -> None:
    """Two calls that stop and go on from a checkpoint leave the weights that two more steps in one go leave."""
    weights = []
    for stops in ([4], [2, 4]):
        folder = tmp_path / str(len(stops))
        trainer = build(planted, folder, chance_reward)
        checkpoint = None
        for stop in stops:
            train_until(trainer, stop, checkpoint)
            checkpoint = folder / f"checkpoint-{stop}"
            assert trainer.state.global_step == stop
        weights.append([value.clone() for value in trainer.model.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


# Rows and batches


def test_rows_hide_the_item(planted: Planted) -> None:
    """No prompt shows title, evidence or any other trace of the item that is to be found."""
    for row in planted.rows:
        shown = row.messages[1]["content"]
        assert f"{row.example.item.title}\n" not in f"{shown}\n"
        assert "ITEM" not in shown


def test_rows_are_those_with_a_new_item(planted: Planted, tmp_path: Path) -> None:
    """A target that the user had before is left out, and the others keep their whole history, which is not ranked."""
    assert len(planted.rows) == len(planted.data.examples("train"))
    lines = [
        json.loads(line) for line in (planted.data.directory.parent / "interactions.jsonl").read_text().splitlines()
    ]
    again = [line | {"item_id": lines[0]["item_id"]} if line["user_id"] == "u0" else line for line in lines]
    (tmp_path / "interactions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in again))
    words = f"prepare --format jsonl --interactions {tmp_path}/interactions.jsonl --out {tmp_path}/data --core 0"
    assert main([*words.split(), *"--split leave-last-one-out --min_history 3".replace("_", "-").split()]) == 0
    from duet_train.models import load_tokenizer

    rows = next_item_rows(
        Prepared.open(tmp_path / "data"),
        RLSOSettings(review_chars=0),
        "train",
        None,
        load_tokenizer(str(planted.policy)),
        grpo_config(tmp_path),
    )
    assert rows
    assert all(row.example.user.id != "u0" for row in rows)
    assert all(len(row.example.user.history) >= 3 for row in rows)


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from("uvwxyz"), max_size=9), min_size=1),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_first_interactions_are_the_first(logs: dict[str, list[str]], count: int, window: int) -> None:
    """Each user with a new item after the first interactions, where their rows still show these, has that one row."""
    examples = [prepared_example(user, items, place, window) for user, items in logs.items() for place in range(9)]
    found = first_interactions([one for one in examples if one is not None], count)
    expected = {}
    for user, items in logs.items():
        later = (place for place in range(count, min(len(items), window + 1)) if items[place] not in items[:place])
        for place in itertools.islice(later, 1):
            expected[user] = (items[:count], items[:place], items[place])
    assert expected == {
        one.example.user.id: (
            [row.item for row in one.profile_user.history],
            [row.item for row in one.example.user.history],
            one.example.item.id,
        )
        for one in found
    }


def prepared_example(user: str, items: Sequence[str], place: int, window: int) -> PreparedExample | None:
    """The target at a place of a user's log, as prepare windows it; None where the log is shorter."""
    if place >= len(items):
        return None
    day = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        Interaction(user=user, item=item, rating=4.0, at=day + timedelta(days=turn))
        for turn, item in enumerate(items[:place])
    ]
    shown = User(user, rows[-window:])
    example = Example(shown, Item(items[place]), 4.0)
    return PreparedExample(
        id=place, row=place, example=example, profile_user=shown, recent_user=User(user), history_length=place
    )


def test_rows_of_first_interactions(planted: Planted, tmp_path: Path) -> None:
    """In training and in a sample each user has one row, whose prompt shows the first interactions and no other."""
    from duet_train.models import load_tokenizer

    asked = RLSOSettings(review_chars=0, first_interactions=True, history_limit=3)
    lines = (planted.data.directory.parent / "interactions.jsonl").read_text().splitlines()
    taken: dict[str, list[str]] = {}
    for line in sorted(map(json.loads, lines), key=lambda line: line["timestamp"]):
        taken.setdefault(line["user_id"], []).append(line["item_id"])
    tokenizer, args = load_tokenizer(str(planted.policy)), grpo_config(tmp_path)
    rows = next_item_rows(planted.data, asked, "train", None, tokenizer, args)
    assert {row.example.user.id: row.example.item.id for row in rows} == {
        user: items[3] for user, items in taken.items()
    }
    assert len(rows) == len(taken)
    held_out = next_item_rows(planted.data, asked, "test", 5, tokenizer, args)
    assert len({row.example.user.id for row in held_out}) == 5
    for row in [*rows, *held_out]:
        shown = re.findall(r"[a-z]+ n\d", row.messages[1]["content"])
        assert [title.replace(" n", "") for title in shown] == taken[row.example.user.id][:3]


def test_template_without_a_system_role_gets_one_message(planted: Planted) -> None:
    """Where a template refuses a system message, instruction and data go as one message; else they stay two."""
    from duet_train.models import load_tokenizer

    tokenizer = load_tokenizer(str(planted.policy))
    messages = planted.rows[0].messages
    assert for_template(tokenizer, messages) == messages
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    (only,) = for_template(tokenizer, messages)
    assert only["role"] == "user"
    assert only["content"] == "\n\n".join(message["content"] for message in messages)


@given(st.integers(2, 30), st.integers(2, 12), st.integers(1, 20), st.integers(0, 3))
def test_batches_give_every_row_its_turn(rows: int, size: int, updates: int, seed: int) -> None:
    """Batches are of one size, no row comes again before a round is over, and a seed is an order."""
    plan = batches(rows, size, updates, seed)
    size = min(size, rows)
    assert [len(set(batch)) for batch in plan] == [size] * updates
    in_round = rows // size
    for start in range(0, updates, in_round):
        turn = [place for batch in plan[start : start + in_round] for place in batch]
        assert len(set(turn)) == len(turn)
    assert plan == batches(rows, size, updates, seed)
    assert {place for batch in plan for place in batch} <= set(range(rows))


# The verb


def held_out(out: Path) -> dict[int, Line]:
    """The measurements of a run by step."""
    return {line["step"]: line for line in read_lines(out / "held_out.jsonl")}


@pytest.mark.train
def test_held_out_ranking_rises(finished: Path) -> None:
    """Both halves together: the item of users who were held out stands far higher at the end than at the start.

    A profile that names the right topic has an NDCG of about 0.7, one that names another of about 0.2. With the
    profiles of other users it stays there.
    """
    measured = held_out(finished)
    assert measured[0]["reward"] < 0.3
    assert measured[36]["reward"] > measured[0]["reward"] + 0.2
    assert measured[36]["shuffled_reward"] < 0.35
    assert measured[36]["parse_rate"] == 1.0


@pytest.mark.train
def test_history_says_which_phase_a_step_was_of(finished: Path) -> None:
    """Steps count the updates of both phases, in turn, and each line names its own."""
    history = read_lines(finished / "history.jsonl")
    assert [line["step"] for line in history] == list(range(1, 37))
    assert [line["phase"] for line in history] == (["cl"] * 6 + ["lm"] * 12) * 2
    assert all("duet/contrastive_loss" in line for line in history if line["phase"] == "cl")
    assert all("loss" in line for line in history if line["phase"] == "lm")
    assert sorted(held_out(finished)) == [0, 6, 18, 24, 36]


@pytest.mark.train
def test_run_directory_is_complete(finished: Path) -> None:
    """The card is finished, weights of both halves are in safetensors, and completions carry the step of their line."""
    card = json.loads((finished / "card.json").read_text())
    assert (card["verb"], card["status"], card["settings"]["policy_updates"]) == ("rlso", "finished", 12)
    assert list((finished / "model").glob("*.safetensors"))
    assert (finished / "embedder" / "model.safetensors").is_file()
    steps = {line["step"] for line in read_lines(finished / "completions.jsonl")}
    assert steps == {7, 11, 15, 25, 29, 33}


@pytest.mark.train
def test_profiles_are_written_anew_in_each_iteration(finished: Path) -> None:
    """The embedder's later batches are of the policy as it is then: its loss falls as profiles name the right topic."""
    losses = [line["duet/contrastive_loss"] for line in read_lines(finished / "history.jsonl") if line["phase"] == "cl"]
    assert np.mean(losses[6:]) < np.mean(losses[:6]) - 0.3


def weights(path: Path) -> dict[str, Any]:
    """The tensors of a file."""
    from safetensors.torch import load_file

    return dict(load_file(str(path)))


@pytest.mark.train
def test_policy_alone(planted: Planted, tmp_path: Path) -> None:
    """With no contrastive updates the policy learns and the embedder is left as it is."""
    history = planted.run(tmp_path, "--contrastive_updates", "0", "--iterations", "1", "--rollouts", "trl")
    assert [line["phase"] for line in history] == ["lm"] * 12
    assert not list(tmp_path.glob("embedder*"))
    measured = held_out(tmp_path)
    assert measured[12]["reward"] > measured[0]["reward"] + 0.1


@pytest.mark.train
def test_last_layers_alone(planted: Planted, tmp_path: Path) -> None:
    """With unfrozen layers asked for, the others and the word vectors are left as they were."""
    options = ["--contrastive_updates", "0", "--iterations", "1", "--policy_updates", "4", "--unfrozen_layers", "1"]
    planted.run(tmp_path, *options)
    before = weights(planted.policy / "model.safetensors")
    after = weights(tmp_path / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".layers.1." in name for name in changed)


@pytest.mark.train
def test_embedder_alone(planted: Planted, tmp_path: Path) -> None:
    """With no policy updates the embedder learns and no policy is left behind."""
    history = planted.run(tmp_path, "--policy_updates", "0", "--iterations", "1")
    assert [line["phase"] for line in history] == ["cl"] * 6
    assert not list(tmp_path.glob("checkpoint-*"))
    assert not (tmp_path / "model").exists()
    before = weights(planted.embedder / "model.safetensors")
    after = weights(tmp_path / "embedder" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.train
def test_embedder_has_the_policys_optimizer(planted: Planted, tmp_path: Path) -> None:
    """What is said of AdamW holds for the embedder too: with a huge epsilon and no decay it hardly moves."""
    options = ["--policy_updates", "0", "--iterations", "1", "--adam_epsilon", "1e6", "--weight_decay", "0"]
    planted.run(tmp_path, *options)
    before = weights(planted.embedder / "model.safetensors")
    after = weights(tmp_path / "embedder" / "model.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-6, rtol=0) for name in before)


@pytest.mark.train
def test_rewards_of_an_earlier_embedder_are_forgotten(planted: Planted, tmp_path: Path) -> None:
    """A profile that comes again for the same row after the embedder has learnt is ranked anew."""
    planted.run(tmp_path, "--rows", "16", "--policy_updates", "4", "--learning_rate", "1e-4")
    rewards: list[dict[tuple[int, str], float]] = [{}, {}]
    for line in read_lines(tmp_path / "completions.jsonl"):
        rewards[line["step"] > 10][line["example"], line["completion"]] = line["reward"]
    again = rewards[0].keys() & rewards[1].keys()
    assert again
    assert any(rewards[0][key] != rewards[1][key] for key in again)


@pytest.mark.train
def test_adapter_is_the_reference(planted: Planted, tmp_path: Path) -> None:
    """LoRA learns, leaves an adapter, and a second run goes on from it with the KL term against it."""
    shape = ["--use_peft", "true", "--lora_r", "8", "--lora_alpha", "16"]
    options = [*shape, "--learning_rate", "2e-3", "--beta", "0.05", "--iterations", "1", "--contrastive_updates", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    planted.run(first, *options)
    adapter = weights(first / "adapter" / "adapter_model.safetensors")
    history = planted.run(second, *options, "--adapter", str(first / "adapter"))
    reference = weights(next(second.glob("checkpoint-*/ref/adapter_model.safetensors")))
    assert all(torch.equal(adapter[name], reference[name]) for name in adapter)
    kl = [line["kl"] for line in history if "kl" in line]
    assert kl[0] == pytest.approx(0, abs=1e-5)
    assert abs(kl[-1]) > 1e-4


@pytest.mark.train
@pytest.mark.faults
@pytest.mark.serial
@pytest.mark.timeout(300)
def test_killed_run_goes_on_as_if_nothing_had_been(planted: Planted, finished: Path, tmp_path: Path) -> None:
    """A run killed in the middle of a contrastive phase comes to the same history, held-out rewards and weights."""
    words = planted.rlso(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-W", "ignore", "-m", "duet_train", *words], env=environment, stderr=subprocess.DEVNULL
    )
    while child.poll() is None and len(read_lines(tmp_path / "history.jsonl")) < 21:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert_same_after_going_on(words, finished, tmp_path)


@pytest.mark.train
@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.serial  # a process of xdist ignores the interrupt
def test_interrupted_run_goes_on_as_if_nothing_had_been(planted: Planted, finished: Path, tmp_path: Path) -> None:
    """A run interrupted in the middle of the policy's first phase comes to the same, too."""
    words = planted.rlso(tmp_path)

    def interrupt() -> None:
        while len(read_lines(tmp_path / "history.jsonl")) < 9:
            time.sleep(0.001)
        _thread.interrupt_main()

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    assert main(words) == 130
    watcher.join()
    assert_same_after_going_on(words, finished, tmp_path)


def assert_same_after_going_on(words: list[str], finished: Path, out: Path) -> None:
    """The same command brings a run that was stopped to where one that was not came."""
    stopped_at = read_lines(out / "history.jsonl")[-1]["step"]
    assert main(words) == 0
    history = read_lines(out / "history.jsonl")
    assert effective(history) == effective(read_lines(finished / "history.jsonl"))
    again = [line["step"] for line in history if line["replayed"]]
    assert again == list(range(again[0], stopped_at + 1))
    assert {step: line["rewards"] for step, line in held_out(out).items()} == {
        step: line["rewards"] for step, line in held_out(finished).items()
    }
    for file in ("model/model.safetensors", "embedder/model.safetensors"):
        one, other = weights(out / file), weights(finished / file)
        assert all(torch.equal(one[name], other[name]) for name in one)


def effective(history: Sequence[Line]) -> dict[int, Line]:
    """The last line of each step, without what a clock says."""
    untimed = [
        {
            key: value
            for key, value in line.items()
            if "seconds" not in key and key not in ("step_time", "attempt", "replayed")
        }
        for line in history
    ]
    return {line["step"]: line for line in untimed}


@pytest.mark.train
def test_finished_run_has_nothing_left_to_do(planted: Planted, finished: Path) -> None:
    """The same command once more adds no step."""
    before = read_lines(finished / "history.jsonl")
    assert main(planted.rlso(finished)) == 0
    assert read_lines(finished / "history.jsonl") == before


# Bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--sides user,item", "sides: user"),
        ("--independent false", "independent: true"),
        ("--sections cue", "sections with profile"),
        ("--rollouts server --server http://127.0.0.1:9 --server_model m", "shared_prefix or trl"),
        ("--contrastive_updates 0 --policy_updates 0", "nor both 0"),
        ("--iterations 0", "iterations must be at least 1"),
        ("--embedder http://127.0.0.1:9/v1,m", "embedder must be minilm"),
        ("--embedder_pooling max", "embedder_pooling must be"),
        ("--rewards rating", "recommender must be"),
        ("--num_generations 4 --per_device_train_batch_size 4", "num_generations must be 2"),
        ("--per_device_train_batch_size 3 --gradient_accumulation_steps 2", "must be even"),
        ("--policy_updates 10", "multiple of 4"),
        ("--use_peft true --unfrozen_layers 1", "unfrozen_layers is for use_peft: false"),
        ("--save_strategy steps", "save_strategy must be no"),
        ("--embedder ./nowhere", "there is no such folder"),
        ("--learning_rat 1", "unknown option"),
    ],
)
def test_bad_settings_are_one_sentence(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, sentence: str
) -> None:
    """Settings that cannot hold end the command with exit code 2 and one line, before anything is written."""
    assert main(planted.rlso(tmp_path / "run", *options.split())) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.train
def test_other_settings_do_not_go_on(planted: Planted, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that holds a run whose steps count otherwise is refused."""
    assert main(planted.rlso(finished, "--contrastive_updates", "8")) == 2
    said = capsys.readouterr().err
    assert "contrastive_updates = 6" in said
    assert "--contrastive_updates 6 to go on" in said


def test_run_of_all_rows_does_not_go_on_with_first_interactions(
    planted: Planted, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of before there was the choice took all rows: it goes on so, and with nothing else."""
    card = json.loads((finished / "card.json").read_text())
    del card["settings"]["first_interactions"]
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "card.json").write_text(json.dumps(card))
    assert main(planted.rlso(run, "--first_interactions", "true")) == 2
    assert "first_interactions = False" in capsys.readouterr().err
    assert main(planted.rlso(run)) == 0


@pytest.mark.train
def test_policy_that_writes_no_profiles_is_told_so(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no completion is a profile the run ends at once and names the way out."""
    options = ["--max_completion_length", "3", "--policy_updates", "0", "--preflight", "off"]
    assert main(planted.rlso(tmp_path, *options)) == 1
    assert "warm-start" in capsys.readouterr().err


def test_updates_per_batch() -> None:
    """Four passes over a batch that is cut in two make eight updates; a fraction of one is refused."""
    assert updates_per_batch(grpo_config(Path("run"), num_iterations=4)) == 4
    cut = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 4}
    assert updates_per_batch(grpo_config(Path("run"), **cut)) == 8
    with pytest.raises(ConfigurationError, match="multiple of gradient_accumulation_steps"):
        updates_per_batch(
            grpo_config(Path("run"), steps_per_generation=3, gradient_accumulation_steps=2, num_iterations=1)
        )


def langptune(out: Path, *options: str) -> tuple[RLSOSettings, Any, Any]:
    """What ``--config langptune`` asks for: settings, TRL's arguments, and the model's."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--config", "langptune", "--output_dir", str(out), "--bf16", "false", *options]
    args, rest = parser.parse_known_args(words)
    asked, keys, argv = read(argparse.Namespace(**vars(args), rest=rest), RLSOSettings)
    return asked, *arguments(asked, keys, argv)


def test_shipped_configuration_is_langptunes(tmp_path: Path) -> None:
    """``--config langptune`` is accepted as it stands, with the released numbers."""
    asked, training_args, model_args = langptune(tmp_path / "run")
    assert (asked.iterations, asked.contrastive_updates) == (5, 800)
    assert (asked.eta, asked.embedder_learning_rate, asked.contrastive_temperature) == (1.0, 1e-7, 0.1)
    assert (asked.history_limit, asked.first_interactions) == (4, True)
    assert (training_args.beta, training_args.learning_rate, training_args.num_iterations) == (0.2, 1e-7, 4)
    assert training_args.generation_batch_size == 128
    assert (training_args.adam_epsilon, training_args.weight_decay) == (1e-6, 0.01)
    assert (training_args.adam_beta1, training_args.adam_beta2) == (0.9, 0.999)
    assert (model_args.lora_r, model_args.lora_alpha) == (1024, 2048)


def test_an_update_of_langptunes_is_a_fresh_batch_passed_over_four_times(tmp_path: Path) -> None:
    """Its 200 updates a phase are 200 batches of completions with four steps of the optimizer on each."""
    asked, training_args, _ = langptune(tmp_path / "run")
    assert asked.policy_updates / updates_per_batch(training_args) == 200
    assert training_args.max_steps == 5 * 200 * 4
    assert RLSOSettings().policy_updates == asked.policy_updates


def test_options_for_llama_are_langptunes(tmp_path: Path) -> None:
    """The options that the shipped configuration names for Llama-3-8B are accepted, with the released numbers."""
    comment = (CONFIGS / "langptune.yaml").read_text().partition("\n# Ablations")[0]
    options = re.findall(r"--(?!config|data|output_dir)(\w+) (\S+)", comment)
    asked, training_args, model_args = langptune(tmp_path / "run", *(f"--{name}={value}" for name, value in options))
    assert asked.policy_updates / updates_per_batch(training_args) == 500
    assert (asked.contrastive_updates, asked.embedder_learning_rate, asked.unfrozen_layers) == (2500, 3e-7, 4)
    assert (training_args.beta, training_args.learning_rate) == (0.0, 3e-7)
    assert (training_args.adam_beta1, training_args.adam_beta2) == (0.9, 0.95)
    assert (training_args.adam_epsilon, training_args.weight_decay) == (1e-6, 0.01)
    assert (model_args.use_peft, model_args.model_name_or_path) == (False, "meta-llama/Meta-Llama-3-8B-Instruct")
