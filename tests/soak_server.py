"""A server for the soak, in a process of its own: one pair of twenty meets a fault, known beforehand."""

from __future__ import annotations

import re
import sys

import anyio
import attrs

from duet import DuetError, EndpointRejected, EndpointUnavailable, IncompleteStream, MalformedCompletion
from duet import TruncatedCompletion as Truncated
from duet.testing import Answer, FakeServer, Request, completion_text

TEXT = completion_text()
GOOD = Answer(TEXT, chunks=[TEXT[at : at + 32] for at in range(0, len(TEXT), 32)])
EVERY = 20
AT_ONCE = {"retry-after": "0"}

TROUBLES: list[tuple[Answer, type[DuetError] | None]] = [
    (Answer(fault="reset"), EndpointUnavailable),
    (Answer(fault="close"), EndpointUnavailable),
    (Answer(fault="reset_midstream"), EndpointUnavailable),
    (Answer(fault="cut_midstream"), EndpointUnavailable),
    (Answer(fault="hang_midstream"), EndpointUnavailable),
    (Answer(fault="bad_json"), EndpointUnavailable),
    (Answer(fault="error_event"), EndpointUnavailable),
    (Answer(fault="end_early"), IncompleteStream),
    (Answer(status=400), EndpointRejected),
    (Answer(status=503, headers=AT_ONCE), EndpointUnavailable),
    (Answer(status=429, headers=AT_ONCE), None),  # the first time only
    (Answer(body="<html>", content_type="text/html"), EndpointRejected),
    (Answer(TEXT[:200], finish_reason="length"), Truncated),
    (Answer("I would rather not."), MalformedCompletion),
    (attrs.evolve(GOOD, done=False), None),
    (attrs.evolve(GOOD, headers={"connection": "close"}), None),
]


def trouble(number: int) -> tuple[Answer, type[DuetError] | None]:
    """What the pair of this number meets, and the error that it must end in; None for a profile."""
    if number % EVERY:
        return GOOD, None
    return TROUBLES[number // EVERY % len(TROUBLES)]


async def main() -> None:
    """Serve until standard input ends."""
    seen: set[str] = set()

    def answer(request: Request) -> Answer:
        server.requests.clear()
        match = re.search(r"pair (\d+)", request.json["messages"][1]["content"])
        assert match is not None
        found, _ = trouble(int(match[1]))
        if found.status == 429 and match[1] in seen:
            return GOOD
        seen.add(match[1])
        return found

    async with FakeServer(answer) as server:
        print(server.base_url, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main)
