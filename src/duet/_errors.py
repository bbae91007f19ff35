"""The error tree: the type of an error says whose fault it was.

::

    DuetError
    ├── RecordError (ValueError)           a record's field does not hold: names the field
    ├── ConfigurationError (ValueError)    bad settings, before any generation
    ├── MissingExtraError (ImportError)    names the exact pip command
    ├── EndpointError                      the infrastructure's fault   → Reward.value is None
    │   ├── EndpointUnavailable            connect, time-out, 5xx, 429 after the retries, cut in mid-stream
    │   ├── EndpointRejected               4xx: wrong model name, prompt too long, wrong key
    │   └── IncompleteStream               the body ended without finish_reason or [DONE]
    ├── CompletionError                    the policy's fault           → format_penalty
    │   ├── TruncatedCompletion            the token limit cut it before the last section was closed
    │   └── MalformedCompletion            sections missing or empty
    ├── BudgetExceeded                     the caller's own limit, before the next call
    ├── RatingError                        the recommender's answer holds no rating on the scale
    └── LedgerError                        the ledger's file cannot be read or written

Every error survives pickling: the message is the only positional argument, all else lives in the instance's
dictionary, which is what ``BaseException.__reduce__`` carries over.
"""

from __future__ import annotations


class DuetError(Exception):
    """Base class of every error this package raises on its own account."""


class RecordError(DuetError, ValueError):
    """A field of a record does not hold.

    Args:
        message: What does not hold, the value quoted.
        field: As the attribute.

    Attributes:
        field: Name of the field, with an index where it is one of many (``"history[3].at"``).
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ConfigurationError(DuetError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class MissingExtraError(DuetError, ImportError):
    """An optional package or its weights are not installed; the message holds the pip command."""


class EndpointError(DuetError):
    """The endpoint failed: nothing can be said about the policy.

    Args:
        message: What happened; nothing in it was sent as a secret.
        endpoint: As the attribute.
        status_code: As the attribute.
        retry_after: As the attribute.

    Attributes:
        endpoint: Address of the endpoint, without user, password or query.
        status_code: HTTP status, or None where no answer came.
        retry_after: Seconds that the endpoint asked to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str = "",
        status_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.status_code = status_code
        self.retry_after = retry_after


class EndpointUnavailable(EndpointError):
    """No usable answer came: connection, deadline, 5xx or 429 after the retries, a cut in mid-stream."""


class EndpointRejected(EndpointError):
    """The endpoint refuses this request and would refuse it again."""


class IncompleteStream(EndpointError):
    """The body ended without ``finish_reason`` or ``[DONE]``, so its text may be a torso."""


class CompletionError(DuetError):
    """The policy's completion is not a profile.

    Args:
        message: What it lacks.
        completion: As the attribute.

    Attributes:
        completion: The text as it came.
    """

    def __init__(self, message: str, *, completion: str = "") -> None:
        super().__init__(message)
        self.completion = completion


class TruncatedCompletion(CompletionError):
    """The token limit (``finish_reason`` "length"), or an unclosed ``<think>``, cut the completion short."""


class MalformedCompletion(CompletionError):
    """Sections are missing or empty.

    Args:
        message: Names them.
        completion: As for `CompletionError`.
        missing: As the attribute.

    Attributes:
        missing: The sections that are missing or blank, as ``"user.cue"``.
    """

    def __init__(self, message: str, *, completion: str = "", missing: tuple[str, ...] = ()) -> None:
        super().__init__(message, completion=completion)
        self.missing = missing


class RatingError(DuetError):
    """The recommender's answer holds no rating on the scale.

    Args:
        message: Quotes the beginning of the answer.
        text: As the attribute.

    Attributes:
        text: The answer as it came.
    """

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class BudgetExceeded(DuetError):
    """A `Budget` leaves no room for the next call; nothing of it was sent."""


class LedgerError(DuetError):
    """The ledger's file cannot be opened, read or written."""
