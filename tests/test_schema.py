"""The schema: order, names, skeleton and grammar of a completion."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import Completion, ConfigurationError, MalformedCompletion, ProfileSchema, SectionParser, parse_profile

SIDES = ("user", "item")
SECTIONS = ("cue", "constructed_prompt", "profile")


def choices(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every choice of at least one name, in the order of `names`."""
    return [chosen for size in range(1, len(names) + 1) for chosen in itertools.combinations(names, size)]


SCHEMAS = [ProfileSchema(sides, sections) for sides in choices(SIDES) for sections in choices(SECTIONS)]
every_schema = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: f"{schema.sides}-{schema.sections}")


def rules(schema: ProfileSchema) -> dict[str, str]:
    """The grammar's rules by name."""
    return dict(line.split(" ::= ", 1) for line in schema.grammar().splitlines())


def tokens(rule: str) -> list[str]:
    """A rule's literals, character classes and names, in order."""
    return re.findall(r'"[^"]*"|\[\^[^\]]*\](?:\{\d+,\d+\})?|[\w-]+', rule)


def to_regex(schema: ProfileSchema) -> str:
    """The grammar, which has no recursion, as one regular expression."""
    known = rules(schema)

    def expand(token: str) -> str:
        if token.startswith('"'):
            return re.escape(token[1:-1].replace("\\n", "\n"))
        return token if token.startswith("[") else "".join(map(expand, tokens(known[token])))

    return expand("root")


def written(schema: ProfileSchema, texts: Iterable[str]) -> str:
    """The skeleton with these texts in its sections, in order."""
    pieces = schema.skeleton().split("...")
    return "".join(piece + text for piece, text in itertools.zip_longest(pieces, texts, fillvalue=""))


def filled(schema: ProfileSchema) -> str:
    """The skeleton with a text of its own in every section."""
    return written(schema, (f"{side} {name}" for side, name in schema.slots))


def sections_of(schema: ProfileSchema, text: str) -> dict[tuple[str, str], str]:
    parser = SectionParser(schema)
    parser.feed(text)
    return dict(parser.close())


# Order and names


@given(st.permutations(SIDES), st.permutations(SECTIONS))
@settings(deadline=None, max_examples=30)
def test_order_is_duets_whatever_the_order_given(sides: list[str], sections: list[str]) -> None:
    """Sides and sections stand in DUET's order, whatever order they are named in."""
    assert ProfileSchema(sides, sections) == ProfileSchema(SIDES, SECTIONS)


@pytest.mark.parametrize(
    "sides", [("item", "user", "item"), ["item", "user"], {"user", "item"}], ids=lambda sides: type(sides).__name__
)
def test_sides_may_be_any_iterable(sides: list[str]) -> None:
    """Sides may come in any iterable and more than once."""
    assert ProfileSchema(sides).sides == SIDES


def test_a_single_name_stands_for_itself() -> None:
    """A str is one name, not an iterable of letters."""
    assert ProfileSchema("item", "profile").slots == (("item", "profile"),)


def test_slots_are_in_the_order_of_writing() -> None:
    """Every section of the user's side comes before any of the item's."""
    assert ProfileSchema().slots == tuple(itertools.product(SIDES, SECTIONS))


@pytest.mark.parametrize("sides", [(), ("user", "film"), "", "User", ("profile",)], ids=repr)
def test_unknown_sides_are_refused(sides: tuple[str, ...]) -> None:
    """A side that is not known, or none at all, is refused."""
    with pytest.raises(ConfigurationError, match="sides must be some of user, item"):
        ProfileSchema(sides)


@pytest.mark.parametrize("sections", [(), ("cue", "summary"), "", "Profile", ("user",)], ids=repr)
def test_unknown_sections_are_refused(sections: tuple[str, ...]) -> None:
    """A section that is not known, or none at all, is refused."""
    with pytest.raises(ConfigurationError, match="sections must be some of cue, constructed_prompt, profile"):
        ProfileSchema(sections=sections)


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_that_leaves_no_room_is_refused(limit: int) -> None:
    """A section must be allowed at least one character."""
    with pytest.raises(ConfigurationError, match="max_chars"):
        ProfileSchema(max_chars=limit)


@pytest.mark.parametrize("section", SECTIONS)
def test_without_leaves_out_that_section_alone(section: str) -> None:
    """A schema without a section has all its other sections, sides and limit."""
    expected = ProfileSchema(sections=[name for name in SECTIONS if name != section], max_chars=7)
    assert ProfileSchema(max_chars=7).without(section) == expected


# Skeleton


