"""What release 0.1 was asked when it made the files in `fixtures/made_by_0_1`, and is asked again of today's code.

Nothing here may change: the files were made with it.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

import attrs

from duet import (
    CompletionError,
    CueExtractor,
    Cues,
    Endpoint,
    Example,
    GenerationDone,
    HTTPEndpoint,
    Interaction,
    Item,
    JointProfile,
    JointProfiler,
    JointPrompt,
    Ledger,
    LLMRecommender,
    NextItemReward,
    Profile,
    ProfileSchema,
    Rating,
    RatingScale,
    Sampling,
    TokenLogprob,
    User,
)
from duet.testing import Answer, FakeServer, Request, completion_text

FOLDER = Path(__file__).parent / "fixtures" / "made_by_0_1"


def commands(server: str) -> dict[str, list[str]]:
    """The command lines of the README, less ``python -m``, by the folder that each wrote.

    Args:
        server: Address of a server that answers by `answer`.
    """
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ").replace("$SERVER", server)
    found = [shlex.split(line)[2:] for line in re.findall(r"^python -m duet\w* .*$", text, re.MULTILINE)]
    return {_written(words): words for words in found}


def _written(words: Sequence[str]) -> str:
    return next(value for option, value in itertools.pairwise(words) if option in ("--out", "--output_dir"))


# The server

LETTERS = ProfileSchema(sides=("user",), sections=("profile",))
TOPICS = ("jazz", "opera", "chess", "cats", "ships", "bread")


def answer(request: Request) -> Answer:
    """A profile or a rating, which the text of the request alone decides."""
    model, messages = request.json["model"], request.json["messages"]
    shown = messages[-1]["content"]
    chance = crc32(f"{shown}{request.json.get('seed')}".encode())
    if model == "broken":
        return Answer("no profile", finish_reason="length" if chance % 2 else "stop")
    if model == "judge" or "You predict" in messages[0]["content"] or "Letter:" in shown:
        return _label("B" if "Letter:" in shown else str(1 + chance % 5))
    if model in ("one", "two"):
        text = f"Likes {TOPICS[chance % len(TOPICS)]}."
        return Answer(completion_text(LETTERS, user_profile=text) if chance % 7 else text)
    return Answer(completion_text(user_profile=f"Likes {TOPICS[chance % len(TOPICS)]}."), reasoning="Well …")


def _label(text: str) -> Answer:
    alternatives = ((text, -0.1), ("4" if text == "3" else "3", -3.0))
    return Answer(text, logprobs=(TokenLogprob(text, -0.1, alternatives),))


@attrs.define
class Patience:
    """Answers so many requests, and lets all others wait."""

    left: int

    def __call__(self, request: Request) -> Answer:
        self.left -= 1
        return answer(request) if self.left >= 0 else Answer(fault="hang")


# What the ledger was asked


def _row(user: str, item: str, rating: float, day: int, title: str = "", review: str = "") -> Interaction:
    return Interaction(
        user=user, item=item, rating=rating, at=datetime(2024, 5, day, tzinfo=UTC), title=title, review=review
    )


ANN = User(
    "ann",
    [
        _row("ann", "i1", 5, 1, "Blue Night", "Slow jazz, and “quiet” – the best I know."),
        _row("ann", "i2", 1.5, 3, "Loud <Opera>", "Line one.\nLine two & more."),
        _row("ann", "i3", 3, 2, "Čaj & Brot"),
    ],
    name="Ann",
)
BOB = User("bob", [Interaction(user="bob", item="i1", rating=2, title="Blue Night")])
NIGHT = Item(
    "i4",
    [_row("cid", "i4", 4, 4, review="Good for the night shift."), _row("dee", "i4", 2, 5, review="😀 Too slow.")],
    title="Night Shift",
    attributes={"genre": "jazz", "year": "1999"},
)
PLAIN = Item("i5", title="Opera for Beginners")
PROFILE = JointProfile(user=Profile(text="Likes jazz."), item=Profile(text="A slow record.\nFor the night."))
SHORT = JointPrompt(
    schema=ProfileSchema(max_chars=300), history_limit=1, evidence_limit=1, review_chars=20, scale=RatingScale(1, 10)
)
USER_ALONE = JointPrompt(schema=ProfileSchema(sides=("user",), sections=("cue", "profile")))
OWN = Sampling(temperature=0.0, seed=1, max_tokens=50, top_p=0.9, extra_body={"chat_template_kwargs": {"x": False}})

Asked = Callable[[Endpoint, Ledger], Awaitable[object]]


def _profile(user: User = ANN, item: Item = NIGHT, *, cues: Cues | None = None, **options: object) -> Asked:
    def ask(endpoint: Endpoint, ledger: Ledger) -> Awaitable[object]:
        profiler = JointProfiler(endpoint, ledger=ledger, **options)  # type: ignore[arg-type]
        return profiler.profile(user, item, cues=cues)

    return ask


def _rating(profile: JointProfile | None = PROFILE, **options: object) -> Asked:
    def ask(endpoint: Endpoint, ledger: Ledger) -> Awaitable[object]:
        return LLMRecommender(endpoint, ledger=ledger, **options).predict(ANN, NIGHT, profile)  # type: ignore[arg-type]

    return ask


async def _streamed(endpoint: Endpoint, ledger: Ledger) -> object:
    async with JointProfiler(endpoint, ledger=ledger).stream(BOB, NIGHT) as events:
        return [event.profile async for event in events if isinstance(event, GenerationDone)]


async def _cues(endpoint: Endpoint, ledger: Ledger) -> object:
    return await CueExtractor(endpoint, ledger=ledger).extract(ANN, NIGHT)


async def _choice(endpoint: Endpoint, ledger: Ledger) -> object:
    term = NextItemReward(endpoint, items=[NIGHT, PLAIN, Item("i6", title="Bread")], ledger=ledger)
    return [score.value for score in await term.score([PROFILE], [Example(ANN, NIGHT, 4.0)])]


CALLS: Mapping[str, tuple[str, Asked]] = {
    "plain": ("writer", _profile()),
    "plain, without evidence": ("writer", _profile(BOB, PLAIN)),
    "constrained": ("writer", _profile(constrained=True)),
    "with settings of its own": ("writer", _profile(prompt=SHORT, sampling=OWN)),
    "the user alone": ("one", _profile(prompt=USER_ALONE)),
    "on given cues": ("writer", _profile(cues=Cues("likes jazz", "a quartet"))),
    "streamed": ("writer", _streamed),
    "cues": ("writer", _cues),
    "malformed": ("broken", _profile()),
    "truncated": ("broken", _profile(BOB)),
    "expected rating": ("judge", _rating()),
    "expected rating without a profile": ("judge", _rating(None)),
    "decimal rating": ("judge", _rating(mode="decimal", recent=2)),
    "whole rating, guarded": ("judge", _rating(mode="integer", guarded=True, scale=RatingScale(0, 10))),
    "choice": ("judge", _choice),
}
"""By what is asked: which model, and how."""


async def ask(name: str, server: FakeServer, ledger: Ledger) -> object:
    """What a call gives, as JSON holds it: the result's fields, or the name of the error.

    Args:
        name: Of `CALLS`.
        server: Entered.
        ledger: Answers where it can.
    """
    model, call = CALLS[name]
    async with HTTPEndpoint(server.base_url, model, engine="vllm") as endpoint:
        try:
            return _plain(await call(endpoint, ledger))
        except CompletionError as exc:
            return type(exc).__name__


def _plain(found: object) -> object:
    if isinstance(found, JointProfile):
        return {side: one and attrs.asdict(one) for side, one in (("user", found.user), ("item", found.item))}
    if isinstance(found, Rating):
        return [found.value, found.text]
    if isinstance(found, Cues):
        return [found.user, found.item]
    return [_plain(one) for one in found] if isinstance(found, list) else found


# What head and adapter were asked

PROFILES = [
    None,
    PROFILE,
    JointProfile(user=Profile(text="Likes opera, and dislikes cats."), item=Profile(text="A book of chess openings.")),
    JointProfile(user=Profile(text="Likes bread and ships.")),
]


def probabilities(policy: Path | str, adapter: Path | str | None) -> list[float]:
    """Log-probability of each token but the first of some text, by a policy in this process.

    Args:
        policy: Its folder.
        adapter: Folder of an adapter to put on it; None for none.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([IDS])).logits[0, :-1].log_softmax(-1)
    return [float(scores[at, token]) for at, token in enumerate(IDS[1:])]


IDS = [5, 6, 5, 9, 1, 2, 5, 3, 4]
"""Of tokens."""
