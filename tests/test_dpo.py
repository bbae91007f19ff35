"""``python -m duet_train dpo``: which completions make pairs, and that training on them prefers the right ones."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluations import prepared
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_folder, tiny_tokenizer
from tunings import PROFILE, WARNINGS, effective, group_of, history, scored, shortened, words, written

from duet import ConfigurationError, RatingScale
from duet.testing import completion_text
from duet_train.__main__ import main
from duet_train.data.prepared import Prepared
from duet_train.dataset import training_rows
from duet_train.dpo import DPOSettings, tokens, train, with_rows
from duet_train.groups import Group
from duet_train.pairs import Pair, paired, pairs_by_margin, pairs_by_sentiment
from duet_train.settings import read
from duet_train.sft import SFTSettings
from duet_train.tuning import TuningSettings, tuning_arguments
from duet_train.turns import Turns

pytestmark = pytest.mark.filterwarnings(WARNINGS)

ratings = st.lists(st.sampled_from([1.0, 2.4, 2.6, 3.0, 3.4, 3.6, 5.0]), max_size=6)


def predicted(gold: float, values: list[float], example: int = 0) -> Group:
    """A group whose samples differ in their text and have these predictions."""
    samples = [scored(1 - abs(gold - one) / 4, f"Text {place}.", rating=one) for place, one in enumerate(values)]
    return group_of(example, gold, samples)


def feeling(rating: float) -> int:
    """Like from 4, dislike up to 2, after rounding: LettinGo's classes on 1 to 5."""
    whole = math.floor(rating + 0.5)
    return (whole >= 4) - (whole <= 2)


# The rule


@given(st.sampled_from([1.0, 3.0, 4.0, 5.0]), ratings)
def test_every_right_one_is_paired_with_every_wrong_one(gold: float, values: list[float]) -> None:
    """The pairs of a group are the full product of right and wrong completions."""
    group = predicted(gold, values)
    right = [one.completion for one in group.samples if feeling(one.rating or 0) == feeling(gold)]
    wrong = [one.completion for one in group.samples if feeling(one.rating or 0) != feeling(gold)]
    made = pairs_by_sentiment([group])
    assert [(pair.chosen, pair.rejected) for pair in made.pairs] == [(a, b) for a in right for b in wrong]
    assert made.all_right == (bool(right) and not wrong)
    assert made.all_wrong == (bool(wrong) and not right)
    assert made.unknown == (not values)


def test_groups_without_a_pair_are_counted() -> None:
    """Groups all right, all wrong or without a profile have no pair, and are told apart."""
    groups = [
        predicted(5, [4, 5]),
        predicted(5, [1, 3, 2]),
        predicted(5, [5, 1]),
        group_of(3, 5, [scored(-1.0, "no profile")]),
        group_of(4, 5, [scored(None, "Fine.", rating=None)]),
    ]
    made = pairs_by_sentiment(groups)
    assert (len(made.pairs), made.all_right, made.all_wrong, made.unknown) == (1, 1, 1, 2)


def test_malformed_completion_is_neither_right_nor_wrong() -> None:
    """What is no profile predicts nothing: it is no negative."""
    group = group_of(0, 5, [scored(1, "Fine.", rating=5), scored(-1, "no profile"), scored(0, "Bad.", rating=1)])
    (pair,) = pairs_by_sentiment([group]).pairs
    assert "Bad." in pair.rejected


def test_same_text_is_never_both() -> None:
    """A text that was once right and once wrong is not preferred to itself, and the same two texts are one pair."""
    samples = [scored(1, "A", rating=5), scored(0, "A", rating=1), scored(1, "A", rating=5), scored(0, "B", rating=1)]
    texts = [completion_text(PROFILE, user_profile=name) for name in "AB"]
    made = pairs_by_sentiment([group_of(0, 5, samples)])
    assert [(pair.chosen, pair.rejected) for pair in made.pairs] == [(texts[0], texts[1])]
    both_ways = [*samples, scored(1, "B", rating=5)]
    assert pairs_by_sentiment([group_of(0, 5, both_ways)]).pairs == []


