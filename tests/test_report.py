"""``python -m duet_train report``: a run directory in, one page out."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import Plan, card, write_json, write_lines, write_run

from duet import ConfigurationError
from duet.testing import FakeServer, completion_text
from duet_train.__main__ import main
from duet_train.report import report
from duet_train.reporting.markup import tag, visible
from duet_train.reporting.page import page
from duet_train.reporting.reading import FILES, TEXTS_KEPT, read_run

_TAGS = """
html head meta title style body main script header p span h1 h2 h3 h4 ul li b small section a div details summary figure
figcaption strong output svg path line g circle text rect article input label mark pre table thead tbody tr th td
"""
_ATTRIBUTES = """
lang charset http-equiv content name class id href hidden type min max step value for dir open data-step data-steps
scope viewbox role aria-label aria-hidden d x y x1 x2 y1 y2 cx cy r rx width height
"""
TAGS, ATTRIBUTES = frozenset(_TAGS.split()), frozenset(_ATTRIBUTES.split())
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\u202eevil\x00\ud800]]>-->"


class Elements(HTMLParser):
    """Every element of a page, with its attributes and its own text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def values(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [value or "" for _, attributes in self.found for key, value in attributes.items() if key == name]

    def within(self, tag: str) -> str:
        """The text of all elements of a name."""
        return "".join(text for name, text in self.texts if name == tag)


def words_of(source: str) -> str:
    """What a page says, in one line: without markup, code and style."""
    bare = re.sub(r"<(style|script)>.*?</\1>", "", source, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def page_of(folder: Path) -> str:
    """The page of a run directory."""
    return page(read_run(folder))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns, and was resumed once."""
    return write_run(tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends with one text for all."""
    return write_run(tmp_path_factory.mktemp("collapsed"), Plan(collapses=True, seed=3))


@pytest.fixture(scope="module")
def learned_page(learned: Path) -> str:
    """Its page."""
    return page_of(learned)


# The command


def test_command_writes_the_page_and_says_where(learned: Path, tmp_path: Path) -> None:
    """The verb writes --out and prints its path, on stdout alone."""
    out, talk = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(talk):
        assert main(["report", str(learned), "--out", str(tmp_path / "page.html")]) == 0
    assert out.getvalue() == f"{tmp_path / 'page.html'}\n"
    assert talk.getvalue() == ""
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_page_lies_in_the_run_directory(tmp_path: Path) -> None:
    """Without --out the page is report.html in the run directory, and nothing else is left there."""
    run = write_run(tmp_path / "run", Plan(steps=4, every=2, killed=0))
    assert report(run) == run / "report.html"
    assert sorted(path.name for path in run.iterdir()) == sorted([*FILES[:-1], "report.html"])


@pytest.mark.parametrize(
    ("made", "says"), [("nothing", "does not exist"), ("file", "is a file"), ("empty", "is no run directory")]
)
def test_what_is_no_run_is_one_sentence(made: str, says: str, tmp_path: Path) -> None:
    """What is no run directory is refused with one sentence and exit code 2."""
    path = tmp_path / "run"
    if made == "file":
        path.write_text("{}", encoding="utf-8")
    elif made == "empty":
        path.mkdir()
        (path / "notes.txt").write_text("", encoding="utf-8")
    talk = io.StringIO()
    with redirect_stderr(talk):
        assert main(["report", str(path)]) == 2
    assert says in talk.getvalue()
    assert talk.getvalue().count("\n") == 1


def test_page_that_cannot_be_written_is_one_sentence(learned: Path, tmp_path: Path) -> None:
    """A folder that is not there is the caller's mistake, and nothing is left behind."""
    with pytest.raises(ConfigurationError, match="cannot be written"):
        report(learned, tmp_path / "no folder" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_import_needs_neither_torch_nor_numpy() -> None:
    """The verb's module and its arguments load where the heavy packages are missing."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'trl', 'transformers', 'numpy', 'matplotlib']))"
    code = f"{blocked}\nfrom duet_train.__main__ import main\nmain(['report', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout


def test_missing_numpy_is_named_with_its_command(learned: Path) -> None:
    """Without numpy the verb says what to install."""
    call = f"from duet_train.__main__ import main\nmain(['report', {str(learned)!r}])"
    code = f"import sys; sys.modules['numpy'] = None\n{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_embedder_of_an_endpoint_is_asked(learned: Path, tmp_path: Path) -> None:
    """With --embedder the likeness of profiles is taken from the endpoint's vectors."""
    with FakeServer().run_in_thread() as server, redirect_stdout(io.StringIO()):
        out = tmp_path / "page.html"
        assert main(["report", str(learned), "--out", str(out), "--embedder", f"{server.base_url},small"]) == 0
        assert server.requests
        assert {request.path for request in server.requests} == {"/v1/embeddings"}
    assert out.read_text(encoding="utf-8") != page_of(learned)


def test_embedder_must_be_an_address_and_a_model(learned: Path) -> None:
    """An --embedder that names nothing is refused before anything is read."""
    with redirect_stderr(io.StringIO()) as talk:
        assert main(["report", str(learned), "--embedder", "small"]) == 2
    assert "--embedder must look like" in talk.getvalue()


# The page by itself


def test_page_needs_nothing_but_itself(learned_page: str) -> None:
    """No element loads anything, every link stays on the page, and every target of a link is there."""
    found = Elements(learned_page)
    assert {name for name, _ in found.found} <= TAGS
    assert {name for _, attributes in found.found for name in attributes} <= ATTRIBUTES
    assert {link[0] for link in found.values("href")} == {"#"}
    assert {link[1:] for link in found.values("href")} <= set(found.values("id"))


def test_policy_allows_its_own_style_and_script_alone(learned_page: str) -> None:
    """The policy forbids everything but the one style and the one script, which it names by their digests."""
    found = Elements(learned_page)
    policy = next(attributes["content"] for _, attributes in found.found if "http-equiv" in attributes)
    allowed = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(found.within(kind).encode()).digest()).decode()}'"
        for kind in ("style", "script")
    }
    assert policy == (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; base-uri 'none'; "
        "form-action 'none'"
    )
    assert [name for name, _ in found.found].count("script") == 1