@every_schema
def test_filled_skeleton_parses(schema: ProfileSchema) -> None:
    """The skeleton that a prompt shows, its dots replaced by texts, parses to those texts."""
    assert sections_of(schema, filled(schema)) == {(side, name): f"{side} {name}" for side, name in schema.slots}


@every_schema
def test_parsed_sections_come_in_the_schemas_order(schema: ProfileSchema) -> None:
    """The parser hands over the sections in the order of the schema's slots."""
    assert tuple(sections_of(schema, filled(schema))) == schema.slots


@every_schema
def test_copied_skeleton_is_no_profile(schema: ProfileSchema) -> None:
    """A completion that copies the skeleton, dots and all, lacks every section."""
    with pytest.raises(MalformedCompletion) as caught:
        sections_of(schema, schema.skeleton())
    assert caught.value.missing == tuple(f"{side}.{name}" for side, name in schema.slots)


# Grammar


@every_schema
def test_grammar_defines_every_rule_that_it_uses(schema: ProfileSchema) -> None:
    """Every name in the grammar is the name of a rule."""
    known = rules(schema)
    used = {token for rule in known.values() for token in tokens(rule) if re.fullmatch(r"[a-z-]+", token)}
    assert used <= known.keys()


@every_schema
def test_grammar_uses_every_rule_that_it_defines(schema: ProfileSchema) -> None:
    """Every rule of the grammar but the root is used by another one."""
    known = rules(schema)
    used = {token for rule in known.values() for token in tokens(rule)}
    assert known.keys() - used == {"root"}


@every_schema
def test_grammar_writes_each_tag_once_a_side(schema: ProfileSchema) -> None:
    """A string of the grammar holds both tags of every section once a side."""
    written = to_regex(schema).replace("\\", "")
    counts = {name: (written.count(f"<{name}>"), written.count(f"</{name}>")) for name in SECTIONS}
    assert counts == {name: (len(schema.sides) * (name in schema.sections),) * 2 for name in SECTIONS}


@every_schema
def test_grammar_holds_the_filled_skeleton(schema: ProfileSchema) -> None:
    """The skeleton, its dots replaced by texts, is a string of the grammar."""
    assert re.fullmatch(to_regex(schema), filled(schema))


@pytest.mark.parametrize(
    "broken",
    [
        ("<profile>item profile", "<profile>"),
        ("<profile>item", "<profile> item"),
        ("<profile>item", "<profile>\u00a0item"),
        ("<profile>item", "<profile>...item"),
        ("<profile>item", "<profile>item < user"),
        ("</user_profile>\n", ""),
        ("<cue>item cue</cue>\n", ""),
        ("<item_profile>", "<item_profile>\n"),
        ("<user_profile>", "Here it is: <user_profile>"),
    ],
    ids=repr,
)
def test_grammar_refuses_other_completions(broken: tuple[str, str]) -> None:
    """A completion that departs from the form in one place is no string of the grammar."""
    schema = ProfileSchema()
    assert not re.fullmatch(to_regex(schema), filled(schema).replace(*broken))


@given(st.from_regex(to_regex(ProfileSchema(max_chars=12)), fullmatch=True))
@settings(deadline=None, max_examples=60)
def test_every_string_of_the_grammar_parses(completion: str) -> None:
    """Every string of the grammar parses without a missing section."""
    assert all(sections_of(ProfileSchema(), completion).values())


@pytest.mark.parametrize(("max_chars", "longest"), [(None, 600), (1, 1), (40, 40)])
def test_grammar_enforces_the_limit(max_chars: int | None, longest: int) -> None:
    """Sections of the limit's length are strings of the grammar, sections of one more character are not."""
    schema = ProfileSchema("user", "profile", max_chars=max_chars)
    pattern = re.compile(to_regex(schema))
    texts = [schema.skeleton().replace("...", "x" * length) for length in (longest, longest + 1)]
    assert [bool(pattern.fullmatch(text)) for text in texts] == [True, False]


substantial = st.builds(operator.add, st.characters(categories=["L", "N"]), st.text(max_size=30)).map(
    lambda text: text.replace("<", "(")
)


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_grammar_holds_every_visible_text(data: st.DataObject) -> None:
    """Sections of any text without an angle bracket, starting with a visible character, are strings of the grammar."""
    schema = data.draw(st.sampled_from(SCHEMAS))
    texts = {slot: data.draw(substantial) for slot in schema.slots}
    assert re.fullmatch(to_regex(schema), written(schema, texts.values()))


def test_filled_skeleton_makes_a_profile() -> None:
    """A completion of the default schema makes a joint profile with both sides."""
    profile = parse_profile(Completion(filled(ProfileSchema())), ProfileSchema())
    assert [side and side.text for side in (profile.user, profile.item)] == ["user profile", "item profile"]
