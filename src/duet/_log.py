"""Structured events, ``noun.verb_past``, on the standard library's logger "duet": silent until the application listens.

Fields travel as the record's `extra`, which structlog's `ExtraAdder`, and any JSON formatter, turns into keys. No field
ever holds what users wrote, what a model wrote, whose it is, or a key: a pair is known by its place in the input.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import structlog

DEBUG, INFO = logging.DEBUG, logging.INFO

_LOGGER = logging.getLogger("duet")
_LOGGER.addHandler(logging.NullHandler())

hears = _LOGGER.isEnabledFor
"""Whether anybody listens at a level. Asked first, an event that nobody wants costs a dictionary's lookup."""


@functools.cache
def log() -> structlog.stdlib.BoundLogger:
    """The logger; structlog, 20 ms to import, is loaded with the first event."""
    import structlog

    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        _LOGGER,
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger
