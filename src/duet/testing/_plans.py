"""When the fake server writes which bytes of an answer, and what becomes of the connection after them (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from duet.testing._answers import Answer, Transcript
from duet.testing._bodies import Body, error_object
from duet.testing._http import Refusal, chunked, closes, head

_DRIP_SECONDS = 0.01
_SILENT = ("reset", "close", "hang")
_BREAKS: Mapping[str | None, str] = {"cut_midstream": "close", "reset_midstream": "reset", "hang_midstream": "hang"}


@attrs.frozen
class Plan:
    """An answer ready to send.

    Args:
        writes: The seconds to wait before each write, and its bytes.
        end: What becomes of the connection: "keep", "close", "reset" or "hang".
    """

    writes: Sequence[tuple[float, bytes]]
    end: str


def replayed(transcript: Transcript) -> Plan:
    """A transcript in its writes."""
    step = transcript.cut or max(1, len(transcript.data))
    starts = range(0, len(transcript.data), step)
    writes = [(transcript.pace if at else 0.0, transcript.data[at : at + step]) for at in starts]
    return Plan(writes, "keep" if transcript.keeps_alive else "close")


def silence(answer: Answer) -> Plan | None:
    """The plan of an answer of which no byte is sent; None for any other answer."""
    return Plan([(answer.first_after, b"")], answer.fault) if answer.fault in _SILENT else None


def refused(refusal: Refusal, *, keep: bool) -> Plan:
    """A refusal as an error object."""
    body = error_object(refusal.status, str(refusal), refusal.code)
    return rendered(Answer("", status=refusal.status), Body([body]), keep=keep)


def rendered(answer: Answer, body: Body, *, keep: bool) -> Plan:
    """An answer with its body, as far as its fault lets it get; `keep` where the client would ask again."""
    headers = _headers(answer, body, keep)
    breaks = _BREAKS.get(answer.fault)
    frames = body.first_half if breaks else body.frames
    if answer.fault == "drip":
        frames = [bytes((byte,)) for frame in frames for byte in frame]
    if body.streamed:
        frames = chunked(frames, ends=not breaks)
    writes = _timed(answer, head(answer.status, headers), frames, head_first=body.streamed)
    return Plan(writes, breaks or ("close" if closes(headers) else "keep"))


def _headers(answer: Answer, body: Body, keep: bool) -> dict[str, str]:
    usual = "text/event-stream; charset=utf-8" if body.streamed else "application/json"
    headers = {"content-type": answer.content_type or usual}
    if body.streamed:
        headers["transfer-encoding"] = "chunked"
    else:
        headers["content-length"] = str(sum(map(len, body.frames)))
    if not keep:
        headers["connection"] = "close"
    return headers | {name.lower(): value for name, value in answer.headers.items()}


def _timed(answer: Answer, head: bytes, frames: Sequence[bytes], *, head_first: bool) -> list[tuple[float, bytes]]:
    """The writes; a head that does not go first goes with the first frame."""
    pace = answer.pace or (_DRIP_SECONDS if answer.fault == "drip" else 0.0)
    rest = [(pace, frame) for frame in frames[1:]]
    first = b"".join(frames[:1])
    if head_first:
        return [(0.0, head), (answer.first_after, first), *rest]
    return [(answer.first_after, head + first), *rest]
