"""Next-item choice (BLUE): from the user's profile alone, which of these items comes next?"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Sequence

from duet import Endpoint, Ledger, RatingError, Sampling, choice_prompt


async def choose(
    endpoint: Endpoint,
    profile: str,
    titles: Sequence[str],
    *,
    sampling: Sampling,
    ledger: Ledger | None,
    users: Iterable[str] = (),
) -> list[float]:
    """How likely the model finds each item: the log-probability of its letter.

    A letter that is not among the likeliest tokens is less likely than any that is, and not unknown: it gets −inf.

    Args:
        endpoint: What answers; it must give log-probabilities.
        profile: The user's profile.
        titles: The items.
        sampling: With `max_tokens` 1 and log-probabilities.
        ledger: Where finished generations are kept and looked up.
        users: Ids of all whose interactions the profile was made from.

    Raises:
        EndpointError: The infrastructure's fault.
        RatingError: No letter is among the likeliest tokens.
    """
    messages = choice_prompt(profile, titles)
    if ledger is None:
        completion = await endpoint.generate(messages, sampling)
    else:
        completion = await ledger.generate(endpoint, messages, sampling, users=users)
    likely: dict[str, float] = {}
    for first in completion.logprobs[:1]:
        # Some servers leave the token they chose out of the likeliest.
        for token, logprob in (*first.top_logprobs, (first.token, first.logprob)):
            likely[token.strip()] = max(logprob, likely.get(token.strip(), -math.inf))
    scores = [likely.get(letter, -math.inf) for letter in string.ascii_uppercase[: len(titles)]]
    if max(scores) == -math.inf:
        raise RatingError("no letter is among the likeliest tokens", text=completion.text)
    return scores
