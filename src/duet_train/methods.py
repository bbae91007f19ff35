"""The methods of an evaluation by name, and what they run on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from duet import (
    Completion,
    ConfigurationError,
    Embedder,
    Endpoint,
    JointProfiler,
    JointPrompt,
    Ledger,
    Message,
    Recommender,
    Sampling,
)
from duet_train.baselines import (
    KAR,
    PALR,
    HistoryOnly,
    LettinGo,
    NamedProfiler,
    OneSidePrompt,
    Profiler,
    Reason4Rec,
    RLMRec,
    TemplateProfiler,
    duet_ladder,
)


@attrs.frozen(kw_only=True)
class Tools:
    """What every method of one evaluation shares.

    Args:
        endpoint: Gives the endpoint of a model or adapter; None is the one that was named for all.
        recommender: Frozen.
        judge: The recommender's endpoint, for next-item choice.
        ledger: Where every finished generation is kept.
        prompt: DUET's prompt; its limits hold for the baselines too.
        sampling: Of the profiles; its `extra_body` is in every chat request of the evaluation.
        constrained: Decode under grammars.
        domain: What the items are, for KAR's factors.
        embedder: For alignment and the whole catalogue; None leaves them out.
        concurrency: Most calls under way.
        minimum_mass: The least probability of all labels together, where log-probabilities are read.
    """

    endpoint: Callable[[str | None], Endpoint]
    recommender: Recommender
    judge: Endpoint
    ledger: Ledger
    prompt: JointPrompt
    sampling: Sampling
    constrained: bool
    domain: str = "products"
    embedder: Embedder | None = None
    concurrency: int = 16
    minimum_mass: float = 0.5


class CountingLedger(Ledger):
    """Another ledger, and how many generations were asked of it.

    Args:
        ledger: The other one, which stays open.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.calls: int = 0
        """Generations asked for, whether they had to be made or not."""

    async def get(self, digest: str) -> Completion | None:
        """As the other ledger's."""
        self.calls += 1
        return await self._ledger.get(digest)

    async def put(
        self,
        digest: str,
        completion: Completion,
        *,
        model: str,
        messages: Sequence[Message],
        users: Iterable[str],
    ) -> None:
        """As the other ledger's."""
        await self._ledger.put(digest, completion, model=model, messages=messages, users=users)


# The ladder's rungs in the order of `duet_ladder`.
LADDER = (
    "duet-profiles-alone",
    "duet-independent",
    "duet-user-alone",
    "duet-without-cue",
    "duet-without-constructed-prompt",
    "duet",
)
# These write the user's text with the target item in sight: it may name the item that a table asks for.
PAIRED = frozenset({"duet", "duet-user-alone", "duet-without-cue", "duet-without-constructed-prompt"})
PROMPTED: dict[str, Any] = {"kar": KAR, "rlmrec": RLMRec, "palr": PALR, "lettingo": LettinGo, "reason4rec": Reason4Rec}
# LettinGo's profile of the user, asked for as `explore`, `sft` and `dpo` ask for it under its configuration.
POLICY = "lettingo-policy"
METHODS = ("10h", "template", *PROMPTED, POLICY, *LADDER)


def parse_method(name: str) -> tuple[str, str]:
    """The method and, where one is named, the model or adapter that it asks.

    Args:
        name: One of `METHODS`, or with a model or adapter as "duet@NAME".

    Raises:
        ConfigurationError: There is no such method, or it takes no model.
    """
    method, _, model = name.partition("@")
    if method not in METHODS:
        raise ConfigurationError(f"no method {method!r}: there are {', '.join(METHODS)}")
    if model and method in ("10h", "template"):
        raise ConfigurationError(f"{name!r}: {method} asks no model")
    return method, model


def build(name: str, tools: Tools) -> Profiler:
    """The profiler of a method.

    Args:
        name: One of `METHODS`, or with a model or adapter as "duet@NAME".
        tools: What it runs on.

    Raises:
        ConfigurationError: There is no such method, or it takes no model.
    """
    method, model = parse_method(name)
    prompt = tools.prompt
    limits: dict[str, Any] = {
        "history_limit": prompt.history_limit,
        "evidence_limit": prompt.evidence_limit,
        "max_chars": prompt.schema.max_chars,
        "scale": prompt.scale,
    }
    if method == "10h":
        return HistoryOnly()
    if method == "template":
        return TemplateProfiler(**limits)
    endpoint = tools.endpoint(model or None)
    shared: dict[str, Any] = {"sampling": tools.sampling, "ledger": tools.ledger, "constrained": tools.constrained}
    if method == POLICY:
        return NamedProfiler(
            "LettinGo, as it is trained", JointProfiler(endpoint, prompt=_user_alone(prompt), **shared)
        )
    if method in PROMPTED:
        own = {"domain": tools.domain, "review_chars": prompt.review_chars}
        profiler: Profiler = PROMPTED[method](endpoint, **shared, **limits, **own)
        return profiler
    return dict(zip(LADDER, duet_ladder(endpoint, prompt=prompt, **shared), strict=True))[method][1]


def _user_alone(prompt: JointPrompt) -> OneSidePrompt:
    """The user's profile and nothing else, from the user's data alone."""
    fields = {field.name: getattr(prompt, field.name) for field in attrs.fields(JointPrompt)}
    schema = attrs.evolve(prompt.schema, sides=("user",), sections=("profile",))
    return OneSidePrompt(**fields | {"schema": schema})
