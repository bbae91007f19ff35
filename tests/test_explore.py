"""``python -m duet_train explore``: groups sampled and scored against a server, resumed, and what their table says."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import anyio
import pytest
from evaluations import prepared, tools
from hypothesis import given
from hypothesis import strategies as st

from duet import ConfigurationError, ProfileSchema, RatingScale
from duet.testing import Answer, FakeServer, Request, ScriptedEndpoint, completion_text
from duet_train.__main__ import main
from duet_train.card import read_card
from duet_train.dataset import training_rows
from duet_train.exploration import distinct, expected_best, figures, markdown, strategies, word_likeness
from duet_train.explore import PATIENCE, ExploreSettings
from duet_train.generators import parse_generators
from duet_train.groups import Group, Sample, append_group, group_file, mend, read_groups
from duet_train.methods import build
from duet_train.settings import Settings, read

USER_ONLY = ProfileSchema(sides=("user",), sections=("profile",))
rewards = st.lists(st.floats(-2, 2), min_size=1, max_size=7)
texts = st.lists(st.sampled_from(["likes", "dice", "hates", "maps"]), max_size=6).map(" ".join)


def sample(reward: float | None, text: str = "likes dice", model: str = "a", temperature: float = 1.0) -> Sample:
    """A sample of the one section that these tests need."""
    completion = completion_text(USER_ONLY, user_profile=text) if text else "no profile"
    error = None if text else "MalformedCompletion: lacks user.profile"
    return Sample(
        model=model,
        temperature=temperature,
        seed=0,
        completion=completion,
        reward=reward,
        error=error,
        completion_tokens=len(text),
    )


def group(samples: Sequence[Sample], example: int = 0, user: str = "u") -> Group:
    """A group of these samples."""
    return Group(example=example, user=user, item="i", gold=4.0, scale=RatingScale(), samples=tuple(samples))


# Best of so many calls


@given(rewards, st.integers(1, 7))
def test_expected_best_is_the_mean_over_all_choices(values: list[float], calls: int) -> None:
    """It is the mean of the best over every choice of so many rewards, and nan where there are too few."""
    choices = [max(chosen) for chosen in combinations(values, calls)]
    assert expected_best(values, calls) == pytest.approx(fmean(choices) if choices else math.nan, nan_ok=True)


@given(rewards)
def test_more_calls_are_never_worse(values: list[float]) -> None:
    """From the mean to the maximum it never falls."""
    best = [expected_best(values, calls) for calls in range(1, len(values) + 1)]
    assert best == pytest.approx(sorted(best))
    assert best[0] == pytest.approx(fmean(values))
    assert best[-1] == pytest.approx(max(values))


def test_no_calls_have_no_best() -> None:
    """Nothing is known of the best of no calls."""
    assert math.isnan(expected_best([1.0], 0))


# Likeness


@given(texts, texts)
def test_likeness_is_a_cosine_of_counts(first: str, second: str) -> None:
    """It is symmetrical, 1 for the same words, 0 for none in common, and nan without words."""
    value = word_likeness(first, second)
    assert value == pytest.approx(word_likeness(second, first), nan_ok=True)
    if not first or not second:
        assert math.isnan(value)
    elif not set(first.split()) & set(second.split()):
        assert value == 0
    if first:
        assert word_likeness(first, first) == pytest.approx(1)


def test_distinct_counts_runs_of_words() -> None:
    """The same text twice has half of its runs, texts without a common run all of them, single words none."""
    assert distinct("likes long games", "likes long games") == 0.5
    assert distinct("likes long games", "hates dice too") == 1
    assert distinct("likes long games", "likes long films") == 0.75
    assert math.isnan(distinct("likes", "dice"))


# The table


def test_strategies_are_arms_and_their_unions() -> None:
    """Two models at two temperatures are nine ways to spend calls."""
    arms = [(model, temperature) for model in "ab" for temperature in (0.5, 1.0)]
    found = strategies([group([sample(1.0, model=model, temperature=t) for model, t in arms])])
    assert [one.name for one in found] == [
        *("a, T 0.5", "a, T 1", "b, T 0.5", "b, T 1"),
        *("a, all temperatures", "b, all temperatures", "all models, T 0.5", "all models, T 1"),
        "all models, all temperatures",
    ]
    assert [len(one.arms) for one in found] == [1, 1, 1, 1, 2, 2, 2, 2, 4]


def test_one_arm_is_one_strategy() -> None:
    """Where nothing is pooled, nothing is listed twice."""
    assert [one.name for one in strategies([group([sample(1.0), sample(0.5)])])] == ["a, T 1"]


def test_figures_by_hand() -> None:
    """Two examples, two models: best of calls, gain over the first arm, parse rate and tokens come out as by hand."""
    groups = [
        group([sample(0.0), sample(1.0, "hates maps"), sample(0.5, model="b"), sample(-1.0, "", model="b")], 0, "u"),
        group([sample(0.5), sample(0.5), sample(1.0, model="b"), sample(None, model="b")], 1, "v"),
    ]
    found = figures(groups, {0: USER_ONLY, 1: USER_ONLY})
    first, second, both = found["a, T 1"], found["b, T 1"], found["all models, T 1"]
    assert first["best"][1]["estimate"] == pytest.approx((0.5 + 0.5) / 2)
    assert first["best"][2]["estimate"] == pytest.approx((1.0 + 0.5) / 2)
    assert (second["best"][1]["examples"], second["best"][2]["examples"]) == (2, 1)
    assert second["best"][2]["estimate"] == 0.5
    assert second["gain"][2]["estimate"] == pytest.approx(0.5 - 1.0)
    assert both["best"][2]["estimate"] == pytest.approx(
        fmean([expected_best([0.0, 1.0, 0.5, -1.0], 2), expected_best([0.5, 0.5, 1.0], 2)])
    )
    assert (both["calls"], both["parse_rate"]) == (4, 7 / 8)
    assert first["tokens"] == 10
    assert first["similarity"]["estimate"] == pytest.approx((0 + 1) / 2)
    assert first["distinct"]["estimate"] == pytest.approx((1 + 0.5) / 2)


def test_table_shows_powers_of_two_and_the_most() -> None:
    """The columns are 1, 2, 4 and so on calls, and all of them."""
    text = markdown(figures([group([sample(float(n)) for n in range(6)])], {0: USER_ONLY}))
    assert "| best of 1 | best of 2 | best of 4 | best of 6 |" in " ".join(text.splitlines()[2].split())
    assert "Gain" not in text


# The file of groups


def test_groups_are_read_as_they_were_written(tmp_path: Path) -> None:
    """What is appended is what is read, terms, missing rewards and odd characters included."""
    groups = [group([sample(0.5, "two\nlines “quoted” \u2028")]), group([sample(None), sample(1.0)], example=7)]
    for one in groups:
        append_group(tmp_path / "groups.jsonl", one)
    assert read_groups(group_file(tmp_path)) == groups


def test_torn_line_is_cut_off(tmp_path: Path) -> None:
    """A line that a kill tore is no group, and the next one starts on a line of its own."""
    file = tmp_path / "groups.jsonl"
    append_group(file, group([sample(0.5)]))
    with file.open("a") as torn:
        torn.write('{"example": 1, "us')
    assert len(read_groups(file)) == 1
    mend(file)
    append_group(file, group([sample(0.5)], example=2))
    assert [one.example for one in read_groups(file)] == [0, 2]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("not JSON", "groups.jsonl:1: not JSON"),
        ("[1]", "groups.jsonl:1: not a JSON object"),
        ('{"example": 1}', "the key 'scale' is missing; there are example"),
        ('{"scale": [1, 5], "samples": [], "example": "1"}', "'example' holds '1', which is of the wrong kind"),
        (
            '{"scale": [1, 5], "samples": [{}], "example": 1, "user": "u", "item": "i", "gold": 4}',
            "the key 'model' is missing; there are none",
        ),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    """A line that is no group is an error that names line and key."""
    (tmp_path / "groups.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_groups(tmp_path / "groups.jsonl")
    assert sentence in str(caught.value)


# Generators


def test_generators_are_read() -> None:
    """Addresses begin a generator; a third part names the variable of its key."""
    found = parse_generators("http://h:1/v1,org/model-a, https://g/v1,b,MY_KEY,local")
    assert [(one.base_url, one.model, one.key_variable) for one in found] == [
        ("http://h:1/v1", "org/model-a", ""),
        ("https://g/v1", "b", "MY_KEY"),
        ("", "local", ""),
    ]


# The command


def answer(request: Request) -> Answer:
    """A profile that depends on the seed, the same for 0 and 7, and a rating that depends on the profile."""
    asked = request.json
    if "You predict how one user" in asked["messages"][0]["content"]:
        return Answer(f"<rating>{1 + len(asked['messages'][1]['content']) % 5}.00</rating>")
    if asked["seed"] == 3:
        return Answer("no profile")
    return Answer(completion_text(USER_ONLY, user_profile=f"{'very ' * (asked['seed'] % 7)}keen on dice."))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log."""
    return prepared(tmp_path_factory.mktemp("explore") / "data").directory


