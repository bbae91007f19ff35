"""GRPO learns: in a world of planted preferences, through the verbs as they are, from a policy that writes phrases.

The policy knows the form of a profile from its warm start, and puts phrases in it that fit everybody. The recommender
reads nothing but the profiles. So the held-out reward rises by saying of the user and of the place what their data say,
and by nothing else: what a policy gains by chance, by length or by knowing the usual rating would stay when users are
swapped, and would come with permuted labels too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from world import prepared, recommender_server
from world_policy import WARNINGS, Ground, break_ground, command, lines

from duet_train.__main__ import main

torch: Any = pytest.importorskip("torch")

pytestmark = [pytest.mark.filterwarnings(WARNINGS), pytest.mark.timeout(600), pytest.mark.train]

SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)))
STEPS = 36
OPTIONS = {
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_steps": STEPS,
    "held_out": 100,
    "held_out_steps": STEPS,
    "save_steps": 10 * STEPS,
    "disable_tqdm": "true",
}

Run = list[dict[str, Any]]
"""Held-out measurements, the first before the first step and the last after the last one."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Tiny matrices are fastest on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="module")
def ground(folder: Path) -> Ground:
    return break_ground(folder)


@pytest.fixture(scope="module")
def permuted(ground: Ground, folder: Path) -> Ground:
    """The same, with the ratings of training dealt out to other users; those of validation stay."""
    trained = [one.example for one in ground.data.examples("train")]
    ratings = [example.rating for example in trained]
    random.Random(0).shuffle(ratings)
    labels = {example.user.id: rating for example, rating in zip(trained, ratings, strict=True)}
    return attrs.evolve(ground, data=prepared(folder / "permuted", ground.world, labels))


@pytest.fixture(scope="module")
def train(folder: Path) -> Callable[..., Run]:
    """Train from a ground with a seed; each run is made once."""
    made: dict[Path, Run] = {}

    def run(ground: Ground, seed: int) -> Run:
        place = folder / f"{ground.data.directory.name}-{seed}"
        if place not in made:
            with recommender_server().run_in_thread() as server:
                options = OPTIONS | {"seed": seed, "recommender": f"{server.base_url},reader"}
                assert main(command("grpo", ground.data, ground.policy, place, **options)) == 0
            made[place] = lines(place / "held_out.jsonl")
        return made[place]

    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_reward_rises(train: Callable[..., Run], ground: Ground, seed: int) -> None:
    """On new users and new places the reward rises clearly."""
    start, end = train(ground, seed)
    assert start["parse_rate"] > 0.9
    assert end["reward"] > start["reward"] + 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_reward_falls_back_when_users_are_swapped(train: Callable[..., Run], ground: Ground, seed: int) -> None:
    """With the users' profiles swapped among the rows, what was gained is gone."""
    start, end = train(ground, seed)
    assert end["shuffled_reward"] < start["reward"] + 0.05
    assert end["shuffled_reward"] < end["reward"] - 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_permuted_labels_teach_nothing(train: Callable[..., Run], ground: Ground, permuted: Ground, seed: int) -> None:
    """Trained on the ratings of other users, the reward on true ones does not rise."""
    start, end = train(permuted, seed)
    assert start["rewards"] == train(ground, seed)[0]["rewards"]
    assert end["reward"] < start["reward"] + 0.06
