"""Small prepared logs, and methods and recommenders that say what they saw; for the tests of `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.lowlevel
import attrs
import duckdb
import numpy as np
from prepare_oracle import Rated, fill

from duet import (
    Embedder,
    Endpoint,
    Item,
    JointProfile,
    JointPrompt,
    Ledger,
    Profile,
    ProfileSchema,
    RatingScale,
    Recommender,
    Sampling,
    Usage,
    User,
)
from duet.testing import ConstantRecommender, ScriptedEndpoint
from duet_train.data.prepared import Prepared, PreparedExample
from duet_train.data.settings import Settings
from duet_train.judging import Judgement, Made
from duet_train.methods import Tools
from duet_train.prepare import prepare

USERS, ITEMS, ROUNDS = 6, 24, 8


def log(
    rating: Callable[[int, int], int] = lambda user, turn: 1 + (7 * user + 3 * turn + user * turn) % 5,
) -> list[Rated]:
    """Six users, each with eight of 24 items, no two rows at one moment."""
    return [
        Rated(
            f"u{user}",
            f"i{(4 * user + 5 * turn) % ITEMS:02}",
            rating(user, turn),
            float(100 * turn + user),
            None,
            f"words of u{user} in turn {turn}",
        )
        for turn in range(ROUNDS)
        for user in range(USERS)
    ]


def prepared(directory: Path, rows: Sequence[Rated] | None = None, **settings: Any) -> Prepared:
    """The log on disk as `prepare` leaves it, by leaving the last out and with titles, unless told otherwise."""

    def read(db: duckdb.DuckDBPyConnection) -> RatingScale:
        fill(db, log() if rows is None else rows)
        titles = [(f"i{number:02}", f"The {number}th thing", "{}") for number in range(ITEMS)]
        db.executemany("INSERT INTO raw_items VALUES (?, ?, ?)", titles)
        return RatingScale()

    asked: dict[str, Any] = {"core": 0, "split": "leave-last-one-out", "histories": "train-only"}
    prepare(read, directory, Settings(**asked | settings), progress=False)
    return Prepared.open(directory)


@attrs.define
class Letters:
    """A method whose profiles name the pair that they were made for."""

    name: str = "letters"
    calls: list[tuple[User, Item]] = attrs.field(factory=list)
    failing: frozenset[str] = frozenset()

    async def profile(self, user: User, item: Item) -> JointProfile:
        """`failing` holds the users for whom it breaks."""
        await anyio.lowlevel.checkpoint()
        self.calls.append((user, item))
        if user.id in self.failing:
            raise LookupError(user.id)
        return JointProfile(
            user=Profile(text=f"user {user.id}"),
            item=Profile(text=f"item {item.id}"),
            usage=Usage(10, 4, cached_tokens=5),
        )


@attrs.define
class Reader:
    """A recommender that answers by what it is shown, and keeps all of it."""

    answer: Callable[[User, Item, JointProfile], float] = lambda user, item, profile: 3.0
    seen: list[tuple[User, Item, JointProfile]] = attrs.field(factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> float:
        """What `answer` says."""
        assert profile is not None
        self.seen.append((user, item, profile))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await anyio.lowlevel.checkpoint()
        self.under_way -= 1
        return self.answer(user, item, profile)


def text_of(profile: JointProfile) -> str:
    """The user's side."""
    assert profile.user is not None
    return profile.user.text


def judgement(made: Sequence[Made], predicted: Sequence[float] | None = None) -> Judgement:
    """Profiles as a method left them, the same predictions with every pairing."""
    values = np.full(len(made), 3.0) if predicted is None else np.array(predicted, dtype=np.float64)
    return Judgement(
        made=made,
        predicted=values,
        shuffled_users=values,
        shuffled_items=values,
        errors=[type(one.error).__name__ if one.error else "" for one in made],
        seconds=1.5,
    )


def made_by_hand(rows: Sequence[PreparedExample], user: str = "words", item: str = "words") -> list[Made]:
    """The same profile for every row; an empty text leaves a side out."""
    both = JointProfile(user=Profile(text=user) if user else None, item=Profile(text=item) if item else None)
    return [Made(both) for _ in rows]


class ByText:
    """An embedder by a table of texts; what is not in it lies at right angles to all that is."""

    def __init__(self, vectors: Mapping[str, Sequence[float]], other: Sequence[float] = (0.0, 0.0, 1.0)) -> None:
        self._vectors, self._other = vectors, other

    async def embed(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One vector a text."""
        await anyio.lowlevel.checkpoint()
        return [self._vectors.get(text, self._other) for text in texts]


def tools(
    directory: Path,
    endpoint: Endpoint | None = None,
    *,
    embedder: Embedder | None = None,
    recommender: Recommender | None = None,
) -> Tools:
    """What methods run on, without a server."""
    answering = endpoint or ScriptedEndpoint("")
    return Tools(
        endpoint=lambda model: answering,
        recommender=recommender or ConstantRecommender(3.0),
        judge=answering,
        ledger=Ledger(directory / "ledger.sqlite"),
        prompt=JointPrompt(schema=ProfileSchema(max_chars=120), history_limit=4, evidence_limit=5, review_chars=30),
        sampling=Sampling(max_tokens=100),
        constrained=False,
        embedder=embedder,
        concurrency=4,
    )
