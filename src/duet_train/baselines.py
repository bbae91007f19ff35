"""The profilers that DUET is compared with, and its own ablations, behind one protocol.

Every method but `HistoryOnly` gives both sides a text, so that what the item's evidence is worth is not mistaken for
what writing both sides together is worth. All read the same rows: the most recent ones of each side.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from duet import (
    ConfigurationError,
    Cues,
    Endpoint,
    Item,
    JointProfile,
    JointProfiler,
    JointPrompt,
    Ledger,
    Message,
    ProfileSchema,
    Sampling,
    Usage,
    User,
)
from duet_train.baseline_answers import total_usage
from duet_train.baseline_prompted import KAR, PALR, LettinGo, Reason4Rec, RLMRec
from duet_train.baseline_template import TemplateProfiler

__all__ = [
    "KAR",
    "PALR",
    "HistoryOnly",
    "IndependentProfiler",
    "LettinGo",
    "NamedProfiler",
    "OneSidePrompt",
    "Profiler",
    "RLMRec",
    "Reason4Rec",
    "TemplateProfiler",
    "duet_ladder",
]


class Profiler(Protocol):
    """A method: what writes the profiles of a pair. `duet.JointProfiler` becomes one as a `NamedProfiler`."""

    @property
    def name(self) -> str:
        """What tables call it."""

    async def profile(self, user: User, item: Item) -> JointProfile:
        """The profiles of one pair.

        Args:
            user: With the history to go by.
            item: With the evidence to go by.

        Raises:
            EndpointError: The infrastructure's fault.
            CompletionError: An answer is no profile.
            LedgerError: The ledger cannot be read or written.
        """


@attrs.frozen
class NamedProfiler:
    """A `duet.JointProfiler` under a name."""

    name: str
    profiler: JointProfiler

    async def profile(self, user: User, item: Item) -> JointProfile:
        """As `duet.JointProfiler.profile`."""
        return await self.profiler.profile(user, item)


@attrs.frozen
class HistoryOnly:
    """No profile at all (10H): the recommender has the most recent raw interactions alone to go by."""

    name: str = "10H"

    async def profile(self, user: User, item: Item) -> JointProfile:
        """A joint profile without sides.

        Args:
            user: Not looked at.
            item: Not looked at.
        """
        return JointProfile(usage=Usage())


@attrs.frozen(kw_only=True)
class OneSidePrompt(JointPrompt):
    """The prompt of one side alone: it shows the data of the side that its schema writes, and not the other's."""

    def render(self, user: User, item: Item, *, cues: Cues | None = None) -> tuple[Message, ...]:
        """The messages for one side of a pair.

        Args:
            user: Left out where the schema writes the item.
            item: Left out where the schema writes the user.
            cues: As for `duet.JointPrompt`.
        """
        own, other = self.schema.sides[0], "item" if self.schema.sides == ("user",) else "user"
        system, data = super().render(user, item, cues=cues)
        # Text from the data never holds a line break, so the first empty line is the one between the two blocks.
        user_block, item_block = data["content"].split("\n\n", 1)
        note = f"Only the {own}'s side is given: write of the {own} alone, for any {other}."
        return system, {"role": "user", "content": f"{note}\n\n{user_block if own == 'user' else item_block}"}

    def subjects(self, user: User, item: Item) -> frozenset[str]:
        """Ids of all whose interactions the one side shows.

        Args:
            user: As for `render`.
            item: As for `render`.
        """
        if self.schema.sides == ("user",):
            return frozenset({user.id})
        return frozenset(row.user for row in item.evidence) & super().subjects(user, item)


