"""The published prompt-only profilers: KAR, RLMRec, PALR, LettinGo and Reason4Rec, without their trained parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import attrs

from duet import (
    Completion,
    CompletionError,
    Endpoint,
    Item,
    JointProfile,
    Ledger,
    MalformedCompletion,
    Message,
    Profile,
    RatingScale,
    Sampling,
    User,
    quote,
)
from duet_train.baseline_answers import (
    json_fields,
    json_grammar,
    keywords_grammar,
    paragraph_grammar,
    plain_text,
    ranked_keywords_grammar,
    read_keywords,
    read_ranked_keywords,
    total_usage,
)
from duet_train.baseline_prompts import BaselinePrompts, description
from duet_train.baseline_template import NO_HISTORY, NO_ITEM, describe_item, fit

_SUMMARY = ("summarization", "reasoning")
_ASPECTS = ("positive", "negative", "preferences")


@attrs.frozen
class Written:
    """One side's text and the generations behind it, none where no model was asked."""

    text: str
    completions: tuple[Completion, ...] = ()


@attrs.frozen(eq=False)
class PromptedProfiler:
    """What the prompt-only baselines share: what they ask, and how.

    A user without history and an item of which nothing is known get a fixed sentence, and no generation. What a model
    writes is asked to keep to `max_chars`, and held to it under a grammar; what is put together here is cut.

    Args:
        endpoint: What generates.
        sampling: How to sample.
        ledger: Where finished generations are kept and looked up. No side's prompt shows the other side, so a text is
            written once for all pairs that share it; `JointProfile.usage` counts it for each of them.
        max_chars: Most characters of a side's text.
        constrained: Decode under a grammar of the form that is asked for.
        domain: What the items are: "books", "movies", "music", "places" or "products".
        scale: The scale that the prompts name.
        history_limit: Most rows of the user's history, the most recent ones.
        evidence_limit: Most reviews of the item's evidence, the most recent ones.
        review_chars: Characters of each review.

    Raises:
        ConfigurationError: The domain is unknown, or a number cannot work.
    """

    name: ClassVar[str]

    endpoint: Endpoint
    sampling: Sampling = attrs.field(default=Sampling(max_tokens=896), kw_only=True)
    ledger: Ledger | None = attrs.field(default=None, kw_only=True)
    max_chars: int | None = attrs.field(default=None, kw_only=True)
    constrained: bool = attrs.field(default=False, kw_only=True)
    domain: str = attrs.field(default="products", kw_only=True)
    scale: RatingScale = attrs.field(default=RatingScale(), kw_only=True)
    history_limit: int = attrs.field(default=10, kw_only=True)
    evidence_limit: int = attrs.field(default=10, kw_only=True)
    review_chars: int = attrs.field(default=200, kw_only=True)
    prompts: BaselinePrompts = attrs.field(init=False, repr=False)

    @prompts.default
    def _prompts(self) -> BaselinePrompts:
        return BaselinePrompts(
            domain=self.domain,
            scale=self.scale,
            history_limit=self.history_limit,
            evidence_limit=self.evidence_limit,
            review_chars=self.review_chars,
            max_chars=self.max_chars,
        )

    async def profile(self, user: User, item: Item) -> JointProfile:
        """The texts of both sides.

        Args:
            user: With the history to go by.
            item: With the evidence to go by.

        Raises:
            EndpointError: The infrastructure's fault.
            CompletionError: An answer is empty, cut, or not in the form that was asked for.
            LedgerError: The ledger cannot be read or written.
        """
        item_side = await self._item(item) if _is_known(item) else Written(quote(NO_ITEM, self.max_chars))
        known = bool(self.prompts.shown(user))
        user_side = await self._user(user) if known else Written(quote(NO_HISTORY, self.max_chars))
        return _together(user_side, item_side)

    async def _user(self, user: User) -> Written:
        raise NotImplementedError

    async def _item(self, item: Item) -> Written:
        """The item in its own words: for methods that profile users alone."""
        return Written(describe_item(item, self.max_chars))

    def _reviewers(self, item: Item) -> set[str]:
        return {row.user for row in self.prompts.reviews(item)}

    async def _ask(self, messages: Sequence[Message], grammar: str, users: Iterable[str]) -> Completion:
        sampling = self.sampling.under_grammar(grammar) if self.constrained else self.sampling
        if self.ledger is None:
            return await self.endpoint.generate(messages, sampling)
        return await self.ledger.generate(self.endpoint, messages, sampling, users=users)

    async def _paragraph(self, messages: Sequence[Message], users: Iterable[str]) -> Written:
        completion = await self._ask(messages, paragraph_grammar(self.max_chars), users)
        return Written(plain_text(completion), (completion,))