@given(ratings, st.sampled_from([0.25, 0.5, 1.0]))
def test_margin_pairs_whatever_lies_far_enough_apart(values: list[float], margin: float) -> None:
    """By margin, every two completions whose rewards differ by it or more are a pair, the better one preferred."""
    group = predicted(3, values)
    expected = [
        (one.completion, other.completion)
        for one in group.samples
        for other in group.samples
        if (one.reward or 0) - (other.reward or 0) >= margin - 1e-9
    ]
    made = pairs_by_margin([group], margin)
    assert [(pair.chosen, pair.rejected) for pair in made.pairs] == expected
    assert made.too_close == (bool(values) and not expected)


def test_limits_go_with_the_scale() -> None:
    """On another scale, like and dislike are its upper and its lower quarter."""
    samples = (scored(1, "A", rating=8), scored(0, "B", rating=7))
    group = Group(example=0, user="u", item="i", gold=9, scale=RatingScale(1, 10), samples=samples)
    (pair,) = pairs_by_sentiment([group]).pairs
    assert "A" in pair.chosen


def test_no_pair_at_all_is_refused() -> None:
    """Where nothing can be learnt, the error says how many groups were all right and all wrong."""
    groups = [predicted(5, [5, 4]), predicted(5, [5, 5]), predicted(1, [5])]
    with pytest.raises(ConfigurationError, match="of 3 groups 0 have pairs, 2 are all right, 1 are all wrong"):
        paired(groups, "sentiment", 0.25)


@pytest.mark.parametrize(("verb", "source"), [("sft", SFTSettings), ("dpo", DPOSettings)])
def test_shipped_configuration_is_read(verb: str, source: type[TuningSettings], tmp_path: Path) -> None:
    """LettinGo's file holds keys of this project and of TRL alone, for sft as for dpo."""
    import trl

    args = argparse.Namespace(config="lettingo", verb=verb, rest=["--output_dir", str(tmp_path)], data="d", groups="g")
    settings, keys, argv = read(args, source)
    kind = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig}[verb]
    # Arithmetic in bf16 is TRL's default, and needs a GPU.
    training_args, model_args = tuning_arguments(settings, keys, [*argv, "--bf16", "false"], kind)
    assert (settings.sides, settings.sections, settings.independent) == ("user", "profile", True)
    assert (training_args.num_train_epochs, model_args.use_peft, model_args.lora_r) == (1, True, 32)


# Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for the data and the model."""
    return tmp_path_factory.mktemp("dpo")


