"""``python -m duet_train head``: a small frozen recommender, fitted on raw history and item text, never on profiles.

A linear head over the embeddings of two texts. It is fitted before any policy is trained and never again, so what a
policy gains before it is gained by its profiles.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import anyio

from duet import ConfigurationError, Embedder, Item, JointProfile, Rating, RatingScale, User, quote
from duet_train.data.prepared import Prepared, PreparedExample

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
CACHED = 4096
FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what prepare wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the head")
    parser.add_argument("--rows", type=int, metavar="N", help="fit on so many rows of train, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the rows drawn, and of users held out")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    import numpy as np

    from duet_train.minilm import MiniLM

    data = Prepared.open(args.data)
    train = data.examples("train", sample=args.rows, seed=args.seed)
    validation = data.examples("validation", seed=args.seed)
    users = [row.example.user.id for row in train]
    if not train or not (validation or len(set(users)) > 1):
        raise ConfigurationError(
            f"{args.data}: a head needs rows of train, and others to choose its strength on: validation rows, or rows "
            "of a second user in train"
        )
    embedder = MiniLM()
    given, ratings = _features(embedder, train), _ratings(train)
    rest: Any
    if validation:
        held_out = "validation"
        rest, others, truth = slice(None), _features(embedder, validation), _ratings(validation)
    else:
        held_out = f"a fifth of the users of train, drawn by seed {args.seed}"
        fold = user_fold(users, args.seed)
        rest, others, truth = ~fold, given[fold], ratings[fold]
        print(f"no validation rows: the strength of the penalty is chosen on {held_out}", file=sys.stderr)
    errors = {}
    for strength in STRENGTHS:
        predicted = predict(others, fit(given[rest], ratings[rest], strength))
        errors[strength] = float(np.abs(np.clip(predicted, data.scale.minimum, data.scale.maximum) - truth).mean())
    best = min(errors, key=lambda strength: errors[strength])
    facts = {
        "head": 1,
        "embedder": "all-MiniLM-L6-v2",
        "scale": [data.scale.minimum, data.scale.maximum],
        "strength": best,
        "rows": len(train),
        "mae": errors[best],
        "mae_of_mean": float(np.abs(ratings[rest].mean() - truth).mean()),
        "mae_of_median": float(np.abs(np.median(ratings[rest]) - truth).mean()),
        "held_out": held_out,
        "held_out_rows": len(truth),
    }
    save(args.out, fit(given, ratings, best), facts)
    print(json.dumps(facts, indent=1))
    print(f"frozen in {args.out}; use it as recommender: head:{args.out}", file=sys.stderr)
    return 0


def user_fold(users: Sequence[str], seed: int) -> Any:
    """Which rows to hold out where there is no validation split: all rows of a fifth of the users, at least of one.

    Args:
        users: The user of each row.
        seed: Of the draw.

    Returns:
        Booleans; shape (rows,).
    """
    import numpy as np

    distinct = sorted(set(users))
    drawn = random.Random(seed).sample(distinct, max(1, len(distinct) // FOLDS))
    return np.isin(users, drawn)


def user_text(user: User, *, rows: int = 10, review_chars: int = 200) -> str:
    """What the head is fitted on for a user: the raw history, the most recent rows first.

    Args:
        user: With any history.
        rows: Most rows.
        review_chars: Characters of each review.
    """
    lines = [
        f"Rated {row.rating:.1f}: {quote(row.title, 80)}. {quote(row.review, review_chars)}"
        for row in reversed(user.history[-rows:])
    ]
    return "\n".join(lines)


def item_text(item: Item, *, rows: int = 10, review_chars: int = 200) -> str:
    """What the head is fitted on for an item: its title, and what others said, the most recent rows first.

    Args:
        item: With any evidence.
        rows: Most rows.
        review_chars: Characters of each review.
    """
    lines = [quote(item.title or "", 200)]
    lines += [f"Rated {row.rating:.1f}: {quote(row.review, review_chars)}" for row in reversed(item.evidence[-rows:])]
    return "\n".join(lines)


def _features(embedder: Any, rows: Sequence[PreparedExample]) -> Any:
    async def embed(texts: list[str]) -> Any:
        return await embedder.embed(texts)

    users = anyio.run(embed, [user_text(row.example.user) for row in rows])
    items = anyio.run(embed, [item_text(row.example.item) for row in rows])
    return features(users, items)


def _ratings(rows: Sequence[PreparedExample]) -> Any:
    import numpy as np

    return np.array([row.example.rating for row in rows])


def features(users: Any, items: Any) -> Any:
    """User, item, and their product in every dimension.

    Args:
        users: Shape (rows, dimensions).
        items: As many.

    Returns:
        Shape (rows, 3 · dimensions + 1); the last column is the cosine where both have length 1.
    """
    import numpy as np

    users, items = np.asarray(users, dtype=np.float64), np.asarray(items, dtype=np.float64)
    product = users * items
    return np.hstack([users, items, product * np.sqrt(users.shape[1]), product.sum(axis=1, keepdims=True)])


def fit(features: Any, ratings: Any, strength: float) -> Any:
    """Weights and intercept of a ridge regression.

    Args:
        features: Shape (rows, columns).
        ratings: In rating points.
        strength: Of the penalty on the weights; the intercept bears none.

    Returns:
        Shape (columns + 1,); the intercept is the last.
    """
    import numpy as np

    mean, centre = features.mean(axis=0), ratings.mean()
    centred = features - mean
    gram = centred.T @ centred + strength * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (ratings - centre))
    return np.append(weights, centre - mean @ weights)


def predict(features: Any, weights: Any) -> Any:
    """Ratings, which may lie beyond the scale.

    Args:
        features: Shape (rows, columns).
        weights: As `fit` gives them.
    """
    return features @ weights[:-1] + weights[-1]


def save(folder: Path, weights: Any, facts: dict[str, Any]) -> None:
    """Write a head.

    Args:
        folder: Made where it is not there.
        weights: As `fit` gives them.
        facts: What is known of it.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weights": weights}, folder / "head.safetensors")
    (folder / "head.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@cache
def _embedder() -> Embedder:
    from duet_train.minilm import MiniLM

    return MiniLM()


class HeadRecommender:
    """A recommender that reads the two profiles and nothing else: neither history nor evidence, and no title.

    A side without a profile counts as a text of no meaning, so what is predicted without profiles is the head's
    intercept.

    Args:
        embedder: The one it was fitted with.
        weights: As `fit` gives them.
        scale: Where ratings lie.
    """

    def __init__(self, embedder: Embedder, weights: Any, scale: RatingScale) -> None:
        self.scale = scale
        self._embedder = embedder
        self._weights = weights
        self._known: OrderedDict[str, Sequence[float]] = OrderedDict()

    @classmethod
    def load(cls, folder: Path | str) -> HeadRecommender:
        """A head from its folder, over the packaged embedder.

        Args:
            folder: That `python -m duet_train head` wrote.

        Raises:
            ConfigurationError: It holds no head.
            MissingExtraError: The embedder is not installed.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            facts = json.loads((Path(folder) / "head.json").read_text(encoding="utf-8"))
            weights = load_file(Path(folder) / "head.safetensors")["weights"]
        except (OSError, ValueError, KeyError, SafetensorError) as exc:
            raise ConfigurationError(f"{folder}: holds no head") from exc
        return cls(_embedder(), weights, RatingScale(*facts["scale"]))

    async def predict(self, user: User, item: Item, profile: JointProfile | None) -> Rating:
        """What the head makes of the two texts, within the scale.

        Args:
            user: Not looked at.
            item: Not looked at.
            profile: The texts of its profiles are read; cues and constructed prompts are not.
        """
        import numpy as np

        sides = (profile.user, profile.item) if profile else (None, None)
        users, items = [await self._embed(side.text if side else "") for side in sides]
        value = float(predict(features(np.array([users]), np.array([items])), self._weights)[0])
        return Rating(self.scale.clip(value))

    async def _embed(self, text: str) -> Sequence[float]:
        if not text:
            return [0.0] * (len(self._weights) // 3)
        if text not in self._known:
            (self._known[text],) = await self._embedder.embed([text])
            while len(self._known) > CACHED:
                self._known.popitem(last=False)
        return self._known[text]
