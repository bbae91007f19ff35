"""Test doubles for code that uses duet: a server, an endpoint, a recommender and sample records.

`FakeServer` speaks real HTTP over loopback, so timeouts, retries, cuts and proxies are tested as they happen.
`ScriptedEndpoint` needs no network at all. Both run on asyncio and on trio.

Example::

    async with FakeServer("<rating>4</rating>") as server, HTTPEndpoint(server.base_url, "fake") as endpoint:
        completion = await endpoint.generate(messages, Sampling())
    assert server.requests[0].json["messages"][-1]["role"] == "user"
"""

from duet.testing._answers import USAGE, Answer, AnswerLike, Fault, Transcript, completion_text
from duet.testing._doubles import ConstantRecommender, ScriptedAnswer, ScriptedEndpoint
from duet.testing._http import Request
from duet.testing._sample import sample_examples, sample_interactions, sample_items, sample_users
from duet.testing._server import FakeServer

__all__ = [
    "USAGE",
    "Answer",
    "AnswerLike",
    "ConstantRecommender",
    "FakeServer",
    "Fault",
    "Request",
    "ScriptedAnswer",
    "ScriptedEndpoint",
    "Transcript",
    "completion_text",
    "sample_examples",
    "sample_interactions",
    "sample_items",
    "sample_users",
]
