"""TRL's trainers, kept quiet: nothing is reported of their use, and the model card is this project's own."""

from __future__ import annotations

from typing import Any


class Quiet:
    """Goes before a trainer of TRL's in the bases of a class."""

    def _send_telemetry(self) -> None:
        """Send none, whatever the environment says."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: it would name the hub's and a tracker's pages."""


def quiet(trainer: type[Any]) -> type[Any]:
    """The same trainer, quiet.

    Args:
        trainer: A class of TRL's.
    """
    return type(trainer.__name__, (Quiet, trainer), {})
