"""A small world of planted preferences, and a recommender that reads profiles.

Every user loves one quality of places, hates another, and rates strictly, fairly or generously; every place has one
quality. Both can be told from the data alone: from the words and ratings of a user's reviews, and from what critics say
of a place. A recommender that reads nothing but the two profiles predicts well exactly when they say so.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import duckdb
from prepare_oracle import Rated, fill

from duet import Example, Item, JointProfile, Rating, RatingScale, User
from duet.testing import Answer, FakeServer, Request, completion_text
from duet_train.data.prepared import Prepared
from duet_train.data.settings import Settings
from duet_train.prepare import prepare

QUALITIES = ("quiet", "spicy", "cheap", "fancy", "lively", "sweet")
PLACES = ("garden", "corner", "house", "kitchen", "terrace", "cellar", "market", "harbour")
TEMPERS = {"strict": -1, "fair": 0, "generous": 1}
HISTORY = 4
SCALE = RatingScale()


@attrs.frozen
class Taste:
    """What was planted in a user."""

    loves: str
    hates: str
    temper: str

    def rating(self, quality: str) -> float:
        """What the user gives a place of this quality."""
        return _rating(quality == self.loves, quality == self.hates, TEMPERS[self.temper])


def _rating(loved: bool, hated: bool, temper: int) -> float:
    return SCALE.clip(3.0 + 2 * loved - 2 * hated + temper)


# The recommender


def read(user: str, item: str) -> float:
    """The rating that two profiles foretell; the middle of the scale where they say nothing that fits together.

    Args:
        user: Understood are "loved X", "hated X", "strict" and "generous".
        item: Understood are qualities.
    """
    offered = set(_words(item)).intersection(QUALITIES)
    temper = sum(TEMPERS.get(word, 0) for word in set(_words(user)))
    return _rating(_named(user, "loved", offered), _named(user, "hated", offered), temper)


def _named(text: str, verb: str, qualities: set[str]) -> bool:
    return any(word in qualities for word in re.findall(rf"\b{verb} (\w+)", text.lower()))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class ReadingRecommender:
    """Frozen; reads the two profiles and nothing else."""

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating:
        """What `read` makes of the profiles; a side without a profile says nothing."""
        sides = profile or JointProfile()
        return Rating(read(sides.user.text if sides.user else "", sides.item.text if sides.item else ""))


def answer(request: Request) -> Answer:
    """The same recommender behind an address: of the prompt of ratings it reads the profiles, not the title."""
    text: str = request.json["messages"][-1]["content"]
    user, _, item = text.partition("\n\nITEM\n")
    return Answer(f"<rating>{read(user, item.partition(chr(10))[2]):.2f}</rating>")


def recommender_server() -> FakeServer:
    """A server of `answer`; enter it with ``async with``, or with ``run_in_thread()``."""
    return FakeServer(answer, model="reader")


# The data


@attrs.frozen
class World:
    """Who likes what, what is what, and the log of ratings that came of it.

    Args:
        tastes: Of every user who is more than a critic, by id.
        qualities: Of every place, by id.
        log: Ratings; each user's last one is of a place that no other user but critics has rated.
    """

    tastes: Mapping[str, Taste]
    qualities: Mapping[str, str]
    log: Sequence[Rated] = attrs.field(repr=False)


def make_world(users: int = 350, *, seed: int = 0) -> World:
    """A world of so many users, the same for the same seed."""
    chance = random.Random(seed)
    tastes = {f"u{number}": _taste(chance) for number in range(users)}
    qualities = {f"{quality}-{place}": quality for quality in QUALITIES for place in PLACES}
    known = list(qualities)
    log: list[Rated] = []
    for turn, (user, taste) in enumerate(tastes.items()):
        log += _history(chance, user, taste, known, 100.0 * turn)
        target, quality = f"new-{user}", _target(chance, taste)
        qualities[target] = quality
        critics = [Rated(f"critic-{user}-{place}", target, 3.0, 100.0 * turn + place) for place in range(2)]
        log += [attrs.evolve(critic, text=f"so {quality}") for critic in critics]
        log.append(Rated(user, target, taste.rating(quality), 100.0 * turn + 99))
    return World(tastes, qualities, log)


def _taste(chance: random.Random) -> Taste:
    loves, hates = chance.sample(QUALITIES, 2)
    return Taste(loves, hates, chance.choice(list(TEMPERS)))


def _history(chance: random.Random, user: str, taste: Taste, known: Sequence[str], start: float) -> list[Rated]:
    """Reviews that name the quality; what is loved and what is hated occur at least once each."""
    wanted = [taste.loves, taste.hates] + [chance.choice(QUALITIES) for _ in range(HISTORY - 2)]
    chance.shuffle(wanted)
    rows: list[Rated] = []
    for turn, quality in enumerate(wanted):
        visited = {row.item for row in rows}
        place = chance.choice([one for one in known if one.startswith(quality) and one not in visited])
        verb = {taste.loves: "loved", taste.hates: "hated"}.get(quality, "saw")
        rows.append(Rated(user, place, taste.rating(quality), start + turn, None, f"{verb} {quality}"))
    return rows


def _target(chance: random.Random, taste: Taste) -> str:
    """Two in five are loved, two in five hated, and so much of a rating depends on the user."""
    return chance.choice([taste.loves] * 2 + [taste.hates] * 2 + [chance.choice(QUALITIES)])


def prepared(directory: Path, world: World, labels: Mapping[str, float] | None = None) -> Prepared:
    """The world as `prepare` leaves it: three users in four for training, the others for validation.

    Args:
        directory: To make.
        world: One example a user: the last rating.
        labels: By user, ratings to put in the place of the last ones.
    """
    given, last = dict(labels or {}), {user: f"new-{user}" for user in world.tastes}
    log = [
        attrs.evolve(row, rating=given[row.user]) if row.user in given and last[row.user] == row.item else row
        for row in world.log
    ]

    def source(db: duckdb.DuckDBPyConnection) -> RatingScale:
        scale = fill(db, log)
        titles = [(item, f"the {PLACES[number % len(PLACES)]}", "{}") for number, item in enumerate(world.qualities)]
        db.executemany("INSERT INTO raw_items VALUES (?, ?, ?)", titles)
        return scale

    shape = Settings(core=0, split="by-user", ratios=(3, 1, 0), min_history=HISTORY, history=HISTORY, evidence=1)
    prepare(source, directory, shape, progress=False)
    return Prepared.open(directory)


# What a policy writes


@attrs.frozen
class Words:
    """What the two profiles of a completion say."""

    loves: str = "food"
    hates: str = "waiting"
    temper: str = "fair"
    quality: str = "nice"


IMPERSONAL = Words()


def honest(world: World, example: Example) -> Words:
    """What is the case."""
    taste = world.tastes[example.user.id]
    return Words(taste.loves, taste.hates, taste.temper, world.qualities[example.item.id])


def completion(cue: Words, profile: Words) -> str:
    """A whole completion: all six sections, of which the recommender reads the two profiles."""
    return completion_text(
        user_cue=f"loved {cue.loves} hated {cue.hates}",
        user_constructed_prompt="briefly",
        user_profile=f"loved {profile.loves} hated {profile.hates} {profile.temper}",
        item_cue=f"so {cue.quality}",
        item_constructed_prompt="briefly",
        item_profile=f"so {profile.quality}",
    )
