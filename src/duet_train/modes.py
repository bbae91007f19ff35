"""How a recommender is asked where nobody says: by log-probabilities wherever its server gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from duet import ConfigurationError, EndpointRejected, Item, LLMRecommender, RatingError, User

Mode = Literal["expected", "decimal", "integer"]

AUTO = "auto"
MODES = (AUTO, "expected", "decimal", "integer")

_NOBODY, _NOTHING = User("nobody"), Item("nothing")


async def decide(asked: str, recommender: Callable[[Mode], LLMRecommender], *, gives_logprobs: bool = False) -> Mode:
    """The mode that was asked for; for "auto" the one that training and evaluation take alike.

    That is "expected" where the scale has labels of one token and the server gives log-probabilities, else "decimal".
    Whether it gives them is seen from one question of one token, in the form of all that follow and with their
    settings. Where the server refuses it, the same question without log-probabilities tells whether these were why.

    Args:
        asked: One of `MODES`.
        recommender: Makes the recommender of a mode; its ledger keeps the answer.
        gives_logprobs: Whether the server is known to give them, so that nothing has to be asked.

    Raises:
        EndpointError: No answer came, or the server refuses the question in either form.
    """
    if asked != AUTO:
        return cast("Mode", asked)
    try:
        scored = recommender("expected")
    except ConfigurationError:  # the scale has too few or too many whole numbers
        return "decimal"
    if gives_logprobs or await _is_answered(scored):
        return "expected"
    await _is_answered(recommender("decimal"), refusal_is_final=True)
    return "decimal"


async def _is_answered(recommender: LLMRecommender, *, refusal_is_final: bool = False) -> bool:
    """Whether the server answers in the mode at all, be it with a rating or without."""
    try:
        await recommender.predict(_NOBODY, _NOTHING, None)
    except RatingError:
        pass
    except EndpointRejected:
        if refusal_is_final:
            raise
        return False
    return True
