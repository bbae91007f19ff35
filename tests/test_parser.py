"""The section parser: what counts as a section, and that the cuts of a stream do not matter."""

from __future__ import annotations

import doctest
import itertools
import re
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import duet._parser
from duet import (
    Completion,
    CompletionError,
    Cues,
    JointProfile,
    MalformedCompletion,
    Profile,
    ProfileSchema,
    SectionDelta,
    SectionDone,
    SectionParser,
    TruncatedCompletion,
    Usage,
    parse_profile,
)

JOINT = ProfileSchema()
ONE = ProfileSchema("user", "profile")
TWO = ProfileSchema("user", ("cue", "profile"))

Event = SectionDelta | SectionDone
Slot = tuple[str, str]


def whole(texts: dict[Slot, str], schema: ProfileSchema = JOINT) -> str:
    """A completion of the schema with these texts, "text" where there is none."""
    sides = []
    for side in schema.sides:
        inner = "".join(f"<{name}>{texts.get((side, name), 'text')}</{name}>" for name in schema.sections)
        sides.append(f"<{side}_profile>{inner}</{side}_profile>")
    return "\n".join(sides)


def one(text: str) -> str:
    """A completion of `ONE` with this text."""
    return whole({("user", "profile"): text}, ONE)


def parse(
    pieces: str | Sequence[str], schema: ProfileSchema = ONE, finish_reason: str | None = None
) -> dict[Slot, str]:
    parser = SectionParser(schema)
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        parser.feed(piece)
    return dict(parser.close(finish_reason))


def profile_of(pieces: str | Sequence[str]) -> str:
    return parse(pieces)["user", "profile"]


def events_of(pieces: Iterable[str], schema: ProfileSchema) -> list[Event]:
    parser = SectionParser(schema)
    return [event for piece in pieces for event in parser.feed(piece)]


def failure(pieces: str, schema: ProfileSchema = ONE, finish_reason: str | None = None) -> CompletionError:
    with pytest.raises(CompletionError) as caught:
        parse(pieces, schema, finish_reason)
    return caught.value


def joined(events: Iterable[Event]) -> dict[Slot, str]:
    """The deltas of each section, joined."""
    texts: dict[Slot, str] = {}
    for event in events:
        if isinstance(event, SectionDelta):
            slot = event.side, event.section
            texts[slot] = texts.get(slot, "") + event.delta
    return texts


def outcome(pieces: Sequence[str], schema: ProfileSchema) -> object:
    """The sections, or the type and the missing sections of the error."""
    try:
        return parse(pieces, schema)
    except MalformedCompletion as exc:
        return type(exc), exc.missing
    except TruncatedCompletion as exc:
        return type(exc)


