"""TRL's trainers, kept quiet: nothing is reported of their use, and the model card is this project's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


class Quiet:
    """Goes before a trainer of TRL's in the bases of a class."""

    def _send_telemetry(self) -> None:
        """Send none, whatever the environment says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from transformers import PrinterCallback, ProgressCallback

        super().__init__(*args, **kwargs)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)  # type: ignore[attr-defined]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: it would name the hub's and a tracker's pages."""


def quiet(trainer: type[Any]) -> type[Any]:
    """The same trainer, quiet.

    Args:
        trainer: A class of TRL's.
    """
    return type(trainer.__name__, (Quiet, trainer), {})


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
