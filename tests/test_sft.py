"""``python -m duet_train sft``: what is chosen to train on, which tokens that makes, and that training on it works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluations import prepared
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_folder, tiny_tokenizer
from tunings import PROFILE, SHAPE, WARNINGS, effective, group_of, history, scored, shortened, words, written

from duet import Completion, ConfigurationError, Message, ProfileSchema, parse_profile
from duet.testing import completion_text, sample_examples
from duet_train.__main__ import main
from duet_train.completions import best_of, parses, read_completions
from duet_train.data.prepared import Prepared
from duet_train.dataset import Row, training_rows
from duet_train.sft import SFTSettings, chosen, tokens, train
from duet_train.teachers import TemplateTeacher
from duet_train.tuning import tuning_arguments
from duet_train.turns import Turns

pytestmark = pytest.mark.filterwarnings(WARNINGS)

ASKED: list[Message] = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for the data and the model."""
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(scope="module")
def data(folder: Path) -> Prepared:
    """A prepared log."""
    return prepared(folder / "data")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A random policy."""
    return tiny_folder(folder, width=64)


def settings_of(data: Prepared, **more: Any) -> SFTSettings:
    """Settings of a warm start, unless told otherwise."""
    source: dict[str, Any] = {} if {"groups", "completions"} & more.keys() else {"teacher": "template"}
    shape: dict[str, Any] = {"sides": "user", "sections": "profile", "history_limit": 2, "review_chars": 0}
    return SFTSettings(data=str(data.directory), **source, **shape | more)


# Tokens


def test_prompt_is_the_template_up_to_the_answer() -> None:
    """The prompt is rendered as for a rollout, thinking switched off where that is asked for."""
    tokenizer = tiny_tokenizer()
    prompt = Turns(tokenizer, {"enable_thinking": False}).prompt(ASKED)
    assert tokenizer.decode(prompt) == "<|start|>user\nWho?<|end|>\n<|start|>assistant\n<think>\n\n</think>\n\n"
    assert Turns(tokenizer).prompt(ASKED) == prompt[: -len("<think>\n\n</think>\n\n")]


def test_completion_ends_the_turn() -> None:
    """The completion is its own tokens and the one that ends a turn, once."""
    tokenizer = tiny_tokenizer()
    ids = Turns(tokenizer).completion("Dice.")
    assert tokenizer.decode(ids) == "Dice.<|end|>"
    assert ids.count(tokenizer.eos_token_id) == 1


def test_template_that_ends_otherwise_is_told() -> None:
    """A chat template that does not write the eos token after an answer is told, and one that does is not."""
    tokenizer = tiny_tokenizer()
    assert Turns(tokenizer).ends_otherwise() is None
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|pad|>")
    assert Turns(tokenizer).ends_otherwise() == "<|pad|>\n"


def rows_of(texts: Sequence[str], prompt: str = "Who?") -> list[tuple[Row, str]]:
    """A row for each text."""
    example = sample_examples()[0]
    asked: Message = {"role": "user", "content": prompt}
    return [
        (Row(id=place, example=example, messages=(asked,), schema=PROFILE), text) for place, text in enumerate(texts)
    ]


def test_loss_is_on_the_completion_alone(data: Prepared) -> None:
    """The mask is 0 on every token of the prompt and 1 on every token of the completion, its end included."""
    turns = Turns(tiny_tokenizer())
    columns, sentences = tokens(rows_of(["Dice.", "Maps, no dice."]), turns, settings_of(data), None)
    for ids, mask, text in zip(
        columns["input_ids"], columns["completion_mask"], ("Dice.", "Maps, no dice."), strict=True
    ):
        learnt = [one for one, bit in zip(ids, mask, strict=True) if bit]
        assert learnt == turns.completion(text)
        assert ids[: -len(learnt)] == turns.prompt(ASKED)
    assert sentences == []


def test_nothing_is_cut(data: Prepared) -> None:
    """What is over a limit is left out whole, and a sentence says how many for each limit."""
    turns = Turns(tiny_tokenizer())
    pairs = rows_of(["short", "x" * 50])
    long = rows_of(["short", "short", "short"], "y" * 100)[2]
    columns, sentences = tokens(
        [*pairs, long], turns, settings_of(data, max_completion_length=20, max_prompt_length=60), None
    )
    assert len(columns["input_ids"]) == 1
    assert [sentence[:8] for sentence in sentences] == ["1 of 3 p", "1 of 3 c"]
    _, sentences = tokens(pairs, turns, settings_of(data), 60)
    assert sentences == [
        "1 of 2 prompts and completions together have more than max_length = 60 tokens; they are left out"
    ]


def test_nothing_left_is_refused(data: Prepared) -> None:
    """Where no completion fits, the error says which limit each broke."""
    with pytest.raises(ConfigurationError, match="nothing is left to train on: 1 of 1 completions"):
        tokens(rows_of(["too long"]), Turns(tiny_tokenizer()), settings_of(data, max_completion_length=3), None)


# The teacher

schemas = st.builds(
    ProfileSchema,
    sides=st.sampled_from([("user",), ("item",), ("user", "item")]),
    sections=st.lists(st.sampled_from(["cue", "constructed_prompt", "profile"]), min_size=1, unique=True).map(tuple),
    max_chars=st.none() | st.integers(20, 300),
)


@given(schemas, st.integers(0, 4), st.sampled_from(sample_examples()))
def test_teacher_keeps_to_the_form(schema: ProfileSchema, shown: int, example: Any) -> None:
    """Its completions parse under any schema, sections keep to their length, and the same input gives the same text."""
    teacher = TemplateTeacher(schema=schema, history_limit=shown, evidence_limit=shown, scale=example.scale)
    text = teacher.completion(example.user, example.item)
    assert parses(text, schema)
    assert text == teacher.completion(example.user, example.item)
    inner = [line.partition(">")[2].rpartition("<")[0] for line in text.splitlines() if not line.endswith("_profile>")]
    assert all(len(section) <= (schema.max_chars or 10_000) for section in inner)


def test_teacher_tells_what_the_rows_hold() -> None:
    """The profiles are the template's, and the cue has count, average and ends of the ratings shown."""
    example = sample_examples()[0]
    profile = parse_profile(Completion(TemplateTeacher().completion(example.user, example.item)), ProfileSchema())
    rows = example.user.history[-10:]
    assert profile.user is not None
    average = sum(row.rating for row in rows) / len(rows)
    assert profile.user.text.startswith(f"Gave {len(rows)} ratings, {average:.1f} on average")
    ends = min(row.rating for row in rows), max(row.rating for row in rows)
    assert profile.user.cue == f"{len(rows)} ratings, average {average:.1f}, lowest {ends[0]:g}, highest {ends[1]:g}"