class IndependentProfiler:
    """DUET in two passes: the user's profile, then the item's, neither with a look at the other (DUET, ablation).

    Each pass is a `duet.JointProfiler` with the one-sided schema and otherwise the same prompt and sampling. The two
    completions, one after the other, read as one completion of the joint schema. A ledger serves a side again for
    every other pair that shares it.

    Args:
        endpoint: What generates.
        prompt: The joint prompt that the two are made from; its schema has both sides.
        sampling: How to sample each pass.
        ledger: Where finished generations are kept and looked up.
        constrained: Decode under the schemas' grammars.
        name: What tables call it.

    Raises:
        ConfigurationError: The prompt's schema has one side only.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        prompt: JointPrompt = JointPrompt(),
        sampling: Sampling = Sampling(max_tokens=896),
        ledger: Ledger | None = None,
        constrained: bool = False,
        name: str = "DUET, independent",
    ) -> None:
        if len(prompt.schema.sides) < 2:
            raise ConfigurationError(f"two passes need a schema with both sides, got {prompt.schema.sides!r}")
        self.name = name
        self._user, self._item = (
            JointProfiler(
                endpoint, prompt=_one_side(prompt, side), sampling=sampling, ledger=ledger, constrained=constrained
            )
            for side in ("user", "item")
        )

    async def profile(self, user: User, item: Item) -> JointProfile:
        """The profiles of both sides, each written on its own.

        Args:
            user: With the history to go by.
            item: With the evidence to go by.

        Raises:
            EndpointError: The infrastructure's fault.
            CompletionError: A completion is no profile.
            LedgerError: The ledger cannot be read or written.
        """
        own = await self._user.profile(user, item)
        other = await self._item.profile(user, item)
        return attrs.evolve(
            own,
            item=other.item,
            completion=f"{own.completion}\n{other.completion}",
            usage=total_usage([own.usage, other.usage]),
        )


def duet_ladder(
    endpoint: Endpoint,
    *,
    prompt: JointPrompt = JointPrompt(),
    sampling: Sampling = Sampling(max_tokens=896),
    ledger: Ledger | None = None,
    constrained: bool = False,
) -> list[tuple[str, Profiler]]:
    """DUET's ablations, in the order of the paper's table, each a rung above or beside the one before.

    Profiles alone and then with cue and constructed prompt, both in two passes; then in one generation that reads both
    sides: the user's side alone, both without the cue, both without the constructed prompt, and DUET itself.

    Args:
        endpoint: What generates.
        prompt: DUET's own; the others differ in its schema alone (and, in two passes, in the data shown).
        sampling: How to sample; the same for all.
        ledger: Where finished generations are kept and looked up.
        constrained: Decode under the schemas' grammars.

    Returns:
        (name, profiler).

    Raises:
        ConfigurationError: The prompt's schema lacks a side or a section.
    """
    schema = prompt.schema
    if len(schema.slots) < 6:
        raise ConfigurationError(f"a ladder starts from the full schema, got {schema!r}")

    def two_passes(name: str, schema: ProfileSchema) -> Profiler:
        own = attrs.evolve(prompt, schema=schema)
        return IndependentProfiler(
            endpoint, prompt=own, sampling=sampling, ledger=ledger, constrained=constrained, name=name
        )

    def one_pass(name: str, schema: ProfileSchema) -> Profiler:
        own = attrs.evolve(prompt, schema=schema)
        joint = JointProfiler(endpoint, prompt=own, sampling=sampling, ledger=ledger, constrained=constrained)
        return NamedProfiler(name, joint)

    rungs = [
        two_passes("DUET, profiles alone", attrs.evolve(schema, sections=("profile",))),
        two_passes("DUET, independent", schema),
        one_pass("DUET, user alone", attrs.evolve(schema, sides=("user",))),
        one_pass("DUET, without cue", schema.without("cue")),
        one_pass("DUET, without constructed prompt", schema.without("constructed_prompt")),
        one_pass("DUET", schema),
    ]
    return [(rung.name, rung) for rung in rungs]


def _one_side(prompt: JointPrompt, side: str) -> OneSidePrompt:
    fields = {field.name: getattr(prompt, field.name) for field in attrs.fields(JointPrompt)}
    return OneSidePrompt(**fields | {"schema": attrs.evolve(prompt.schema, sides=(side,))})
