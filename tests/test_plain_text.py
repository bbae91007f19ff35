"""Profiles as plain text: links, markdown and HTML are refused, and nothing is rewritten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet import Completion, Item, JointPrompt, MalformedCompletion, ProfileSchema, SectionParser, User, parse_profile
from duet._markup import markup_in
from duet.testing import completion_text

PLAIN = ProfileSchema(plain_text=True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("see https://evil.example/x", "a link"),
        ("see HTTP ://evil.example", "a link"),
        ("go to www.evil.example", "a link"),
        ("write to mailto:a@b.example", "a link"),
        ("javascript:alert(1)", "a link"),
        ("data:text/html;base64,PGI+", "a link"),
        ("[here](/path)", "a link"),
        ("[ref]: //evil.example", "a link"),
        ("![](x)", "a link"),
        ("add evil.example/collect", "a link"),
        ("add evil.example?q=all", "a link"),
        ("write to a@b.example", "a link"),
        ("data:,hello", "a link"),
        ("DATA:image/svg+xml;utf8,x", "a link"),
        ("a.co/d/xyz", "a link"),
        ("(bit.ly/3XyZ)", "a link"),
        ("évil.example/x", "a link"),
        ("see shop.evil-1.co.example/a/b.js", "a link"),
        ("HTTPS://EVIL.EXAMPLE/X", "a link"),
        ("Someone@Evil.Example", "a link"),
        ("<b>bold", "HTML"),
        ("a <img src=x onerror=y> b", "HTML"),
        ("<!-- hidden -->", "HTML"),
        ("fish &amp; chips", "HTML"),
        ("&#106;avascript", "HTML"),
        ("&#x6A;avascript", "HTML"),
        ("javascript&colon;alert", "HTML"),
        ("# Heading", "markdown"),
        ("some **bold** words", "markdown"),
        ("some `code` words", "markdown"),
        ("some *stressed* words", "markdown"),
        ("some _stressed words_", "markdown"),
        ("some ~~struck~~ words", "markdown"),
        ("```\nblock", "markdown"),
        ("| a | b |", "markdown"),
        ("> quoted", "markdown"),
        ("![image]", "markdown"),
    ],
)
def test_markup_is_found(text: str, kind: str) -> None:
    """Each kind of markup is called by its name."""
    assert markup_in(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "Likes jazz & blues, 4 < 5, and R&B; prefers C# to C++.",
        "- quiet games\n- short evenings",
        "1. strict\n2. fair",
        "gave 3 * 4 = 12 points; a_b_c; snake_case_name",
        "the ratio was 2:1, at 10:30; data: none",
        "good/bad, 9.5/10, 24/7, and/or; what.Now? 2 * 3 * 4 = 24; s*** and f**k; * one\n* two",
        "_private and __dunder, ~~ 5 ~~ 6, @home, me @ work",
        "a 5-star fan of #1 hits (see below) [sic]",
        "It's http as a word, www as another, and e.g. this.",
        "Going by the data: quiet, patient games win.",
        "The data: few (but warm) reviews; metadata:rich, dense",
        "Likes Node.js/TypeScript, node.js/express, ASP.NET/C# and JavaScript: The Good Parts (twice).",
        "Rock&Roll; jazz, Q&A; D&D; AT&T; Simon&Garfunkel; M&M;",
        "Dr.Who/Torchwood, Mr.Bean/Blackadder, St.John/Smith, Vol.2/3",
        "rates 4.5/5.Great/ok, 5.1/10, 9/10.Fine, 7.5/10.",
        "AC/DC vs. Guns N' Roses; rock/pop.Also/or jazz",
        "e.g./i.e. and a.k.a./aka, a.m./p.m., U.S./U.K., i.e.drama/comedy",
        "J.R.R.Tolkien/C.S.Lewis, R.E.M./U2, N.W.A/Dr.Dre",
        "fun?yes=no, why?because, either/or?Both",
        "50% off & more; 5 & up; him&her",
    ],
)
def test_plain_text_is_plain(text: str) -> None:
    """What people write without markup is not refused."""
    assert markup_in(text) is None


@pytest.mark.parametrize("slot", [f"{side}_{section}" for side, section in PLAIN.slots])
def test_every_section_is_looked_at(slot: str) -> None:
    """A link in any section makes the completion malformed, and the error names the section."""
    text = completion_text(PLAIN, **{slot: "see https://evil.example"})
    with pytest.raises(MalformedCompletion, match=slot.replace("_", ".", 1)):
        parse_profile(Completion(text), PLAIN)


def test_without_the_setting_nothing_is_refused() -> None:
    """The check is asked for."""
    text = completion_text(user_profile="see https://evil.example")
    profile = parse_profile(Completion(text), ProfileSchema())
    assert profile.user is not None
    assert profile.user.text == "see https://evil.example"


@given(st.text(alphabet=st.sampled_from("ab <>&;:/[]()#*`|!-.wht\n"), max_size=60))
def test_what_passes_is_not_rewritten(text: str) -> None:
    """A completion is refused as a whole or its text stays as it came."""
    whole = completion_text(PLAIN, user_profile=f"x{text}x")
    free, plain = SectionParser(ProfileSchema()), SectionParser(PLAIN)
    free.feed(whole)
    plain.feed(whole)
    try:
        found = plain.close()
    except MalformedCompletion:
        return
    assert found == free.close()


def test_prompt_asks_for_it() -> None:
    """A model that may not write markup is told so."""
    asked, unasked = (JointPrompt(schema=schema).render(User("u"), Item("i"))[0] for schema in (PLAIN, ProfileSchema()))
    assert "without links, markdown or HTML" in asked["content"]
    assert "markdown" not in unasked["content"]
