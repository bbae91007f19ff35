"""What is loaded: weights in safetensors, no code, and nothing from outside the folder that was named."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from duet import ConfigurationError
from duet_train.adapters import read_adapter
from duet_train.bases import Base, read_base
from duet_train.embedding import check_embedder
from duet_train.head import HeadRecommender
from duet_train.hosting import check_adapter
from duet_train.models import check_model
from duet_train.server_adapters import check_name

SOURCES = sorted((Path(__file__).parent.parent / "src").rglob("*.py"))

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"torch.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}


def dangers(source: str) -> Iterator[str]:
    """What in a source could run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLERS:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in LOADERS:
                yield ast.unparse(node.func)
            yield from (ast.unparse(one) for one in node.keywords if _is_daring(one.arg, one.value))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and _is_daring(key.value, value):
                    yield f"{key.value!r}: {ast.unparse(value)}"


def _is_daring(name: object, value: ast.expr) -> bool:
    """Whether an option lets code run, or pickles in. Anything but a constant counts too."""
    harmless = {"trust_remote_code": False, "allow_pickle": False, "use_safetensors": True, "weights_only": True}
    return name in harmless and not (isinstance(value, ast.Constant) and value.value is harmless[str(name)])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_is_loaded_that_could_run(path: Path) -> None:
    """No source unpickles, evaluates, or trusts the code of a repository."""
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path)",
        "load(name, trust_remote_code=True)",
        "load(name, trust_remote_code=settings.trust)",
        'options = {"trust_remote_code": True}',
        'options = {"use_safetensors": None}',
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_planted_danger_is_found(source: str) -> None:
    """Each of these would be one."""
    assert len(list(dangers(source))) == 1


@pytest.mark.parametrize("source", ["model.eval()", "load(name, trust_remote_code=False)", "yaml.safe_load(text)"])
def test_harmless_code_is_none(source: str) -> None:
    """Namesakes, and options that are off, are no danger."""
    assert list(dangers(source)) == []


class Bomb:
    """Shows that it was unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


PICKLED = pickle.dumps({"weights": Bomb()})
CONFIG = '{"peft_type": "LORA", "lora_alpha": 8, "model_type": "llama", "scale": [1, 5]}'


def _model(folder: Path) -> None:
    check_model(SimpleNamespace(model_name_or_path=str(folder)))


@pytest.mark.parametrize(
    "load", [_model, read_adapter, lambda folder: read_base(str(folder)), lambda folder: check_embedder(str(folder))]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.pt", "model.pkl", "model.ckpt"])
def test_folder_of_pickles_is_refused(tmp_path: Path, load: Callable[[Path], Any], name: str) -> None:
    """A folder whose weights would have to be unpickled is refused in one sentence with its path."""
    (tmp_path / name).write_bytes(PICKLED)
    for config in ("config.json", "adapter_config.json"):
        (tmp_path / config).write_text(CONFIG)
    with pytest.raises(ConfigurationError, match="safetensors") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["head.safetensors", "head.bin"])
def test_pickled_head_is_refused(tmp_path: Path, name: str) -> None:
    """A head is read as safetensors, whatever its file is called."""
    (tmp_path / "head.json").write_text(CONFIG)
    (tmp_path / name).write_bytes(PICKLED)
    with pytest.raises(ConfigurationError, match="holds no head"):
        HeadRecommender.load(tmp_path)


NO_NAMES = ["", ".", "..", "../x", "x/../y", "/etc/x", "a/b", "a\\b", "~", ".hidden", "-x", "x\0", "x\n", "x y", "ä"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_adapter_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    """A name that is a path, hidden, or an option to a command is refused before a file is touched."""
    with pytest.raises(ConfigurationError, match="name"):
        check_adapter(name, tmp_path / "nowhere", Base("made-up", None))
    with pytest.raises(ConfigurationError, match="name"):
        check_name(name)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_link_to_another_file_shows_nothing_of_it(tmp_path: Path, name: str) -> None:
    """A link in an adapter's folder leads to a file of its own kind, or is refused without a word of what it holds."""
    (tmp_path / "elsewhere").write_text("root:x:0:0")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(CONFIG)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError) as caught:
        read_adapter(folder)
    assert "root" not in str(caught.value).replace(str(tmp_path), "")