def cut(text: str, places: Iterable[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


# Text as it comes from a model: words, white space, and everything that looks like a tag and is none.
SCRAPS = ["<", ">", "</", "<p", "</prof", "<b>", "</b>", "<<", "<cue", "<think>", "é", "漢字", "😀", "İ", "ﬀ", "x"]
FOLDED = [
    "<u\u017fer_profile>",
    "<\u0131tem_profile>",
    "<\u0130tem_profile>",
    "<con\u017ftructed_prompt>",
    "<thin\u212a>",
]
scraps = st.one_of(st.text(max_size=8), st.sampled_from([*SCRAPS, "a < b", "</ profile>", " ", "\n", "\t\n", "\u00a0"]))
CLOSING = [f"</{name}>" for name in ("profile", "think", "cue", "constructed_prompt", "user_profile", "item_profile")]
texts = st.lists(scraps, max_size=6).map("".join).filter(lambda text: not any(tag in text.lower() for tag in CLOSING))
filled = texts.map(lambda text: f"w{text}w")
places = st.lists(st.integers(0, 600), max_size=20)

# Anything at all that is made of the tags themselves.
TAGS = [
    f"<{slash}{name}>" for name in ("user_profile", "item_profile", "cue", "profile", "think") for slash in ("", "/")
]
BLOCKS = ["<user_profile><cue>", "<cue>c</cue>", "<profile>p p</profile>", "<profile> . </profile>", whole({}, TWO)]
soup = st.lists(
    st.one_of(st.sampled_from([*TAGS, *BLOCKS, *FOLDED, *(tag.upper() for tag in TAGS)]), scraps), max_size=14
).map("".join)


# Cuts


@given(st.fixed_dictionaries(dict.fromkeys(JOINT.slots, filled)), places)
@settings(deadline=None, max_examples=100)
def test_cuts_do_not_change_the_sections(sections: dict[Slot, str], ends: list[int]) -> None:
    """Any way to cut a completion gives the sections that were written, character by character."""
    assert parse(cut(whole(sections), ends), JOINT) == sections


edges = st.text(" \n\t\u00a0", max_size=3)


@given(filled, edges, edges, places)
@settings(deadline=None, max_examples=200)
def test_cuts_do_not_change_the_edges(text: str, before: str, after: str, ends: list[int]) -> None:
    """Any way to cut a section with white space around it gives its text without that."""
    assert profile_of(cut(one(before + text + after), ends)) == text


@pytest.mark.parametrize(
    "pieces", [["w", " ", "</profile>"], ["w", "w ", "</profile>"], ["", " w", "</profile>"]], ids=repr
)
def test_white_space_in_a_piece_of_its_own_is_dropped_at_the_edges(pieces: list[str]) -> None:
    """White space at a section's edge is dropped whichever pieces it comes in."""
    assert profile_of(["<user_profile><profile>", *pieces]) == "".join(pieces[:2]).strip()


@given(soup, places)
@settings(deadline=None, max_examples=300)
def test_cuts_do_not_change_what_becomes_of_tag_soup(text: str, ends: list[int]) -> None:
    """Any way to cut any string of tags and texts gives the same sections or the same error."""
    assert outcome(cut(text, ends), TWO) == outcome([text], TWO)


@given(soup)
@settings(deadline=None, max_examples=200)
def test_single_characters_give_what_the_whole_gives(text: str) -> None:
    """A completion fed character by character gives the same sections or the same error as the whole."""
    assert outcome(list(text), TWO) == outcome([text], TWO)


@given(soup, places)
@settings(deadline=None, max_examples=200)
def test_cuts_do_not_change_the_joined_deltas(text: str, ends: list[int]) -> None:
    """Any way to cut any text gives deltas that join to the same texts."""
    assert joined(events_of(cut(text, ends), TWO)) == joined(events_of([text], TWO))


@given(soup, places)
@settings(deadline=None, max_examples=100)
def test_cuts_do_not_change_which_sections_are_done(text: str, ends: list[int]) -> None:
    """Any way to cut any text gives the same finished sections in the same order."""
    done = [
        [event for event in events_of(pieces, TWO) if isinstance(event, SectionDone)]
        for pieces in (cut(text, ends), [text])
    ]
    assert done[0] == done[1]


@given(st.fixed_dictionaries(dict.fromkeys(JOINT.slots, filled)), places)
@settings(deadline=None, max_examples=100)
def test_joined_deltas_are_the_text_of_the_section(sections: dict[Slot, str], ends: list[int]) -> None:
    """The deltas of a section, joined, are the text of its SectionDone."""
    events = events_of(cut(whole(sections), ends), JOINT)
    assert joined(events) == {(e.side, e.section): e.text for e in events if isinstance(e, SectionDone)}


@given(soup, places)
@settings(deadline=None, max_examples=100)
def test_no_delta_is_empty(text: str, ends: list[int]) -> None:
    """A delta always holds text."""
    assert all(event.delta for event in events_of(cut(text, ends), TWO) if isinstance(event, SectionDelta))


@given(soup, places)
@settings(deadline=None, max_examples=60)
def test_completion_is_all_that_was_fed(text: str, ends: list[int]) -> None:
    """The parser's completion is every character fed to it."""
    parser = SectionParser(TWO)
    for piece in cut(text, ends):
        parser.feed(piece)
    assert parser.completion == text


def test_text_is_handed_over_as_it_comes() -> None:
    """A piece of text inside a section is a delta at once."""
    parser = SectionParser(ONE)
    parser.feed("<user_profile><profile>Likes")
    assert parser.feed(" maps") == [SectionDelta("user", "profile", " maps")]


def test_what_may_be_a_tag_is_held_back() -> None:
    """An angle bracket that may begin a tag is held back until it is told apart."""
    parser = SectionParser(ONE)
    parser.feed("<user_profile><profile>Likes")
    assert [parser.feed("</pro"), parser.feed("s")] == [[], [SectionDelta("user", "profile", "</pros")]]


def test_nothing_is_told_of_a_section_without_content() -> None:
    """White space and punctuation are no delta until the section has content."""
    assert events_of(["<user_profile><profile>", " ...", "\n- "], ONE) == []


def test_what_stood_before_the_content_is_told_with_it() -> None:
    """The first delta of a section is all of its text so far, without white space before it."""
    assert events_of(["<user_profile><profile> ", "- ", "maps"], ONE) == [SectionDelta("user", "profile", "- maps")]


@pytest.mark.parametrize("blank", ["...", "- ", "…"], ids=repr)
def test_blank_section_has_no_deltas(blank: str) -> None:
    """The deltas of a name whose first section is blank are those of the section that counts."""
    text = f"<user_profile><profile>{blank}</profile><profile>real</profile>"
    assert joined(events_of([text], ONE)) == {("user", "profile"): "real"}


@pytest.mark.parametrize("end", ["</user_profile>", "</think>"])
def test_abandoned_section_has_told_its_deltas(end: str) -> None:
    """Deltas of a section that its side's closing tag or a late </think> ends are followed by no SectionDone."""
    assert events_of(["<user_profile><profile>maps", end], ONE) == [SectionDelta("user", "profile", "maps")]


def test_section_is_done_as_soon_as_its_tag_closes() -> None:
    """A section's SectionDone comes with the last character of its closing tag."""
    parser = SectionParser(JOINT)
    parser.feed("<user_profile><cue>maps</cue")
    assert parser.feed(">") == [SectionDone("user", "cue", "maps")]


def test_sections_are_done_in_the_order_of_writing() -> None:
    """Sections are reported as done in the order in which they were written."""
    done = [(e.side, e.section) for e in events_of([whole({})], JOINT) if isinstance(e, SectionDone)]
    assert tuple(done) == JOINT.slots


# What counts as a section


@pytest.mark.parametrize("change", [str.upper, str.title, str.swapcase], ids=["upper", "title", "swapped"])
def test_case_of_tags_does_not_matter(change: Callable[[str], str]) -> None:
    """Tags are matched without regard to case."""
    assert profile_of(re.sub("<[^>]*>", lambda tag: change(tag[0]), one("Likes maps"))) == "Likes maps"


@given(st.text(st.characters(exclude_characters="<"), max_size=20), st.text(st.characters(exclude_characters="<")))
@settings(deadline=None, max_examples=60)
def test_text_outside_the_tags_is_passed_over(before: str, after: str) -> None:
    """What stands before, between and after the tags does not change the sections."""
    text = f"{before}<user_profile>{after}<profile>Likes maps</profile>{before}</user_profile>{after}"
    assert profile_of(text) == "Likes maps"


@pytest.mark.parametrize("edge", [" ", "\n\n", "\t", "\u00a0", "\u2003", "\x1f"], ids=repr)
def test_white_space_at_the_edges_is_dropped(edge: str) -> None:
    """A section's text has no white space around it."""
    assert profile_of(one(f"{edge}Likes maps{edge}")) == "Likes maps"


def test_white_space_inside_is_kept() -> None:
    """White space between the words of a section is kept as it is."""
    assert profile_of(one("Likes  maps.\n\n- old\u00a0ones")) == "Likes  maps.\n\n- old\u00a0ones"


@pytest.mark.parametrize(
    "tag", ["<b>", "</cue>", "<item_profile>", "</item_profile>", "<user_profile>", "<think>", "<br/>"]
)
def test_other_tags_inside_a_section_are_text(tag: str) -> None:
    """A tag that does not close the section or its side is part of the text."""
    assert profile_of(one(f"a{tag}b")) == f"a{tag}b"


@pytest.mark.parametrize("odd", FOLDED, ids=ascii)
def test_tag_with_a_letter_of_another_alphabet_is_text(odd: str) -> None:
    """A tag written with a letter that merely folds to an ASCII one is text."""
    assert profile_of(f"{odd}{one('a')}") == "a"


@pytest.mark.parametrize(
    ("tag", "odd", "missing"),
    [
        ("<user_profile>", FOLDED[0], ("user.cue", "user.constructed_prompt", "user.profile")),
        ("<item_profile>", FOLDED[1], ("item.cue", "item.constructed_prompt", "item.profile")),
        ("<item_profile>", FOLDED[2], ("item.cue", "item.constructed_prompt", "item.profile")),
        ("<constructed_prompt>", FOLDED[3], ("user.constructed_prompt", "item.constructed_prompt")),
    ],
    ids=ascii,
)
def test_tag_with_a_letter_of_another_alphabet_opens_nothing(tag: str, odd: str, missing: tuple[str, ...]) -> None:
    """What stands after a tag that merely folds to one of the schema's is missing."""
    assert set(getattr(failure(whole({}).replace(tag, odd), JOINT), "missing", ())) == set(missing)


@pytest.mark.parametrize("odd", FOLDED, ids=ascii)
def test_cuts_do_not_change_what_merely_folds_to_a_tag(odd: str) -> None:
    """A tag that merely folds to one of ours is told apart in whichever pieces it comes."""
    assert profile_of(list(f"{odd}{one('a')}")) == "a"


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u00a0", "...", " … ", "- ."], ids=repr)
def test_blank_section_is_missing(blank: str) -> None:
    """A section of white space and punctuation alone is missing."""
    assert getattr(failure(one(blank)), "missing", None) == ("user.profile",)


def test_blank_section_is_never_done() -> None:
    """A blank section has no SectionDone."""
    assert not any(isinstance(event, SectionDone) for event in events_of([one("...")], ONE))


def test_first_section_of_a_name_wins() -> None:
    """A second section of the same name and side is passed over."""
    assert profile_of("<user_profile><profile>first</profile><profile>second</profile></user_profile>") == "first"


def test_first_section_wins_over_a_later_block_of_the_side() -> None:
    """A section in a second block of the same side does not replace the first."""
    assert profile_of(one("first") + one("second")) == "first"


def test_second_section_has_no_events() -> None:
    """What is passed over gives no events."""
    assert joined(events_of([one("first") + one("second")], ONE)) == {("user", "profile"): "first"}


def test_section_after_a_blank_one_counts() -> None:
    """A blank section does not keep a later one of its name from counting."""
    assert profile_of("<user_profile><profile> </profile><profile>second</profile></user_profile>") == "second"


def test_section_outside_its_side_does_not_count() -> None:
    """A section outside any side's block is no section."""
    assert getattr(failure("<profile>Likes maps</profile>"), "missing", None) == ("user.profile",)


def test_section_in_the_other_sides_block_is_that_sides() -> None:
    """A section belongs to the side in whose block it stands."""
    text = "<item_profile><profile>item</profile></item_profile><user_profile><profile>user</profile></user_profile>"
    assert parse(text, ProfileSchema(sections="profile")) == {("user", "profile"): "user", ("item", "profile"): "item"}


def test_closing_side_abandons_an_open_section() -> None:
    """A side's closing tag ends its block, and a section that is still open there is missing."""
    assert getattr(failure("<user_profile><profile>Likes maps</user_profile>"), "missing", None) == ("user.profile",)


def test_abandoned_section_leaves_the_other_side_alone() -> None:
    """A section left open on the user's side takes nothing from the item's."""
    text = "<user_profile><profile>Likes maps</user_profile>" + whole({}, ProfileSchema("item", "profile"))
    assert getattr(failure(text, ProfileSchema(sections="profile")), "missing", None) == ("user.profile",)


def test_sections_of_a_side_may_come_in_any_order() -> None:
    """The order of the sections in a block does not matter to the parser."""
    text = "<user_profile><profile>p</profile><cue>c</cue></user_profile>"
    assert parse(text, TWO) == {("user", "cue"): "c", ("user", "profile"): "p"}


def test_sections_that_the_schema_leaves_out_are_passed_over() -> None:
    """A section or side that the schema does not have is passed over."""
    assert parse(whole({("user", "profile"): "p"}), ONE) == {("user", "profile"): "p"}


def test_block_that_is_not_closed_is_enough() -> None:
    """Sections count once they are closed, whether or not their side's block is."""
    assert profile_of("<user_profile><profile>Likes maps</profile>") == "Likes maps"


def test_long_section_is_kept_whole() -> None:
    """A section of a megabyte is kept whole, token by token."""
    pieces = ["<user_profile><profile>", *(["word "] * 200_000), "end</profile>"]
    assert profile_of(pieces) == "word " * 200_000 + "end"


# Reasoning


def test_thinking_is_passed_over() -> None:
    """Tags inside <think> do not count."""
    assert profile_of(f"<think>{one('draft')}</think>{one('final')}") == "final"


def test_thinking_gives_no_events() -> None:
    """Sections inside <think> give no events."""
    assert joined(events_of([f"<think>{one('draft')}</think>{one('final')}"], ONE)) == {("user", "profile"): "final"}


def test_thinking_that_never_ends_is_a_truncated_completion() -> None:
    """A completion that ends inside <think> was cut short, whatever its finish_reason."""
    assert isinstance(failure(f"<think>{one('draft')}", ONE, "stop"), TruncatedCompletion)


def test_headless_thinking_drops_what_stood_before() -> None:
    """A </think> whose opening tag was part of the prompt drops every section before it."""
    assert profile_of(f"{one('draft')}</think>{one('final')}") == "final"


def test_headless_thinking_inside_a_section_drops_it() -> None:
    """A </think> without its opening tag ends even an open section."""
    assert profile_of(f"<user_profile><profile>hm</think>{one('final')}") == "final"


def test_profile_before_headless_thinking_is_no_profile() -> None:
    """A completion with sections before a headless </think> alone lacks them all."""
    assert getattr(failure(f"{one('draft')}</think>"), "missing", None) == ("user.profile",)


# The end


@pytest.mark.parametrize("torso", ["", "<user_profile><profile>Likes ma", "<user_profile><profile>Likes</pro", "Hello"])
def test_token_limit_makes_a_truncated_completion(torso: str) -> None:
    """With sections missing, finish_reason "length" tells a cut completion."""
    assert isinstance(failure(torso, ONE, "length"), TruncatedCompletion)


@pytest.mark.parametrize(
    ("torso", "advised"),
    [
        ("", True),
        ("Sure! Here is", True),
        ("<think>hm", True),
        ("<user_profile>", False),
        ("<user_profile><profile>Likes ma", False),
        (f"{one('Likes maps.')}and then", False),
    ],
)
def test_grammar_is_advised_where_no_section_was_opened(torso: str, advised: bool) -> None:
    """Whoever keeps to the form needs more tokens; only who never began needs constrained=True."""
    assert ("constrained=True" in str(failure(torso, ProfileSchema(sections="profile"), "length"))) == advised


def test_token_limit_after_the_last_section_is_fine() -> None:
    """With every section closed, finish_reason "length" does no harm."""
    assert parse(one("Likes maps") + "and so", ONE, "length") == {("user", "profile"): "Likes maps"}


@pytest.mark.parametrize("finish_reason", [None, "stop", "content_filter"])
def test_any_other_end_makes_a_malformed_completion(finish_reason: str | None) -> None:
    """With sections missing, any other finish_reason tells a malformed completion."""
    assert isinstance(failure("<user_profile><profile>Likes ma", ONE, finish_reason), MalformedCompletion)


def test_unusual_finish_reason_is_named() -> None:
    """The message of a malformed completion names a finish_reason that explains it."""
    assert "content_filter" in str(failure("Hello", ONE, "content_filter"))


@given(st.sets(st.sampled_from(JOINT.slots), min_size=1))
@settings(deadline=None, max_examples=40)
def test_missing_sections_are_named_in_order(gone: set[Slot]) -> None:
    """A malformed completion names exactly the sections that are missing, in the schema's order."""
    error = failure(whole(dict.fromkeys(gone, "")), JOINT)
    assert getattr(error, "missing", None) == tuple(
        f"{side}.{name}" for side, name in JOINT.slots if (side, name) in gone
    )


def test_missing_sections_stand_in_the_message() -> None:
    """The message of a malformed completion names what is missing."""
    assert "lacks item.cue, item.profile" in str(failure(whole({("item", "cue"): "", ("item", "profile"): ""}), JOINT))


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_error_carries_the_completion(finish_reason: str) -> None:
    """The error of a completion that is no profile carries its whole text."""
    assert failure("<user_profile><prof", ONE, finish_reason).completion == "<user_profile><prof"


def test_parser_may_be_closed_twice() -> None:
    """Closing again gives the same sections."""
    parser = SectionParser(ONE)
    parser.feed(one("Likes maps"))
    assert parser.close() == parser.close()


# Whole completions


def test_profile_holds_every_section() -> None:
    """A parsed profile has each section in the field of its name."""
    sections = {(side, name): f"{side} {name}" for side, name in JOINT.slots}
    profile = parse_profile(Completion(whole(sections)), JOINT)
    assert (profile.user, profile.item) == (
        Profile(text="user profile", cue="user cue", constructed_prompt="user constructed_prompt"),
        Profile(text="item profile", cue="item cue", constructed_prompt="item constructed_prompt"),
    )


def test_profile_carries_text_model_and_usage() -> None:
    """A parsed profile carries the whole completion, the model's name and the usage."""
    profile = parse_profile(Completion(one("Likes maps"), model="m", usage=Usage(7, 5)), ONE)
    assert (profile.completion, profile.model, profile.usage) == (one("Likes maps"), "m", Usage(7, 5))


def test_side_that_the_schema_leaves_out_is_none() -> None:
    """A profile has no side that the schema leaves out."""
    assert parse_profile(Completion(one("Likes maps")), ONE).item is None


def test_section_that_the_schema_leaves_out_is_none() -> None:
    """A profile has no section that the schema leaves out."""
    assert parse_profile(Completion(one("Likes maps")), ONE).user == Profile(text="Likes maps")


def test_given_cues_stand_in_the_profile() -> None:
    """Cues that were given in the prompt are those of the profile."""
    schema = JOINT.without("cue")
    profile = parse_profile(Completion(whole({}, schema)), schema, Cues("likes maps", "many maps"))
    assert [side and side.cue for side in (profile.user, profile.item)] == ["likes maps", "many maps"]


def test_written_cues_win_over_given_ones() -> None:
    """Where the completion has cues of its own, those are the profile's."""
    profile = parse_profile(Completion(whole({("user", "cue"): "own"})), JOINT, Cues("given", "given"))
    assert profile.user is not None
    assert profile.user.cue == "own"


def test_schema_without_profiles_makes_no_sides() -> None:
    """Cues alone make no profile of either side."""
    schema = ProfileSchema(sections="cue")
    profile = parse_profile(Completion(whole({}, schema)), schema)
    assert profile == JointProfile(completion=whole({}, schema))


@pytest.mark.parametrize(
    ("finish_reason", "kind"),
    [("length", TruncatedCompletion), ("stop", MalformedCompletion), (None, MalformedCompletion)],
)
def test_finish_reason_decides_the_error(finish_reason: str | None, kind: type[CompletionError]) -> None:
    """The completion's own finish_reason decides between truncated and malformed."""
    with pytest.raises(kind):
        parse_profile(Completion("<user_profile>", finish_reason=finish_reason), ONE)


def test_examples_in_the_docstrings_hold() -> None:
    """The examples in the parser's docstrings give what they show, and there are some."""
    results = doctest.testmod(duet._parser)
    assert (results.failed, results.attempted > 0) == (0, True)