@attrs.frozen(eq=False)
class KAR(PromptedProfiler):
    """Preferences and knowledge along one fixed list of factors a domain (KAR).

    Two independent generations: the user's from titles and ratings without reviews, the item's from its title, its
    attributes and what the model knows. The original encodes both for a trained click model; here the recommender
    reads them.
    """

    name: ClassVar[str] = "KAR"

    async def _user(self, user: User) -> Written:
        return await self._paragraph(self.prompts.kar_user(user), [user.id])

    async def _item(self, item: Item) -> Written:
        return await self._paragraph(self.prompts.kar_item(item), [])


@attrs.frozen(eq=False)
class RLMRec(PromptedProfiler):
    """Who would enjoy the item, then what the user would enjoy, each as a JSON summary with its reasoning (RLMRec).

    The item's comes from attributes and reviews, the user's from titles, descriptions and the user's own reviews;
    neither shows a rating. The embeddings that the original aligns with these texts are left out.

    Args:
        catalogue: Items by id, to describe what stands in the history; only titles and attributes are looked at, so it
            may hold any evidence.
        summarize_history: Describe the history's items by summaries of their own (one generation an item, which a
            ledger serves again) instead of by their attributes.
    """

    name: ClassVar[str] = "RLMRec"

    catalogue: Mapping[str, Item] = attrs.field(factory=dict, kw_only=True, repr=False)
    summarize_history: bool = attrs.field(default=False, kw_only=True)

    async def _user(self, user: User) -> Written:
        completions: list[Completion] = []
        descriptions = {}
        for row in self.prompts.shown(user):
            if (item := self.catalogue.get(row.item)) is not None and row.item not in descriptions:
                about = await self._about(attrs.evolve(item, evidence=()))
                descriptions[row.item] = about.text
                completions += about.completions
        own = await self._summary(self.prompts.rlmrec_user(user, descriptions), [user.id])
        return Written(own.text, (*completions, *own.completions))

    async def _item(self, item: Item) -> Written:
        return await self._summary(self.prompts.rlmrec_item(item), self._reviewers(item))

    async def _about(self, item: Item) -> Written:
        """What describes an item of the history: its summary where one is wanted and could be read."""
        if self.summarize_history and _is_known(item):
            try:
                return await self._item(item)
            except CompletionError:
                pass  # one item that cannot be summed up does not cost the user a profile
        return Written(description(item))

    async def _summary(self, messages: Sequence[Message], users: Iterable[str]) -> Written:
        completion = await self._ask(messages, json_grammar(_SUMMARY, self.max_chars), users)
        fields = json_fields(completion, _SUMMARY, required=_SUMMARY[:1])
        return Written(fields["summarization"], (completion,))