def test_teacher_says_nothing_of_the_target(data: Prepared) -> None:
    """It writes from what the prompt shows: never from rows that the recommender reads raw, nor from the target."""
    pairs, _ = chosen(settings_of(data, history_limit=10), data, seed=0)
    for row, text in pairs:
        shown = row.messages[1]["content"].count("] rated ")
        said = 0 if "Nothing is known" in text else int(text.partition("Gave ")[2].split()[0])
        evidence = row.messages[1]["content"].partition("\nITEM\n")[2].count("] rated ")
        assert said == shown - evidence


# The best of groups


def test_best_is_the_highest_reward() -> None:
    """Of each group the completion that earned most; what is no profile is none, whatever it earned."""
    groups = [
        group_of(3, 4, [scored(0.5, "so so", rating=2), scored(0.9, "good", rating=4), scored(2.0, "no profile")]),
        group_of(5, 4, [scored(-1.0, "no profile")]),
    ]
    assert best_of(groups, seed=0) == [(3, completion_text(PROFILE, user_profile="good"))]


def test_chance_decides_between_equals() -> None:
    """Equal rewards are told apart by the seed: the same one gives the same choice, and no model is favoured."""
    groups = [group_of(n, 4, [scored(1, "one", rating=4), scored(1, "two", rating=4)]) for n in range(200)]
    found = best_of(groups, seed=1)
    assert found == best_of(groups, seed=1)
    assert 70 < sum("one" in text for _, text in found) < 130