def words_of(server: FakeServer, data: Path, out: Path, *more: str, mode: str = "decimal") -> list[str]:
    """A command line: two models at two temperatures, eight samples for each of four examples."""
    url = server.base_url
    return [
        *("explore", "--data", str(data), "--output_dir", str(out), "--rows", "4"),
        *("--generators", f"{url},one,{url},two", "--temperatures", "0.5,1.0", "--samples", "8"),
        *("--recommender", f"{url},judge", "--sides", "user", "--sections", "profile", "--history_limit", "3"),
        *("--recommender_mode", mode),
        *more,
    ]


def generations(requests: Sequence[Request]) -> Counter[str]:
    """What was asked of the generators, and how often."""
    asked = [request.json for request in requests if request.path.endswith("/chat/completions")]
    return Counter(json.dumps(one, sort_keys=True) for one in asked if one["model"] != "judge")


def test_groups_hold_all_arms_scored(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each group has its samples dealt in turn to models and temperatures, each with reward and rating; the card says
    finished, and the table is printed."""
    with FakeServer(answer).run_in_thread() as server:
        assert main(words_of(server, data, tmp_path)) == 0
        asked = Counter(json.dumps(request.json, sort_keys=True) for request in server.requests)
    assert set(asked.values()) == {1}
    assert asked.total() == 4 * (8 + 6)
    groups = read_groups(group_file(tmp_path))
    arms = [("one", 0.5), ("two", 0.5), ("one", 1.0), ("two", 1.0)] * 2
    assert [[one.arm for one in found.samples] for found in groups] == [arms] * 4
    assert [len({one.seed for one in found.samples}) for found in groups] == [8] * 4
    for one in (one for found in groups for one in found.samples):
        malformed = one.seed == 3
        assert one.well_formed is not malformed
        assert (one.reward == -1) is malformed
        assert malformed or one.reward == pytest.approx(1 - abs(_gold(groups, one) - (one.rating or 0)) / 4)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["verb"], card["status"], card["data"]["rows"]) == ("explore", "finished", 4)
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "explore.md").read_text()
    assert "4 examples, 4 of them with a well-formed completion" in printed
    assert "all models, all temperatures" in printed
    assert "best of 8" in printed


def _gold(groups: Sequence[Group], sample: Sample) -> float:
    return next(one.gold for one in groups if any(sample is other for other in one.samples))


def test_second_run_asks_nothing(data: Path, tmp_path: Path) -> None:
    """The same command again asks no endpoint, and more rows ask for the new ones alone."""
    with FakeServer(answer).run_in_thread() as server:
        assert main(words_of(server, data, tmp_path)) == 0
        before = len(server.requests)
        kept = (tmp_path / "groups.jsonl").read_bytes()
        assert main(words_of(server, data, tmp_path)) == 0
        assert len(server.requests) == before
        assert (tmp_path / "groups.jsonl").read_bytes() == kept
        assert main(words_of(server, data, tmp_path, "--rows", "5")) == 0
        assert generations(server.requests).total() == 5 * 8
        assert max(generations(server.requests).values()) == 1
    assert (tmp_path / "groups.jsonl").read_bytes().startswith(kept)


@pytest.mark.faults
@pytest.mark.serial
def test_killed_run_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    """After SIGKILL the same command keeps the finished groups, and asks nothing a second time that was answered."""
    reached, lock = threading.Event(), threading.Lock()
    state = {"asked": 0, "hanging": True}

    def hanging(request: Request) -> Answer:
        with lock:
            state["asked"] += 1
            if state["hanging"] and state["asked"] > 30:
                reached.set()
                return Answer(fault="hang")
        return answer(request)

    with FakeServer(hanging).run_in_thread() as server:
        line = words_of(server, data, tmp_path, "--concurrency", "2", "--recommender_concurrency", "1")
        process = subprocess.Popen([sys.executable, "-m", "duet_train", *line], stderr=subprocess.DEVNULL)  # noqa: S603
        try:
            assert reached.wait(40)
            threading.Event().wait(0.5)  # what was answered is being written
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        first = generations(server.requests[:30])
        kept = (tmp_path / "groups.jsonl").read_bytes()
        assert 0 < kept.count(b"\n") < 4
        state["hanging"], seen = False, len(server.requests)
        assert main(line) == 0
        again = generations(server.requests[seen:])
    assert not first.keys() & again.keys()
    assert (tmp_path / "groups.jsonl").read_bytes().startswith(kept)
    assert len(read_groups(group_file(tmp_path))) == 4
    assert first.total() + again.total() == 4 * 8


def test_refused_example_is_left_for_the_next_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An example that an endpoint failed on has no group and makes the exit code 1; the next run asks for what is
    missing alone."""
    refused: list[str] = []

    def partly(request: Request) -> Answer:
        asked = request.json
        if asked["model"] == "two" and asked["seed"] == 7:
            content = asked["messages"][1]["content"]
            if not refused:
                refused.append(content)
            if content in refused:
                return Answer(status=400)
        return answer(request)

    with FakeServer(partly).run_in_thread() as server:
        assert main(words_of(server, data, tmp_path)) == 1
        assert len(read_groups(group_file(tmp_path))) == 3
        assert "1 of 4 examples unfinished" in capsys.readouterr().err
        assert json.loads((tmp_path / "card.json").read_text())["status"] == "unfinished"
        before = len(server.requests)
        refused[0] = "nothing"
        assert main(words_of(server, data, tmp_path)) == 0
        assert generations(server.requests[before:]).total() == 1
    assert len(read_groups(group_file(tmp_path))) == 4


@pytest.mark.parametrize("before", ["decimal", "integer"])
def test_groups_go_on_in_the_mode_they_were_scored_in(
    data: Path, tmp_path: Path, before: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups of 0.1, scored by decimals since nobody said otherwise, are gone on with in the same way."""
    with FakeServer(answer).run_in_thread() as server:
        assert main(words_of(server, data, tmp_path, mode=before)) == 0
        asked = len(server.requests)
        assert main(words_of(server, data, tmp_path, "--rows", "5", mode="auto")) == 0
        later = [request.json for request in server.requests[asked:] if request.json["model"] == "judge"]
    assert later
    assert not any(request.get("logprobs") for request in later)
    assert read_card(tmp_path)["settings"]["recommender_mode"] == before
    assert len(read_groups(group_file(tmp_path))) == 5


def test_dead_endpoint_ends_the_run_early(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where too large a share of the first examples fails, the rest is not asked."""
    with FakeServer(Answer(status=401)).run_in_thread() as server:
        assert main(words_of(server, data, tmp_path, "--rows", "30", "--samples", "4", "--concurrency", "4")) == 1
        asked = {json.dumps(request.json["messages"]) for request in server.requests}
    assert PATIENCE <= len(asked) < 20
    assert "EndpointRejected" in capsys.readouterr().err


def test_unreadable_rating_has_no_reward(data: Path, tmp_path: Path) -> None:
    """An answer of the recommender that holds no rating is a sample without a reward, not one of 0."""

    def unreadable(request: Request) -> Answer:
        return Answer("no rating") if request.json["model"] == "judge" else answer(request)

    with FakeServer(unreadable).run_in_thread() as server:
        assert main(words_of(server, data, tmp_path, "--rows", "1")) == 0
    (found,) = read_groups(group_file(tmp_path))
    assert [one.reward for one in found.samples] == [None] * 3 + [-1] + [None] * 4
    assert all("RatingError" in str(one.error) for one in found.samples if one.reward is None)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--generators", ""], "generators is missing"),
        (["--generators", "model"], "generators must be URL,MODEL"),
        (["--generators", "http://h/v1"], "is no URL,MODEL"),
        (["--generators", "http://h/v1,m,http://g/v1,m"], "two are called 'm'"),
        (["--temperatures", "hot"], "temperatures must be numbers"),
        (["--temperatures", "1,1"], "temperatures must be different numbers"),
        (["--samples", "3"], "samples = 3 is too few for 4 pairs"),
        (["--concurrency", "0"], "concurrency must be at least 1"),
        (["--generator_extra_body", "{"], "generator_extra_body must be JSON"),
        (["--similarity", "taste"], "similarity must be words or embedding"),
        (["--recommender", ""], "recommender must be"),
        (["--learning_rate", "1"], "unknown key or option '--learning_rate'"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_mistake_is_one_sentence(
    data: Path, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with exit code 2 and one sentence on stderr, before anything is asked."""
    with FakeServer(answer).run_in_thread() as server:
        assert main([*words_of(server, data, tmp_path / "out"), *more]) == 2
        assert not server.requests
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("duet_train explore: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_shipped_configuration_is_read(data: Path, tmp_path: Path) -> None:
    """LettinGo's file holds the paper's ten samples at temperature 1, and leaves nothing over that explore does not
    know."""
    args = argparse.Namespace(config="lettingo", verb="explore", rest=[], data=str(data), output_dir=str(tmp_path))
    args.generators = "http://h/v1,m"
    settings, keys, _ = read(args, ExploreSettings)
    assert keys == {}
    assert (settings.samples, settings.degrees, settings.rewards) == (10, [1.0], "sentiment")
    assert settings.schema == USER_ONLY


def test_policy_is_evaluated_on_the_prompt_that_it_was_trained_on(tmp_path: Path) -> None:
    """The method lettingo-policy asks word for word what the rows of LettinGo's configuration ask."""
    log = prepared(tmp_path / "data")
    settings = Settings(data=str(tmp_path), sides="user", sections="profile", independent=True, history_limit=4)
    settings.evidence_limit, settings.review_chars, settings.section_chars = 5, 30, 120
    endpoint = ScriptedEndpoint(completion_text(USER_ONLY))
    method = build("lettingo-policy", tools(tmp_path, endpoint))
    rows = training_rows(log, settings, seed=0)
    for one in log.examples("train"):
        anyio.run(method.profile, one.profile_user, one.example.item)
    assert [tuple(messages) for messages, _ in endpoint.calls] == [row.messages for row in rows]
    assert "\nITEM\n" not in rows[0].messages[1]["content"]


@pytest.mark.parametrize(
    ("more", "name"),
    [(["--temperatures", "0.5,0.9"], "temperatures"), (["--samples", "9"], "samples"), (["--seed", "1"], "seed")],
)
def test_other_settings_cannot_go_on(
    data: Path, tmp_path: Path, more: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder whose groups were made with other settings is refused, and stays as it is."""
    with FakeServer(answer).run_in_thread() as server:
        assert main(words_of(server, data, tmp_path, "--rows", "1")) == 0
        kept = (tmp_path / "groups.jsonl").read_bytes()
        assert main(words_of(server, data, tmp_path, *more)) == 2
    assert f"made with {name} = " in capsys.readouterr().err
    assert (tmp_path / "groups.jsonl").read_bytes() == kept


def test_no_torch_is_needed(data: Path, tmp_path: Path) -> None:
    """A whole run imports no torch."""
    code = (
        "import sys; from duet_train.__main__ import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules), 'imported'; sys.exit(code)"
    )
    with FakeServer(answer).run_in_thread() as server:
        line = words_of(server, data, tmp_path, "--rows", "1")
        done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