@pytest.fixture(scope="module")
def data(folder: Path) -> Prepared:
    """A prepared log."""
    return prepared(folder / "data")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A random policy."""
    return tiny_folder(folder)


def settings_of(data: Prepared, **more: Any) -> DPOSettings:
    """Settings with short texts."""
    shape: dict[str, Any] = {"sides": "user", "sections": "profile", "history_limit": 2, "review_chars": 0}
    return DPOSettings(data=str(data.directory), groups="groups.jsonl", **shape | more)


@pytest.fixture(scope="module")
def groups(data: Prepared, folder: Path) -> Path:
    """Two groups for each of which one text is right and one wrong."""
    rows = training_rows(data, settings_of(data, rows=2), seed=42)
    right = [scored(1, "Loves it.", rating=row.example.rating) for row in rows]
    wrong = [scored(0, "Hates it!", rating=1.0 if row.example.rating > 2 else 5.0) for row in rows]
    made = [
        group_of(row.id, row.example.rating, pair)
        for row, pair in zip(rows, zip(right, wrong, strict=True), strict=True)
    ]
    return written(folder / "groups.jsonl", made)


def test_tokens_are_prompt_chosen_rejected(data: Prepared) -> None:
    """The ids are those of rollouts, each completion with its end; what is too long is left out with its pair."""
    turns = Turns(tiny_tokenizer())
    rows = [shortened(row) for row in training_rows(data, settings_of(data, rows=2), seed=0)]
    made = [
        Pair(example=rows[0].id, chosen="good", rejected="bad"),
        Pair(example=rows[1].id, chosen="x", rejected="y" * 9),
    ]
    columns, sentences = tokens(with_rows(made, rows, "groups"), turns, settings_of(data, max_completion_length=6))
    assert columns == {
        "prompt_ids": [turns.prompt(rows[0].messages)],
        "chosen_ids": [turns.completion("good")],
        "rejected_ids": [turns.completion("bad")],
    }
    assert sentences == [
        "1 of 2 pairs hold a completion of more than max_completion_length = 6 tokens; they are left out"
    ]


@pytest.mark.train
def test_training_prefers_the_right_one(data: Prepared, model: Path, groups: Path, tmp_path: Path) -> None:
    """The margin between right and wrong is 0 at the start, where policy and reference are the same, and rises."""
    more = {"groups": groups, "rows": 2, "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    assert main(words("dpo", data.directory, tmp_path / "run", model, more)) == 0
    found = history(tmp_path / "run")
    assert found[0]["loss"] == pytest.approx(math.log(2))
    assert found[0]["rewards/margins"] == 0
    assert found[-1]["rewards/margins"] > 0.05
    assert found[-1]["rewards/accuracies"] == 1
    assert found[-1]["loss"] < found[0]["loss"]


def trained(data: Prepared, model: Path, run: Path, *, adapter: Path | None = None, steps: int) -> None:
    """A run on two pairs with short prompts, a checkpoint every second step."""
    from trl import DPOConfig

    settings = settings_of(data, rows=2, adapter=str(adapter or ""))
    keys = {"output_dir": str(run), "model_name_or_path": str(model), "max_steps": steps, "save_steps": 2}
    keys |= {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "disable_tqdm": True}
    training_args, model_args = tuning_arguments(settings, keys, [], DPOConfig)
    rows = [shortened(row) for row in training_rows(data, settings, seed=0)]
    pairs = [(row, Pair(example=row.id, chosen="Loves it.", rejected="Hates it!")) for row in rows]
    train(settings, data, pairs, training_args, model_args)


@pytest.mark.train
@pytest.mark.faults
def test_run_goes_on_from_an_adapter_and_after_a_kill(data: Prepared, model: Path, tmp_path: Path) -> None:
    """From an adapter the reference is that adapter; a run that lost all after a checkpoint ends as the one that was
    never cut; and the folder holds the one trained adapter."""
    trained(data, model, tmp_path / "first", steps=2)
    run, first = tmp_path / "run", tmp_path / "first" / "adapter"
    trained(data, model, run, adapter=first, steps=4)
    assert effective(run, "loss")[1] == pytest.approx(math.log(2))
    whole, weights = effective(run, "loss"), (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert weights != (first / "adapter_model.safetensors").read_bytes()
    assert [path.name for path in (run / "adapter").rglob("*.safetensors")] == ["adapter_model.safetensors"]
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoint-4")
    trained(data, model, run, adapter=first, steps=4)
    assert effective(run, "loss") == whole
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    card = json.loads((run / "card.json").read_text())
    assert (card["verb"], card["status"], card["attempt"]) == ("dpo", "finished", 1)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"groups": ""}, "groups must name what explore wrote"),
        ({"groups": "nowhere"}, "nowhere: no such file"),
        ({"pairs": "best"}, "pairs must be sentiment or margin"),
        ({"margin": "0"}, "margin must be above 0"),
        ({"max_length": "512"}, "max_length must be none"),
        ({"pairs": "margin", "margin": "3"}, "there is no pair to learn from: of 2 groups 0 have pairs, 2 are closer"),
        ({"split": "test"}, "completions belong to no row"),
        ({"model_name_or_path": "/nowhere"}, "/nowhere: there is no such folder"),
        ({"teacher": "template"}, "unknown option '--teacher'"),
    ],
)
def test_mistake_is_one_sentence(
    data: Prepared,
    model: Path,
    groups: Path,
    tmp_path: Path,
    more: dict[str, Any],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A setting that cannot work ends with exit code 2 and one sentence, and no run directory is made."""
    assert main(words("dpo", data.directory, tmp_path / "run", model, {"groups": groups, "rows": 2} | more)) == 2
    said = capsys.readouterr().err
    assert said.startswith("duet_train dpo: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