def test_least_reward_leaves_groups_out() -> None:
    """Groups whose best earned too little are left out; where that is all, the error says so."""
    groups = [group_of(0, 4, [scored(0.5, "poor", rating=2)]), group_of(1, 4, [scored(0.9, "good", rating=4)])]
    assert [example for example, _ in best_of(groups, seed=0, min_reward=0.9)] == [1]
    with pytest.raises(ConfigurationError, match="of 2 groups 2 have a well-formed completion, and none has one of"):
        best_of(groups, seed=0, min_reward=1.5)


# Mistakes


def lines(path: Path, *values: Any) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


GOOD = completion_text(PROFILE)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "holds no completion"),
        ([{"example": 1}], "given.jsonl:1: the key 'completion' is missing; there are example"),
        ([{"completion": "x"}], "given.jsonl:1: the key 'example' is missing"),
        ([{"example": 1, "completion": 2}], "given.jsonl:1: 'completion' holds 2"),
        ([["a"]], "given.jsonl:1: not a JSON object"),
        ([{"example": 10_000, "completion": GOOD}], "1 of 1 completions belong to no row, such as example 10000"),
    ],
)
def test_wrong_file_is_one_sentence(
    data: Prepared, model: Path, tmp_path: Path, values: list[Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of completions that cannot be used ends with exit code 2 and one sentence, before a model is loaded."""
    file = lines(tmp_path / "given.jsonl", *values)
    assert main(words("sft", data.directory, tmp_path / "run", model, {"completions": file})) == 2
    said = capsys.readouterr().err
    assert said.startswith("duet_train sft: ")
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({}, "one of groups, completions and teacher"),
        ({"teacher": "template", "groups": "x"}, "one of groups, completions and teacher"),
        ({"teacher": "parrot"}, "no teacher 'parrot'"),
        ({"groups": "nowhere"}, "nowhere: no such file"),
        ({"completions": "nowhere"}, "nowhere: cannot be read"),
        ({"teacher": "template", "data": "nowhere"}, "nowhere"),
        ({"teacher": "template", "chat_template_kwargs": "{"}, "chat_template_kwargs must be JSON"),
        ({"teacher": "template", "packing": True}, "packing must be false"),
        ({"teacher": "template", "save_strategy": "no"}, "save_strategy must be steps"),
        ({"teacher": "template", "model_name_or_path": "/nowhere"}, "/nowhere: there is no such folder"),
        ({"teacher": "template", "num_generations": 8}, "unknown option '--num_generations'"),
    ],
)
def test_mistake_is_one_sentence(
    data: Prepared, model: Path, tmp_path: Path, more: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that cannot work ends with exit code 2 and one sentence, and no run directory is made."""
    assert main(words("sft", data.directory, tmp_path / "run", model, more)) == 2
    said = capsys.readouterr().err
    assert said.startswith("duet_train sft: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_malformed_completions_are_left_out(data: Prepared, tmp_path: Path) -> None:
    """What is no profile is not trained on, and is counted; where nothing else is there, that is an error."""
    (row, other, *_) = training_rows(data, settings_of(data), seed=0)
    good, bad = {"example": row.id, "completion": GOOD}, {"example": other.id, "completion": "Likes dice."}
    settings = settings_of(data, completions=str(lines(tmp_path / "mixed.jsonl", good, bad)))
    pairs, sentences = chosen(settings, data, seed=0)
    assert [(found.id, text) for found, text in pairs] == [(row.id, GOOD)]
    assert sentences == ["1 of 2 completions are no profiles, and are left out"]
    settings = settings_of(data, completions=str(lines(tmp_path / "bad.jsonl", bad)))
    with pytest.raises(ConfigurationError, match=r"none of 1 completions has the sections user\.profile"):
        chosen(settings, data, seed=0)


def test_example_may_have_several_completions(tmp_path: Path) -> None:
    """All lines of a file are given, in order."""
    file = lines(tmp_path / "given.jsonl", *({"example": 1, "completion": text, "more": 0} for text in "ab"))
    assert read_completions(file) == [(1, "a"), (1, "b")]


# Training


def parse_rate(folder: Path, rows: Sequence[Row]) -> float:
    """Share of greedy completions that are profiles and end."""
    import torch
    from transformers import AutoModelForCausalLM

    policy, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer()
    good = 0
    for row in rows:
        ids = torch.tensor([Turns(tokenizer).prompt(row.messages)])
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        made = policy.generate(ids, max_new_tokens=120, **options)[0, ids.shape[1] :]
        ended = int(made[-1]) == tokenizer.eos_token_id
        good += ended and parses(tokenizer.decode(made, skip_special_tokens=True), row.schema)
    return good / len(rows)


@pytest.mark.train
def test_warm_start_teaches_the_form(data: Prepared, model: Path, tmp_path: Path) -> None:
    """A random policy that writes no profile writes them after training on the teacher's, and the loss has fallen."""
    from trl import SFTConfig

    settings = settings_of(data, rows=8, history_limit=1, section_chars=24)
    keys = {"output_dir": str(tmp_path / "run"), "model_name_or_path": str(model), "use_peft": False, "max_steps": 70}
    keys |= {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "disable_tqdm": True, "logging_steps": 10}
    training_args, model_args = tuning_arguments(settings, keys, [], SFTConfig)
    pairs = [(shortened(row), text) for row, text in chosen(settings, data, seed=0)[0]]
    rows = [row for row, _ in pairs]
    assert parse_rate(model, rows[:4]) == 0
    train(settings, data, pairs, training_args, model_args)
    losses = [line["loss"] for line in history(tmp_path / "run")]
    assert losses[-1] < losses[0] / 5
    assert parse_rate(tmp_path / "run" / "model", rows[:4]) > 0.5


@pytest.mark.train
def test_run_leaves_an_adapter_and_goes_on_where_it_was(data: Prepared, model: Path, tmp_path: Path) -> None:
    """A run that lost all after a checkpoint ends as the one that was never cut, its repeated steps marked; the adapter
    is safetensors with a card, and nothing that has to be unpickled."""
    groups = [
        group_of(row.id, 4, [scored(0.9, f"Likes dice in game {row.id}.", rating=4), scored(0.1, "Bad.", rating=1)])
        for row in training_rows(data, settings_of(data, rows=4), seed=42)
    ]
    file = written(tmp_path / "groups.jsonl", groups)
    more = {"groups": file, "rows": 4, "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2}
    line = words("sft", data.directory, tmp_path / "run", model, more | {"learning_rate": 1e-2})
    assert main(line) == 0
    adapter = tmp_path / "run" / "adapter"
    whole, weights = effective(tmp_path / "run", "loss"), (adapter / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(adapter)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert main(line) == 0
    assert effective(tmp_path / "run", "loss") == whole
    assert (adapter / "adapter_model.safetensors").read_bytes() == weights
    marks = [(one["step"], one["attempt"], one["replayed"]) for one in history(tmp_path / "run")]
    assert marks == [(1, 0, False), (2, 0, False), (3, 0, False), (4, 0, False), (3, 1, True), (4, 1, True)]
    assert not [path.name for path in adapter.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert "python -m duet_train sft" in (adapter / "README.md").read_text()
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert (card["verb"], card["status"], card["settings"]["groups"]) == ("sft", "finished", str(file))
    assert card["training_args"]["completion_only_loss"] is True


@pytest.mark.train
@pytest.mark.faults
def test_run_killed_after_its_last_step_takes_no_other(data: Prepared, model: Path, tmp_path: Path) -> None:
    """Where only the adapter was not yet written, the same command writes it; no step is added in mid-epoch."""
    rows = training_rows(data, settings_of(data, rows=4), seed=42)
    file = written(tmp_path / "groups.jsonl", [group_of(row.id, 4, [scored(0.9, "Dice.", rating=4)]) for row in rows])
    more = {"groups": file, "rows": 4, "max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 2}
    line = words("sft", data.directory, tmp_path / "run", model, more)
    assert main(line) == 0
    adapter = tmp_path / "run" / "adapter"
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(adapter)
    assert main(line) == 0
    assert (adapter / "adapter_model.safetensors").read_bytes() == weights
    assert [one["step"] for one in history(tmp_path / "run")] == [1]
    assert json.loads((tmp_path / "run" / "card.json").read_text())["steps"] == 1


def test_shape_of_the_options() -> None:
    """The options that these tests share are keys of the settings."""
    assert SHAPE.keys() <= set(SFTSettings.__dataclass_fields__)
