"""The cue extractor: the cues of both sides and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from duet import Completion as Completed
from duet import (
    CompletionError,
    ConfigurationError,
    CueExtractor,
    CuePrompt,
    Cues,
    EndpointUnavailable,
    Item,
    JointProfiler,
    JointPrompt,
    Ledger,
    MalformedCompletion,
    ProfileSchema,
    Sampling,
    TruncatedCompletion,
    User,
)
from duet.testing import ScriptedEndpoint, completion_text

pytestmark = pytest.mark.anyio

USER = User("ann")
ITEM = Item("atlas", title="Atlas")
SCHEMA = ProfileSchema(sections=("cue",))
TEXT = completion_text(SCHEMA, user_cue="maps", item_cue="rivers")


async def test_cues_of_both_sides() -> None:
    """The completion's cues come back as a record."""
    assert await CueExtractor(ScriptedEndpoint(TEXT)).extract(USER, ITEM) == Cues("maps", "rivers")


@pytest.mark.parametrize(("side", "cues"), [("user", Cues(user="maps")), ("item", Cues(item="rivers"))])
async def test_cue_of_one_side(side: str, cues: Cues) -> None:
    """Under a one-sided schema the other side's cue is None."""
    prompt = CuePrompt(schema=ProfileSchema(sides=side, sections="cue"))
    assert await CueExtractor(ScriptedEndpoint(TEXT), prompt=prompt).extract(USER, ITEM) == cues


@pytest.mark.parametrize("sections", [("cue", "profile"), ("profile",), ("cue", "constructed_prompt", "profile")])
async def test_schema_of_more_than_cues_is_refused(sections: tuple[str, ...]) -> None:
    """An extractor whose schema is not the cue alone cannot be made."""
    with pytest.raises(ConfigurationError, match="cues alone"):
        CueExtractor(ScriptedEndpoint(TEXT), prompt=CuePrompt(schema=ProfileSchema(sections=sections)))


async def test_what_is_sent_is_what_the_prompt_renders() -> None:
    """The messages are those of CuePrompt.render."""
    endpoint = ScriptedEndpoint(TEXT)
    await CueExtractor(endpoint).extract(USER, ITEM)
    assert endpoint.calls[0][0] == CuePrompt().render(USER, ITEM)


async def test_sampling_is_passed_on() -> None:
    """The extractor's sampling is the one the endpoint gets."""
    endpoint = ScriptedEndpoint(TEXT)
    await CueExtractor(endpoint, sampling=Sampling(seed=3)).extract(USER, ITEM)
    assert endpoint.calls[0][1] == Sampling(seed=3)


@pytest.mark.parametrize("constrained", [False, True])
async def test_grammar_is_sent_only_when_constrained(constrained: bool) -> None:
    """The grammar of the cues goes along exactly when decoding is to be constrained."""
    endpoint = ScriptedEndpoint(TEXT)
    await CueExtractor(endpoint, constrained=constrained).extract(USER, ITEM)
    assert endpoint.calls[0][1].grammar == (SCHEMA.grammar() if constrained else None)


@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        (Completed("none"), MalformedCompletion),
        (Completed(TEXT[:-60]), MalformedCompletion),
        (Completed(TEXT[:-60], finish_reason="length"), TruncatedCompletion),
    ],
    ids=["refusal", "cut", "token limit"],
)
async def test_completion_without_cues_is_refused(completion: Completed, kind: type[CompletionError]) -> None:
    """A completion that lacks a cue raises the error that says why."""
    with pytest.raises(kind):
        await CueExtractor(ScriptedEndpoint(completion)).extract(USER, ITEM)


async def test_endpoints_error_passes_through() -> None:
    """What the endpoint raises leaves extract as the very same object."""
    error = EndpointUnavailable("down")
    with pytest.raises(EndpointUnavailable) as caught:
        await CueExtractor(ScriptedEndpoint(error)).extract(USER, ITEM)
    assert caught.value is error


async def test_ledger_answers_the_second_time(tmp_path: Path) -> None:
    """What is in the ledger is not asked again."""
    endpoint = ScriptedEndpoint(TEXT)
    async with Ledger(tmp_path / "ledger.db") as ledger:
        extractor = CueExtractor(endpoint, ledger=ledger)
        assert await extractor.extract(USER, ITEM) == await extractor.extract(USER, ITEM)
    assert len(endpoint.calls) == 1


async def test_extracted_cues_go_into_a_profile() -> None:
    """The extractor's result is what JointProfiler.profile takes as cues."""
    cues = await CueExtractor(ScriptedEndpoint(TEXT)).extract(USER, ITEM)
    endpoint = ScriptedEndpoint(completion_text(ProfileSchema().without("cue")))
    await JointProfiler(endpoint).profile(USER, ITEM, cues=cues)
    assert endpoint.calls[0][0] == JointPrompt().render(USER, ITEM, cues=Cues("maps", "rivers"))
