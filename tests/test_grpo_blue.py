"""BLUE through grpo: profiles of users alone, rewarded for the items they find, while the embedder learns too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from next_items import embedder_folder, topic_of, warm_policy, world
from safetensors.torch import load_file

from duet import EndpointUnavailable, Example, Item, ProfileSchema, RatingError, Reward, User
from duet.testing import Answer, FakeServer, completion_text
from duet_train.__main__ import main
from duet_train.callbacks import read_lines
from duet_train.dataset import Row, prompts_of
from duet_train.embedder_updates import best_texts
from duet_train.rewards import Scored
from duet_train.settings import Settings

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore"), pytest.mark.train]

Line = dict[str, Any]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Prepared data, a policy that mostly names the wrong topic, and an untrained embedder."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("blue")
    data = world(folder)
    asked = Settings(sides="user", sections="profile", independent=True, review_chars=0)
    (prompt,) = prompts_of(asked, data.scale)
    examples = data.examples("train")
    prompts = [prompt.render(one.profile_user, one.example.item) for one in examples]
    topics = [topic_of(one.example.item.id) for one in examples]
    return (
        data.directory,
        warm_policy(folder / "policy", prompts, topics, right=0.35, updates=250),
        embedder_folder(folder),
    )


def run(planted: tuple[Path, Path, Path], out: Path, *options: str) -> list[Line]:
    """The held-out measurements of a short run of configs/blue.yaml."""
    data, policy, embedder = planted
    words = f"grpo --config blue --data {data} --output_dir {out} --model_name_or_path {policy} --dtype float32"
    words += f" --bf16 false --embedder trainable:{embedder} --embedder_learning_rate 3e-3"
    words += " --use_peft false --beta 0 --review_chars 0"
    words += " --learning_rate 1e-3 --per_device_train_batch_size 64 --gradient_accumulation_steps 1"
    words += " --steps_per_generation 1 --max_steps 20 --save_steps 10 --held_out 32 --held_out_steps 20"
    words += " --max_completion_length 8 --seed 1"
    assert main([*words.split(), *options]) == 0
    return read_lines(out / "held_out.jsonl")


def test_contrastive_reward_teaches(planted: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """With an embedder that learns beside the policy, profiles come to find their items."""
    first, last = run(planted, tmp_path / "run", "--rewards", "contrastive=1")
    assert last["reward"] > first["reward"] + 0.2


def test_learning_embedder_is_kept(planted: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The embedder is saved with each checkpoint and beside the policy, in safetensors."""
    run(planted, tmp_path / "run", "--rewards", "contrastive=1", "--max_steps", "10")
    for folder in ("checkpoint-10/embedder", "embedder"):
        assert list((tmp_path / "run" / folder).glob("*.safetensors"))
    assert not list((tmp_path / "run" / "embedder").rglob("*.bin"))


def test_terms_are_normalised_one_by_one(planted: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """As published, both terms and the form are functions of their own to TRL, and the completions are asked once."""
    with FakeServer(Answer("A")).run_in_thread() as server:
        options = ["--recommender", f"{server.base_url},fake", "--recommender_mode", "decimal", "--max_steps", "2"]
        run(planted, tmp_path / "run", *options, "--save_steps", "2", "--preflight", "warn")
    line = read_lines(tmp_path / "run" / "history.jsonl")[0]
    assert {"rewards/contrastive/mean", "rewards/next_item/mean", "rewards/form/mean"} <= line.keys()
    scored = read_lines(tmp_path / "run" / "completions.jsonl")
    assert len(scored) == 2 * 64
    assert set(scored[0]["terms"]) == {"contrastive", "next_item"}


def test_nothing_learns_from_rewards_that_half_failed(planted: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Where each reward lacks one of its terms, policy and embedder stay as they are, though the other term came."""
    with FakeServer(Answer("I cannot say.")).run_in_thread() as server:
        options = ["--recommender", f"{server.base_url},fake", "--recommender_mode", "decimal", "--max_steps", "2"]
        options += ["--save_steps", "2", "--preflight", "off", "--max_failed_share", "1", "--weight_decay", "0"]
        run(planted, tmp_path / "run", *options)
    scored = read_lines(tmp_path / "run" / "completions.jsonl")
    assert {(line["reward"], *line["terms"]) for line in scored if not line["malformed"]} == {(None, "contrastive")}
    assert [line["grad_norm"] for line in read_lines(tmp_path / "run" / "history.jsonl")] == [0.0, 0.0]
    for before, after in ((planted[1], tmp_path / "run" / "model"), (planted[2], tmp_path / "run" / "embedder")):
        first, last = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
        assert all(torch.equal(first[name], last[name]) for name in first)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.none() | st.floats(-9, 1, allow_nan=False),
            st.sampled_from((None, RatingError("unreadable"), EndpointUnavailable("down"))),
        ),
        max_size=12,
    )
)
def test_embedder_learns_from_the_best_that_earned_something(
    outcomes: list[tuple[int, float | None, Exception | None]],
) -> None:
    """Of each example the profile of the highest reward, however negative; never one that failed or was penalised."""
    schema = ProfileSchema(sides=("user",))
    examples = [Example(User(f"u{place}"), Item(f"i{place}", title=f"Item {place}"), 4.0) for place in range(3)]
    scored = [
        Scored(
            row=Row(id=place, example=examples[place], messages=(), schema=schema),
            completion=completion_text(schema, user_profile=f"profile {number}"),
            reward=Reward(value, terms={"contrastive": -1.0}, error=error),
        )
        for number, (place, value, error) in enumerate(outcomes)
    ]
    best: dict[int, tuple[float, int]] = {}
    for number, (place, value, error) in enumerate(outcomes):
        if value is not None and error is None:
            best[place] = max(best.get(place, (value, -number)), (value, -number))
    expected = {(f"profile {-number}", f"Item {place}") for place, (_, number) in best.items()}
    assert set(best_texts(scored)) == expected


def test_item_is_not_in_sight(planted: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The prompt shows the user's rows and nothing of the item that is to be found."""
    from duet_train.data.prepared import Prepared
    from duet_train.dataset import training_rows
    from duet_train.settings import read_config

    keys = {key: value for key, value in read_config("blue").items() if key in ("sides", "sections", "independent")}
    rows = training_rows(Prepared.open(planted[0]), Settings(**keys), seed=0)
    for row in rows:
        assert row.example.item.title is not None
        assert row.example.item.title not in json.dumps(row.messages)
