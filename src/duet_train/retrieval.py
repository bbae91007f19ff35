"""The whole catalogue by embedding: the user's profile against every item, as LangPTune and BLUE measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from duet import Embedder, Item, JointProfile
from duet_train.intervals import mean_interval
from duet_train.profile_metrics import Alignment, alignment
from duet_train.ranking_metrics import catalogue_metrics

Floats = npt.NDArray[np.float64]

CUTOFFS = (5, 10, 20)


async def embed_all(embedder: Embedder, texts: Sequence[str], step: Callable[[], object], batch: int = 64) -> Floats:
    """Unit vectors of the texts, one a row; zero where the embedder gave no direction.

    Args:
        embedder: What turns texts into vectors.
        texts: Any number.
        step: Called after each batch.
        batch: Texts asked for at once.
    """
    vectors: list[Sequence[float]] = []
    for start in range(0, len(texts), batch):
        vectors += await embedder.embed(texts[start : start + batch])
        step()
    matrix = np.asarray(vectors, dtype=np.float64).reshape(len(texts), -1 if texts else 0)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: Floats = np.divide(matrix, norms, out=np.zeros_like(matrix), where=np.isfinite(norms) & (norms > 0))
    return unit


def catalogue_figures(
    users: Floats, items: Floats, positives: Sequence[int], seen: Sequence[Iterable[int]], owners: Sequence[str]
) -> dict[str, Any]:
    """Recall, precision, MRR and NDCG at 5, 10 and 20 over all items but those the user had otherwise.

    Intervals resample users whole, since the rows of one user are not independent.

    Args:
        users: (rows, dimensions), unit vectors of the users' profiles.
        items: (catalogue, dimensions), unit vectors of the items' texts.
        positives: Index of the right item of each row.
        seen: Indices of the items that each row's user had; the positive is ranked even if it is among them.
        owners: Id of the user of each row.
    """
    figures: dict[str, list[float]] = {}
    for row, (positive, earlier) in enumerate(zip(positives, seen, strict=True)):
        exclude = np.zeros(len(items), dtype=np.bool_)
        exclude[list(earlier)] = True
        exclude[positive] = False
        found = catalogue_metrics(items @ users[row], [positive], CUTOFFS, exclude=exclude)
        for k, metrics in found.items():
            for name in ("recall", "precision", "mrr", "ndcg"):
                figures.setdefault(f"{name}@{k}", []).append(getattr(metrics, name))
    return {name: attrs.asdict(mean_interval(values, users=owners)) for name, values in figures.items()}


def alignment_figures(users: Floats, items: Floats) -> dict[str, float]:
    """Cosine of the two profiles of a row, of all other pairs, and the gap.

    Args:
        users: (rows, dimensions), unit vectors of the users' profiles.
        items: (rows, dimensions), unit vectors of the items' profiles, row by row. A pair with a zero among its two is
            left out.
    """
    known = users.any(axis=1) & items.any(axis=1)
    found: Alignment = alignment(users[known], items[known])
    return {"matched": found.matched, "mismatched": found.mismatched, "gap": found.gap}


def item_text(item: Item) -> str:
    """What an item is embedded as: title and attributes, no reviews."""
    return ". ".join([item.title or item.id, *(value for _, value in item.attributes)])


def user_text(profile: JointProfile | None) -> str:
    """What a user is embedded as: the profile's text."""
    return profile.user.text if profile is not None and profile.user is not None else ""