def test_all_elements_are_closed(learned_page: str) -> None:
    """Elements close in the order in which they were opened."""
    assert Elements(learned_page).open == []


def test_every_class_has_a_rule(learned_page: str, collapsed: Path) -> None:
    """The style sheet knows every class of the pages, and its braces match."""
    style = (files("duet_train.reporting") / "page.css").read_text(encoding="utf-8")
    rules = set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"\{[^{}]*\}", "{}", style)))
    classes = [value for page in (learned_page, page_of(collapsed)) for value in Elements(page).values("class")]
    used = {name for value in classes for name in value.split()}
    assert used - rules == {"smooth", "at"}  # how lines are by default, and what the script looks for
    assert style.count("{") == style.count("}")


def test_both_colour_schemes_know_the_same_colours() -> None:
    """The dark scheme gives every colour of a line or a word a value of its own."""
    style = (files("duet_train.reporting") / "page.css").read_text(encoding="utf-8")
    light, dark = (set(re.findall(r"--([a-z]+\d?):", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    assert {"bg", "card", "ink", "soft", "line", "grid", "c0", "c5", "bad", "warn", "good", "plain"} <= dark
    assert dark <= light


def test_page_says_what_was_found_before_it_shows_it(learned_page: str) -> None:
    """The diagnoses in words come before the first chart."""
    assert learned_page.index("In plain words") < learned_page.index("<svg")


@pytest.mark.parametrize(
    "title",
    [
        *("Reward", "Term “rating”", "Term “length”", "Flat groups: all rewards equal, no gradient"),
        *("Form of the completions", "Length of a completion, tokens", "KL from the reference, nat per token"),
        *("Time of a step by phase, s", "Held-out reward", "Held-out reward against the start"),
        *("Control: users shuffled, held-out reward", "Predicted ratings beside the true ones"),
        *("Likeness of different examples’ profiles, mean cosine", "Different n-grams", "Rating words in the profiles"),
    ],
)
def test_run_of_grpo_has_the_chart(title: str, learned_page: str) -> None:
    """Each promised chart is there, with its title."""
    assert f"<strong>{title}</strong>" in learned_page


def test_charts_mark_the_resume(learned_page: str) -> None:
    """Every chart over steps has a line at the step at which the run was resumed."""
    charts = re.findall(r"<svg[^>]*class=\"chart[^>]*>.*?</svg>", learned_page, re.S)
    over_steps = [chart for chart in charts if ">step</text>" in chart]
    assert len(over_steps) > 10
    assert all("<title>step 61: resumed</title>" in chart for chart in over_steps)


def test_profiles_of_one_example_stand_at_every_measured_step(learned_page: str) -> None:
    """A card has the same example at each measurement; the last is open where no script runs."""
    cards = re.findall(r"<article.*?</article>", learned_page, re.S)
    assert len(cards) == 6
    for one in cards:
        assert re.findall(r'data-step="(\d+)"', one) == ["0", "20", "40", "60", "80", "100", "120"]
        assert re.findall(r'<details class="state" open data-step="(\d+)"', one) == ["120"]


def test_shared_phrase_is_marked_alike_on_both_sides(learned_page: str) -> None:
    """A phrase of both profiles has one class in the legend, the user's profile and the item's."""
    for state in re.findall(r'<details class="state".*?</details>', learned_page, re.S):
        shown = set(re.findall(r'<mark class="(p\d)">', state))
        sides = re.findall(r'<section class="side (?:user|item)">.*?</section>', state, re.S)
        assert all(look in side for look in shown for side in sides)
    assert '<mark class="p0">' in learned_page


# Runs of other verbs, and runs that are hardly there


def test_sft_shows_its_losses(tmp_path: Path) -> None:
    """A run without rewards shows loss and accuracy, and says what it has not."""
    logged = [
        {"step": step, "attempt": 0, "loss": 2 / step, "mean_token_accuracy": 0.5 + step / 100} for step in range(1, 31)
    ]
    logged += [{"step": step, "attempt": 0, "eval_loss": 1 + abs(step - 10) / 50} for step in (10, 20, 30)]
    write_lines(tmp_path / "history.jsonl", logged)
    write_json(tmp_path / "card.json", card(Plan()) | {"verb": "sft"})
    words = words_of(page_of(tmp_path))
    assert "Tokens predicted right" in words
    assert "It was best at step 10 (1.00) and has risen to 1.40." in words
    assert "This run has no held-out measurements (held_out.jsonl)." in words
    assert "This run has kept no completions (samples.jsonl, completions.jsonl)." in words


def test_dpo_shows_how_many_pairs_are_ranked_right(tmp_path: Path) -> None:
    """A run on pairs shows its accuracy, and its margins under the trainer's name."""
    logged = [
        {"step": step, "loss": 0.7, "rewards/accuracies": 0.5, "rewards/margins": step / 10} for step in (1, 2, 3)
    ]
    write_lines(tmp_path / "history.jsonl", logged)
    words = words_of(page_of(tmp_path))
    assert "Pairs ranked right" in words
    assert "rewards/margins" in words


def test_exploration_compares_its_models(tmp_path: Path) -> None:
    """An exploration has a row a model and temperature, and no charts over steps."""
    one = {"completion": completion_text(), "reward": 0.5, "terms": {}, "rating": 3.0, "error": None}
    lost = {"completion": "no", "reward": -1.0, "terms": {}, "rating": None, "error": "MalformedCompletion"}
    arms = [{"model": "big", "temperature": 0.7, **one}, {"model": "big", "temperature": 1.0, **lost}]
    common = {"user": "u", "item": "i", "gold": 4.0, "scale": [1, 5], "samples": arms}
    groups = [{"example": number, **common} for number in range(3)]
    write_lines(tmp_path / "groups.jsonl", groups)
    source = page_of(tmp_path)
    assert "big, temperature 0.7 3 100 % 0.500 1.00" in words_of(source)
    assert "big, temperature 1.0 3 0 % −1.00 –" in words_of(source)
    assert ">step</text>" not in source
    assert {link[1:] for link in Elements(source).values("href")} <= set(Elements(source).values("id"))


@pytest.mark.parametrize("name", FILES)
def test_one_empty_file_is_enough(name: str, tmp_path: Path) -> None:
    """A run that has only begun has a page, which says that nothing is there yet."""
    (tmp_path / name).write_text("", encoding="utf-8")
    assert "No step" in words_of(page_of(tmp_path))


def test_run_that_goes_on_says_so(tmp_path: Path) -> None:
    """A card that says "running" is told apart from one that is finished, with the last step on record."""
    write_json(tmp_path / "card.json", card(Plan(steps=50)) | {"status": "running"})
    write_lines(tmp_path / "history.jsonl", [{"step": 7, "reward": 0.1}])
    assert "The run goes on, or was killed. The last step on record is 7 of 50." in words_of(page_of(tmp_path))


def test_page_is_the_same_for_the_same_run(learned: Path, learned_page: str) -> None:
    """Nothing in a page is random or of the moment."""
    assert page_of(learned) == learned_page


@pytest.mark.serial
def test_huge_run_has_a_small_page(tmp_path: Path) -> None:
    """100 000 completions make a page of less than 3 MB in less than 10 s of processor time."""
    texts = [
        json.dumps(completion_text(user_profile=f"Likes maps of {number} and tea. " * 12)) for number in range(500)
    ]
    with (tmp_path / "completions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(100_000):
            terms, rating = '{"rating": 0.5, "length": -0.1}', number % 5 + 1
            file.write(
                f'{{"step": {number // 10}, "attempt": 0, "example": {number // 5}, "group": {number // 5 % 2}, '
                f'"reward": {number % 7 / 7}, "terms": {terms}, "rating": {rating}, "gold": 4.0, "error": null, '
                f'"tokens": 300, "completion": {texts[number % 500]}}}\n'
            )
    started = time.process_time()
    path = report(tmp_path)
    assert time.process_time() - started < 10
    assert path.stat().st_size < 3_000_000
    assert sum(one.text is not None for one in read_run(tmp_path).answers) <= TEXTS_KEPT


# Text from data


def hostile(value: Any) -> Any:
    """The same JSON with hostile text at the end of every string and every key."""
    if isinstance(value, dict):
        kept = {key: hostile(inner) for key, inner in value.items()}
        return kept | {f"{key}{HOSTILE}": hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run all of whose texts, names and keys are hostile."""
    source = write_run(tmp_path_factory.mktemp("source"), Plan(steps=12, every=4, killed=6, resumed=4, held_out=10))
    run = tmp_path_factory.mktemp("run")
    write_lines(run / "card.json", [hostile(json.loads((source / "card.json").read_text()))])
    for name in FILES[1:5]:
        write_lines(run / name, [hostile(json.loads(line)) for line in (source / name).read_text().splitlines()])
    return page_of(run)


def test_hostile_text_makes_no_element(hostile_page: str) -> None:
    """Whatever texts, names and keys hold, the page has its own elements, one script, and no handler."""
    found = Elements(hostile_page)
    assert {name for name, _ in found.found} <= TAGS
    assert {name for _, attributes in found.found for name in attributes} <= ATTRIBUTES
    assert found.within("script") == (files("duet_train.reporting") / "page.js").read_text(encoding="utf-8")
    assert found.open == []
    assert "alert(1)" in words_of(hostile_page)


def test_text_that_turns_around_is_shown_as_its_code(hostile_page: str) -> None:
    """Marks of direction and control characters stand on the page as their code points."""
    assert "\u202e" not in hostile_page
    assert "⟨U+202E⟩evil" in hostile_page
    assert hostile_page.encode("utf-8")


@given(st.text())
def test_text_is_what_a_browser_reads_back(text: str) -> None:
    """Text comes back as it was from an element and from an attribute, hidden characters as their codes."""
    found = Elements(tag("p", text, title=text))
    assert [name for name, _ in found.found] == ["p"]
    assert found.found[0][1] == {"title": visible(text)}
    assert found.within("p") == visible(text)


@given(st.text())
def test_visible_text_can_be_written_and_hides_nothing(text: str) -> None:
    """No control character but tab and newline, no mark of direction and no half of a pair is left."""
    shown = visible(text)
    shown.encode("utf-8")
    assert not set(shown) & {
        *map(chr, range(9)),
        "\r",
        "\x7f",
        "\u200e",
        "\u200f",
        "\u202a",
        "\u202e",
        "\u2066",
        "\ufeff",
    }


def test_markup_leaves_out_what_is_not_there() -> None:
    """None leaves a child or an attribute out, True is an attribute without a value, names lose their underscores."""
    assert (
        tag("input", class_="a", data_step=3, hidden=True, open=False, id=None)
        == '<input class="a" data-step="3" hidden>'
    )
    assert tag("p", "a", None, tag("b", "&")) == "<p>a<b>&amp;</b></p>"


# Any file


_KEYS = """
step attempt replayed reward reward_std kl loss entropy duet/parse_rate duet/flat_groups duet/group_spread
duet/terms/rating duet/seconds/rollout completions/mean_length completions/min_length completions/max_length example
group completion terms rating gold error tokens rows parse_rate mae rewards shuffled_reward shuffled_rewards user item
title status verb data scale settings samples model temperature malformed
"""
KEYS = st.sampled_from(_KEYS.split())
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(completion_text()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
LINES = st.lists(st.dictionaries(KEYS, VALUES, max_size=10).map(lambda line: {"step": 1, **line}) | VALUES, max_size=6)


@given(st.fixed_dictionaries(dict.fromkeys(FILES[1:], LINES)), VALUES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_json_has_a_page(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, list[Any]], about: Any
) -> None:
    """Whatever JSON the files hold, there is a page, and it is well formed."""
    folder = tmp_path_factory.mktemp("any")
    for name, lines in contents.items():
        write_lines(folder / name, lines)
    write_lines(folder / "card.json", [about])
    found = Elements(page_of(folder))
    assert {name for name, _ in found.found} <= TAGS
    assert found.open == []


def numbers_of(source: str) -> Iterator[float]:
    """All coordinates of a page's drawings."""
    for path in re.findall(r' d="([^"]*)"', source):
        yield from map(float, re.findall(r"-?\d+(?:\.\d+)?", path))


def test_drawings_stay_within_their_frames(learned_page: str) -> None:
    """No line of a chart leaves its view box."""
    values = list(numbers_of(learned_page))
    assert len(values) > 1000
    assert all(0 <= value <= 400 for value in values)
