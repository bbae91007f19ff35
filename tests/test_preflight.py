"""What is foretold before the first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluations import prepared

from duet import ConfigurationError, EndpointUnavailable, MalformedCompletion, Reward

pytest.importorskip("trl")

from duet_train.preflight import check_cycle, check_groups, findings
from duet_train.recommenders import IN_BATCH, TERMS, Opened
from duet_train.settings import Settings

GOOD, BETTER = Reward(0.5), Reward(0.75)
BAD = Reward(-1.0, error=MalformedCompletion("no profile", completion="", missing=("user.profile",)))
NONE = Reward(None, error=EndpointUnavailable("down"))


def cycle(**changes: Any) -> SimpleNamespace:
    values = {
        "steps_per_generation": 4,
        "num_iterations": 1,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_only_model": False,
        "ignore_data_skip": False,
    }
    return SimpleNamespace(**values | changes)


def test_all_is_well() -> None:
    """Groups of different rewards foretell nothing."""
    assert findings([GOOD, BETTER, BETTER, GOOD], 2) == (False, [])


def test_no_profile_at_all_is_fatal() -> None:
    """Without one well-formed completion the advice is a warm start, by its command."""
    fatal, (sentence,) = findings([BAD] * 4, 2)
    assert fatal
    assert "duet_train sft --teacher template" in sentence


def test_no_recommender_is_fatal() -> None:
    """Without one reward the recommender is asked after, with its error."""
    fatal, (sentence,) = findings([NONE] * 4, 2)
    assert fatal
    assert "EndpointUnavailable: down" in sentence


def test_equal_rewards_everywhere_are_fatal() -> None:
    """Where no group has any spread, nothing can be learnt."""
    fatal, (sentence, *_) = findings([GOOD, GOOD, BETTER, BETTER], 2)
    assert fatal
    assert "all 2 sampled groups" in sentence


def test_some_equal_rewards_are_said() -> None:
    """Where some groups have no spread, their number is said."""
    fatal, (sentence,) = findings([GOOD, GOOD, GOOD, BETTER], 2)
    assert not fatal
    assert sentence.startswith("in 1 of 2")


def test_few_profiles_are_said() -> None:
    """Where fewer than half are well-formed, their number is said."""
    fatal, sentences = findings([GOOD, BAD, BAD, BAD], 4)
    assert not fatal
    assert any(sentence.startswith("only 1 of 4") for sentence in sentences)


def test_missing_rewards_are_said() -> None:
    """Some rewards without a value are said, and do not stop the run."""
    fatal, (sentence,) = findings([GOOD, BETTER, NONE, BETTER], 4)
    assert not fatal
    assert sentence.startswith("1 of 4")


@pytest.mark.parametrize("changes", [{}, {"save_steps": 2}, {"num_iterations": 3, "save_steps": 6}])
def test_checkpoint_between_two_batches_is_fine(changes: dict[str, Any]) -> None:
    """A checkpoint after a whole number of batches of rollouts can be gone on from."""
    check_cycle(cycle(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"save_steps": 3}, "multiple of 2"),
        ({"num_iterations": 2, "save_steps": 2}, "multiple of 4"),
        ({"steps_per_generation": 3, "save_steps": 2}, "gradient_accumulation_steps"),
        ({"save_strategy": "epoch"}, "save_strategy"),
        ({"save_only_model": True}, "save_only_model"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"save_steps": 0.1}, "multiple"),
    ],
)
def test_what_cannot_be_resumed_is_refused(changes: dict[str, Any], said: str) -> None:
    """Settings under which a killed run could not go on where it was are refused by name."""
    with pytest.raises(ConfigurationError, match=said):
        check_cycle(cycle(**changes))


def processes(count: int, *, each: int, steps: int = 1, group: int = 8) -> SimpleNamespace:
    """Processes that each write so many completions at once, for so many steps, in groups."""
    shape = {"per_device_train_batch_size": each, "steps_per_generation": steps, "num_generations": group}
    return SimpleNamespace(world_size=count, **shape)


@pytest.mark.parametrize("rewards", ["contrastive", "rating=1,contrastive=0.5", "contrastive,next_item"])
@pytest.mark.parametrize(("each", "steps", "group"), [(4, 1, 8), (6, 2, 8), (2, 1, 4)])
def test_torn_groups_are_refused(rewards: str, each: int, steps: int, group: int) -> None:
    """Where a term compares completions, a process that holds a part of a group is refused with what to change."""
    said = f"contrastive .* multiple of num_generations = {group}, got {each} × {steps}"
    with pytest.raises(ConfigurationError, match=said):
        check_groups(Settings(rewards=rewards), processes(2, each=each, steps=steps, group=group))


@pytest.mark.parametrize(
    ("rewards", "args"),
    [
        ("contrastive", processes(1, each=4, steps=2)),
        ("contrastive", processes(2, each=8)),
        ("contrastive,rating", processes(2, each=4, steps=2)),
        ("rating,length=0.1", processes(2, each=4)),
        ("catalogue,next_item", processes(4, each=2)),
    ],
)
def test_whole_groups_are_fine(rewards: str, args: SimpleNamespace) -> None:
    """One process, whole groups in each, and terms that look at one completion at a time are fine."""
    check_groups(Settings(rewards=rewards), args)


@pytest.mark.parametrize("embedder", ["trainable", "trainable:folder"])
def test_learning_embedder_needs_one_process(embedder: str) -> None:
    """Two processes would each train an embedder and reward by it, however whole their groups are."""
    settings = Settings(rewards="contrastive", embedder=embedder)
    check_groups(settings, processes(1, each=8))
    with pytest.raises(ConfigurationError, match="embedder: trainable needs one process"):
        check_groups(settings, processes(2, each=8))


@pytest.mark.anyio
async def test_terms_that_look_at_the_batch_are_known(tmp_path: Path) -> None:
    """Of all terms that a run can name, those are checked that say of themselves that they look at the batch."""
    there = "http://127.0.0.1:9/v1,nobody"
    settings = Settings(recommender=there, recommender_mode="decimal", embedder=there)
    async with Opened(settings, prepared(tmp_path / "data")) as opened:
        terms = [await opened.term(name, 1.0) for name in TERMS]
    assert {term.name for term in terms if getattr(term, "in_batch", False)} == IN_BATCH
