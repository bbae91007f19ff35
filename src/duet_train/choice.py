"""Next-item choice (BLUE): from the user's profile alone, which of these items comes next?"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Sequence

from duet import Endpoint, Ledger, Sampling, choice_prompt, label_probabilities


async def choose(
    endpoint: Endpoint,
    profile: str,
    titles: Sequence[str],
    *,
    sampling: Sampling,
    ledger: Ledger | None,
    users: Iterable[str] = (),
    minimum_mass: float = 0.5,
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
        minimum_mass: The least probability of all letters together.

    Raises:
        EndpointError: The infrastructure's fault; also where there are no log-probabilities.
        RatingError: The letters have too little probability.
    """
    messages = choice_prompt(profile, titles)
    if ledger is None:
        completion = await endpoint.generate(messages, sampling)
    else:
        completion = await ledger.generate(endpoint, messages, sampling, users=users)
    letters = label_probabilities(completion, string.ascii_uppercase[: len(titles)], minimum_mass=minimum_mass)
    return [math.log(probability) if probability else -math.inf for probability in letters.values()]