@attrs.frozen(eq=False)
class PALR(PromptedProfiler):
    """Two keywords of the user by importance, each with the history's items that support it (PALR).

    Two generations: keywords for each item of the history, then the user's. The item's side is its title and
    attributes, since the method has none. The ranker that the original trains is left out.
    """

    name: ClassVar[str] = "PALR"

    async def _user(self, user: User) -> Written:
        rows = self.prompts.shown(user)
        items = await self._ask(self.prompts.palr_items(user), keywords_grammar(len(rows)), [user.id])
        keywords = read_keywords(plain_text(items), len(rows))
        if not keywords:
            raise _unread(items, "keywords of the items")
        grammar = ranked_keywords_grammar(len(rows))
        own = await self._ask(self.prompts.palr_user(user, keywords), grammar, [user.id])
        ranked = read_ranked_keywords(plain_text(own), [quote(row.title, 200) for row in rows])
        if not ranked:
            raise _unread(own, "keywords of the user with items that support them")
        titles = [quote(row.title, 60) or "unknown title" for row in rows]
        lines = [f"{quote(word, 80)} ({_listing(titles, support)})." for word, support in ranked]
        return Written(fit(lines, self.max_chars), (items, own))


@attrs.frozen(eq=False)
class LettinGo(PromptedProfiler):
    """A broad profile of the user: tendencies, interests, dislikes, patterns, unique traits (LettinGo, no training).

    One generation. The item's side is its title and attributes, without a model: so the method's recommender sees the
    target, and a summary would be a second method's.
    """

    name: ClassVar[str] = "LettinGo"

    async def _user(self, user: User) -> Written:
        return await self._paragraph(self.prompts.lettingo_user(user), [user.id])


@attrs.frozen(eq=False)
class Reason4Rec(PromptedProfiler):
    """What the user praises, criticises and looks for, and what reviewers of the item do (Reason4Rec, no training).

    Two generations, and no rating is shown in either. The original has three trained modules: a summarizer called for
    every review, a reasoner that turns the summaries of both sides into one rationale, and a predictor that reads the
    rationale beside ratings and averages. Here each side's reviews are summed up at once, the two summaries are the
    profiles, and weighing them is left to the recommender that all methods share.
    """

    name: ClassVar[str] = "Reason4Rec"

    async def _user(self, user: User) -> Written:
        return await self._aspects(self.prompts.reason4rec_user(user), ("Likes", "Dislikes", "Looks for"), [user.id])

    async def _item(self, item: Item) -> Written:
        if not self.prompts.reviews(item):
            return Written(describe_item(item, self.max_chars))
        labels = ("Praised", "Criticised", "For those who want")
        return await self._aspects(self.prompts.reason4rec_item(item), labels, self._reviewers(item))

    async def _aspects(self, messages: Sequence[Message], labels: tuple[str, ...], users: Iterable[str]) -> Written:
        completion = await self._ask(messages, json_grammar(_ASPECTS, _share(self.max_chars, labels)), users)
        fields = json_fields(completion, _ASPECTS)
        texts = [f"{label}: {text.rstrip('.')}." for label, text in zip(labels, fields.values(), strict=True) if text]
        return Written(" ".join(texts), (completion,))


def _is_known(item: Item) -> bool:
    return bool(quote(item.title or "") or description(item) or item.evidence)


def _share(max_chars: int | None, labels: Sequence[str]) -> int | None:
    """Characters of each text, so that all of them with their labels keep to the limit."""
    if max_chars is None:
        return None
    around = sum(len(f"{label}: . ") for label in labels)
    return max(1, (max_chars - around) // len(labels))


def _listing(titles: Sequence[str], support: Sequence[int]) -> str:
    return ", ".join(f"“{titles[index]}”" for index in support)


def _unread(completion: Completion, what: str) -> MalformedCompletion:
    return MalformedCompletion(f"the answer holds no {what}", completion=completion.text, missing=(what,))


def _together(user: Written, item: Written) -> JointProfile:
    completions = (*item.completions, *user.completions)
    return JointProfile(
        user=Profile(text=user.text),
        item=Profile(text=item.text),
        completion="\n\n".join(completion.text for completion in completions),
        model=completions[-1].model if completions else "",
        usage=total_usage([completion.usage for completion in completions]),
    )
