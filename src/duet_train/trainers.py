"""TRL's trainers, kept quiet and exact.

Nothing is reported of their use, the model card is this project's own, and what is trained is held in float32.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duet_train.adapters import WEIGHTS
from duet_train.precision import as_loaded, hold_in_float32


class Quiet:
    """Goes before a trainer of TRL's in the bases of a class."""

    def _send_telemetry(self) -> None:
        """Send none, whatever the environment says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from transformers import PrinterCallback, ProgressCallback

        super().__init__(*args, **kwargs)
        self.loaded_dtypes = hold_in_float32(self)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        loaded = self.model if model is None else model  # type: ignore[attr-defined]
        # transformers 5.22 and older pass over the trained adapter where that of the reference stands beside it.
        if len(getattr(loaded, "peft_config", ())) > 1 and Path(resume_from_checkpoint, WEIGHTS).is_file():
            loaded.load_adapter(resume_from_checkpoint, "default", is_trainable=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: it would name the hub's and a tracker's pages."""


def quiet(trainer: type[Any]) -> type[Any]:
    """The same trainer, quiet, with what it trains in float32.

    Args:
        trainer: A class of TRL's.
    """
    return type(trainer.__name__, (Quiet, trainer), {})


def train_to_the_end(trainer: Any, checkpoint: Path | None) -> None:
    """Train to the end.

    Args:
        trainer: Of transformers or TRL.
        checkpoint: Where to go on from; None at the start. Where the run had its last step there, none is added, as the
            trainer itself would.
    """
    # Sharded weights are loaded by the trainer's own loop alone.
    if checkpoint is not None and trainer.args.world_size == 1:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if state["global_step"] >= (trainer.args.max_steps if trainer.args.max_steps > 0 else state["max_steps"]):
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state.global_step = state["global_step"]
            return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def save(trainer: Any, folder: Path) -> None:
    """The trained weights in safetensors, in the dtype they compute in, and nothing that has to be unpickled.

    Args:
        trainer: Of `quiet`, at the end of its training.
        folder: For an adapter, or for the whole model.
    """
    as_loaded(trainer, trainer.loaded_dtypes)
    trainer.save_model(str(folder))
    if trainer.args.process_index == 0:
        (folder / "training_args.bin").unlink(missing_ok=True)
        shutil.rmtree(folder / "ref", ignore_errors=True)  # TRL's copy of the adapter that was gone on from


SHOWN = {
    "loss": "loss {:.4f}",
    "reward": "reward {:.3f}",
    "reward_std": "± {:.3f}",
    "duet/parse_rate": "parsed {:.0%}",
    "duet/flat_groups": "flat groups {:.0%}",
    "completions/mean_length": "{:.0f} tokens",
    "kl": "KL {:.4f}",
    "rewards/margins": "margin {:.3f}",
    "step_time": "{:.0f} s",
}
"""What a line of progress shows of a step, and how."""


def progress(step: int, steps: int, figures: Mapping[str, Any]) -> None:
    """A line on stderr.

    Args:
        step: Number of the step.
        steps: How many there are.
        figures: Of the step; only what `SHOWN` names is shown.
    """
    parts = [text.format(figures[key]) for key, text in SHOWN.items() if isinstance(figures.get(key), int | float)]
    print(f"step {step}/{steps}  {', '.join(parts)}".replace(", ±", " ±"), file=sys.stderr, flush=True)
