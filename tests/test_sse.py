"""Event streams and bodies: bytes in, payloads and completions out, however the bytes are cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet import Completion, TokenLogprob, Usage
from duet._sse import (
    MAX_EVENT_BYTES,
    ChatDecoder,
    ErrorObject,
    EventDecoder,
    ProtocolViolation,
    load,
    read_completion,
    read_embeddings,
    read_error,
    read_logprobs,
    read_usage,
)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


def payloads(*pieces: bytes) -> list[bytes]:
    decoder = EventDecoder()
    return [payload for piece in pieces for payload in decoder.feed(piece)] + decoder.close()


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def choice(**fields: Any) -> bytes:
    return event({"model": "m", "choices": [{"index": 0, "delta": {}} | fields]})


def text(content: str) -> bytes:
    return choice(delta={"content": content})


STOP = choice(finish_reason="stop")
DONE = b"data: [DONE]\n\n"


def decoded(*pieces: bytes) -> ChatDecoder:
    decoder = ChatDecoder()
    for piece in pieces:
        decoder.feed(piece)
    return decoder


def result(*pieces: bytes) -> Completion:
    return decoded(*pieces).result()


# Event streams


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data:  a\ndata:  b\n\n", [b" a\n b"]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\ndata: b\n\n", [b"\nb"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"]),
        (b": ping\n\ndata: a\n\n: ping\n\n", [b"a"]),
        (b": ping\ndata: a\n\n", [b"a"]),
        (b"event: message\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"data: a\nevent: message\n\n", [b"a"]),
        (b"event: ping\n\n", []),
        (b"data: \n\n", []),
        (b"data\n\n", []),
        (b"dataset: a\n\n", []),
        (b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: \xef\xbb\xbfa\n\n", [b"\xef\xbb\xbfa"]),
        (b"\n\n\xef\xbb\xbfdata: a\n\n", []),
        (b"data: \xc3\xa9\xe2\x80\xa8\n\n", [b"\xc3\xa9\xe2\x80\xa8"]),
        (b"data: a", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"data: a\r\n", [b"a"]),
        (b"data: a\ndata: b", [b"a\nb"]),
        (b"", []),
    ],
    ids=repr,
)
def test_events_of_a_stream(stream: bytes, expected: list[bytes]) -> None:
    """The payloads of a stream are those of the event-stream grammar."""
    assert payloads(stream) == expected


contents = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=9).map(
        str.encode
    ),
    max_size=3,
).filter(bool)
noise = st.sampled_from([b"", b": ping", b"event: message", b"id: 7", b":", b"retry: 1"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream in any spelling of the grammar, and its payloads."""
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    stream, expected = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])), []
    for lines in draw(st.lists(contents, max_size=4)):
        before, after, space = draw(noise), draw(noise), draw(st.sampled_from([b" ", b""]))
        # Without the space after the colon a first space of the text would be taken for it.
        lines = [line.lstrip(b" ") or b"x" for line in lines]
        fields = [
            *([before] if before else []),
            *(b"data:" + space + line for line in lines),
            *([after] if after else []),
        ]
        stream += end.join(fields) + end + end
        expected.append(b"\n".join(lines))
    return stream, expected


@given(streams(), st.lists(st.integers(0, 200), max_size=12))
@settings(deadline=None, max_examples=200)
def test_cuts_and_spelling_do_not_change_the_payloads(stream: tuple[bytes, list[bytes]], places: list[int]) -> None:
    """Any way to cut the bytes and any line ending, comment or byte-order mark gives the same payloads."""
    data, expected = stream
    assert payloads(*cut(data, places)) == expected


@given(streams())
@settings(deadline=None, max_examples=100)
def test_single_bytes_give_the_same_payloads(stream: tuple[bytes, list[bytes]]) -> None:
    """A stream fed byte by byte gives the payloads of the whole."""
    data, expected = stream
    assert payloads(*(data[place : place + 1] for place in range(len(data)))) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_payload_comes_with_the_blank_line(end: bytes) -> None:
    """An event is handed over as soon as the last byte of its blank line has come."""
    decoder = EventDecoder()
    assert [decoder.feed(b"data: a" + end + end[:-1]), decoder.feed(end[-1:])] == [[], [b"a"]]


@pytest.mark.parametrize("before", [b"\n", b"\n\n", b"data: a\n\n", b": ping\n\n"], ids=repr)
def test_byte_order_mark_counts_at_the_very_beginning_only(before: bytes) -> None:
    """A byte-order mark at the beginning of a later read is part of a field's name, and so of an unknown field."""
    assert payloads(before, b"\xef\xbb\xbfdata: b\n\n") == payloads(before)


def test_feeding_nothing_gives_nothing() -> None:
    """An empty read brings no event and loses none."""
    assert payloads(b"", b"data: a", b"", b"\n\n", b"") == [b"a"]


def test_closing_again_gives_nothing() -> None:
    """The last event is handed over once."""
    decoder = EventDecoder()
    decoder.feed(b"data: a")
    assert [decoder.close(), decoder.close()] == [[b"a"], []]


def test_event_without_an_end_is_refused() -> None:
    """An event beyond the limit is refused instead of being gathered for ever."""
    with pytest.raises(ProtocolViolation, match="more than"):
        payloads(b"data: " + b"x" * MAX_EVENT_BYTES)


# Chat streams


def test_text_of_a_stream_is_joined() -> None:
    """The completion's text is that of all its chunks, in order."""
    assert result(text("Likes "), text("maps"), STOP, DONE).text == "Likes maps"


def test_feed_returns_the_new_text() -> None:
    """Feeding bytes returns the text they brought, of as many chunks as they hold."""
    decoder = ChatDecoder()
    assert [decoder.feed(text("a")), decoder.feed(text("b") + text("c")), decoder.feed(STOP)] == ["a", "bc", ""]


@given(st.lists(st.text(max_size=9), max_size=6), st.lists(st.integers(0, 900), max_size=12))
@settings(deadline=None, max_examples=100)
def test_cuts_do_not_change_the_completion(texts: list[str], places: list[int]) -> None:
    """Any way to cut the bytes of a chat stream gives the same completion."""
    stream = (
        b"".join(map(text, texts)) + STOP + event({"model": "m", "choices": [], "usage": {"prompt_tokens": 9}}) + DONE
    )
    assert result(*cut(stream, places)) == Completion("".join(texts), model="m", usage=Usage(9))


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls"])
def test_finish_reason_is_kept(reason: str) -> None:
    """The completion has the finish_reason that the stream gave."""
    assert result(text("a"), choice(finish_reason=reason), DONE).finish_reason == reason


def test_finish_reason_survives_later_chunks() -> None:
    """A chunk after the finish_reason, with none of its own, does not undo it."""
    assert result(text("a"), STOP, choice(finish_reason=None), DONE).finish_reason == "stop"


def test_stream_without_finish_reason_has_none() -> None:
    """A finish_reason is never made up."""
    assert result(text("a"), DONE).finish_reason is None


@pytest.mark.parametrize(
    ("pieces", "complete"),
    [((text("a"),), False), ((text("a"), STOP), True), ((text("a"), DONE), True), ((), False)],
    ids=["torso", "finish_reason", "[DONE]", "nothing"],
)
def test_stream_is_complete_with_finish_reason_or_done(pieces: tuple[bytes, ...], complete: bool) -> None:
    """A stream is complete once a finish_reason or [DONE] came, and not before."""
    assert decoded(*pieces).complete == complete


def test_done_is_told_apart_from_finish_reason() -> None:
    """Only [DONE] means that no more events follow."""
    assert [decoded(STOP).done, decoded(STOP, DONE).done] == [False, True]


def test_nothing_counts_after_done() -> None:
    """Events that follow [DONE] in one read are passed over."""
    assert result(text("a") + DONE + text("b") + b"data: nonsense\n\n").text == "a"


@pytest.mark.parametrize("later", [text("b"), b"data: nonsense\n\n", event({"error": {"message": "no"}})], ids=repr)
def test_nothing_counts_in_a_read_after_done(later: bytes) -> None:
    """Whatever comes in a read after [DONE] is passed over, errors included."""
    decoder = decoded(text("a"), DONE)
    assert (decoder.feed(later), decoder.result().text) == ("", "a")


@pytest.mark.parametrize("named", [0, 1, 2])
def test_model_may_be_named_by_any_chunk_of_a_read(named: int) -> None:
    """The model counts whichever of the chunks of one read names it."""
    chunks: list[dict[str, Any]] = [
        {"choices": []} | ({"model": "m"} if number == named else {}) for number in range(3)
    ]
    assert result(b"".join(map(event, chunks))).model == "m"


def test_model_is_the_first_one_named() -> None:
    """The model is the one that the stream names first."""
    chunks = [event({"model": name, "choices": []}) for name in ("", "first", "second")]
    assert result(*chunks).model == "first"


def test_last_usage_wins() -> None:
    """Where usage comes more than once, the last one counts."""
    counts = [event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": n}}) for n in (1, 2, 3)]
    assert result(*counts).usage == Usage(9, 3)


def test_usage_may_come_with_a_choice() -> None:
    """Usage beside a choice counts as well as on its own."""
    assert result(event({"choices": [{"delta": {}}], "usage": {"completion_tokens": 2}})).usage == Usage(0, 2)


def test_usage_of_null_does_not_undo_usage() -> None:
    """A chunk whose usage is null leaves the usage that came before."""
    assert result(
        event({"choices": [], "usage": {"prompt_tokens": 9}}), event({"choices": [], "usage": None})
    ).usage == (Usage(9))


def test_missing_usage_is_estimated_and_flagged() -> None:
    """Without usage the counts are estimates, and say so."""
    decoder = ChatDecoder(prompt_chars=40)
    decoder.feed(text("a") + text("b") + text("c") + STOP)
    assert decoder.result().usage == Usage(10, 3, estimated=True)


def test_usage_of_the_server_is_not_flagged() -> None:
    """Counts that the server gave are no estimates."""
    usage = result(text("a"), event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})).usage
    assert usage is not None
    assert not usage.estimated


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart(name: str) -> None:
    """Reasoning that the server splits off is kept, outside the text."""
    completion = result(choice(delta={name: "hm "}), choice(delta={name: "so"}), text("a"), STOP)
    assert (completion.reasoning, completion.text) == ("hm so", "a")


@pytest.mark.parametrize("delta", [{}, None, {"role": "assistant"}, {"content": None}, {"content": ""}], ids=repr)
def test_chunk_without_text_brings_none(delta: Any) -> None:
    """A chunk whose delta holds no text brings none."""
    assert ChatDecoder().feed(choice(delta=delta)) == ""


def test_empty_choices_are_no_harm() -> None:
    """A chunk with no choices, as the one with the usage, brings no text."""
    assert ChatDecoder().feed(event({"choices": [], "usage": {"prompt_tokens": 1}})) == ""


def test_other_choices_are_passed_over() -> None:
    """Text, logprobs and finish_reason of a choice other than 0 do not count."""
    other = choice(index=1, delta={"content": "no"}, finish_reason="length", logprobs=LOGPROBS)
    assert result(text("a"), other, STOP) == result(text("a"), STOP)


LOGPROBS = {
    "content": [
        {
            "token": "5",
            "logprob": -0.25,
            "top_logprobs": [{"token": "5", "logprob": -0.25}, {"token": "4", "logprob": -2}],
        }
    ]
}


def test_logprobs_are_gathered() -> None:
    """Log-probabilities of all chunks are kept, in order."""
    more = {"content": [{"token": "!", "logprob": -1}]}
    assert result(choice(logprobs=LOGPROBS), choice(logprobs=more)).logprobs == (
        TokenLogprob("5", -0.25, (("5", -0.25), ("4", -2.0))),
        TokenLogprob("!", -1.0),
    )


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}], ids=repr)
def test_missing_logprobs_are_none(logprobs: Any) -> None:
    """A choice without log-probabilities adds none."""
    assert result(choice(delta={"content": "a"}, logprobs=logprobs)).logprobs == ()


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"message": "slot lost", "code": 503}},
        {"error": {"message": "slot lost", "code": 503}, "choices": None},
        {"error": {"message": "slot lost", "code": 503}, "choices": []},
        {
            "error": {"message": "slot lost", "code": 503},
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
        },
        {"object": "error", "message": "slot lost", "code": 503},
    ],
    ids=repr,
)
def test_error_in_the_stream_is_raised(chunk: dict[str, Any]) -> None:
    """An error object among the events is raised with its message and code."""
    with pytest.raises(ErrorObject, match="slot lost") as caught:
        decoded(text("a"), event(chunk))
    assert caught.value.code == 503


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"nonsense",
        b"[]",
        b"7",
        b'"text"',
        b"null",
        b"{}",
        b'{"text": "a"}',
        b'{"choices": 7}',
        b'{"choices": ["a"]}',
        b'{"choices": [null]}',
        b'{"choices": {"0": {}}}',
        b'{"choices": [{"delta": "a"}]}',
        b'{"choices": [{"delta": {"content": 7}}]}',
        b'{"choices": [{"delta": {"content": ["a"]}}]}',
        b'{"choices": [{"delta": {}, "logprobs": 7}]}',
        b'{"choices": [{"delta": {}, "logprobs": {"content": [{}]}}]}',
        b'{"choices": [{"delta": {}, "logprobs": {"content": [{"token": "a", "logprob": "x"}]}}]}',
        b'{"choices": [{"delta": {}, "finish_reason": 7}]}',
        b'{"choices": [], "usage": "x"}',
        b'{"choices": [], "usage": {"prompt_tokens": "x"}}',
        b'{"choices": [], "usage": {"prompt_tokens": [1]}}',
        b'{"choices": [], "usage": {"prompt_tokens_details": "x"}}',
        b'{"choices": [], "model": 7}',
        b'{"choices": [{"delta": {"content": "\xff"}}]}',
    ],
    ids=repr,
)
def test_event_that_is_no_chunk_is_a_violation(payload: bytes) -> None:
    """An event that is not JSON, or no chat-completion chunk, is a protocol violation."""
    with pytest.raises(ProtocolViolation):
        ChatDecoder().feed(b"data: " + payload + b"\n\n")


def test_violation_shows_little_of_a_large_event() -> None:
    """The message of a violation stays short, whatever the size of the event."""
    with pytest.raises(ProtocolViolation) as caught:
        ChatDecoder().feed(b"data: " + b"x" * 100_000 + b"\n\n")
    assert len(str(caught.value)) < 300


def test_half_an_event_at_the_end_is_no_event() -> None:
    """An event that the end of the body cuts in two is passed over, and leaves the stream incomplete."""
    decoder = decoded(text("a"), text("b")[:-9])
    assert (decoder.close(), decoder.result().text, decoder.complete) == ("", "a", False)


def test_last_event_needs_no_blank_line() -> None:
    """A whole event at the end of the body counts without its blank line."""
    decoder = decoded(text("a"), text("b").rstrip())
    assert (decoder.close(), decoder.result().text) == ("b", "ab")


def test_last_done_needs_no_blank_line() -> None:
    """[DONE] at the end of the body counts without its blank line."""
    decoder = decoded(text("a"), DONE.rstrip())
    decoder.close()
    assert decoder.done


# Whole bodies


def body(**message: Any) -> bytes:
    return json.dumps(
        {
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant"} | message, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}},
        }
    ).encode()


def test_completion_of_a_body() -> None:
    """A chat completion in one body has text, finish_reason, model and usage."""
    assert read_completion(body(content="Likes maps")) == Completion(
        "Likes maps", finish_reason="length", model="m", usage=Usage(11, 3, cached_tokens=8)
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_body_keeps_reasoning_apart(name: str) -> None:
    """Reasoning in a body is kept, outside the text."""
    completion = read_completion(body(**{name: "hm", "content": "a"}))
    assert (completion.reasoning, completion.text) == ("hm", "a")


def test_body_without_content_is_an_empty_text() -> None:
    """A message whose content is null has an empty text."""
    assert read_completion(body(content=None)).text == ""


def test_body_has_logprobs() -> None:
    """Log-probabilities in a body are kept."""
    answer = json.loads(body(content="5"))
    answer["choices"][0]["logprobs"] = LOGPROBS
    assert read_completion(json.dumps(answer).encode()).logprobs == (
        TokenLogprob("5", -0.25, (("5", -0.25), ("4", -2.0))),
    )


def test_body_without_usage_is_estimated_and_flagged() -> None:
    """Without usage the counts of a body are estimates, at four characters a token, and say so."""
    answer = json.loads(body(content="12345678"))
    del answer["usage"]
    assert read_completion(json.dumps(answer).encode(), 40).usage == Usage(10, 2, estimated=True)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"<html>",
        b"[]",
        b"{}",
        b'{"object": "list"}',
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{}]}',
        b'{"choices": ["a"]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "x"}}',
        b'{"choices": [{"message": {"content": "a"}}], "model": 7}',
        b'{"choices": [{"message": {"content": "a"}, "finish_reason": 7}]}',
        b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": "x"}]}}]}',
    ],
    ids=repr,
)
def test_body_that_is_no_completion_is_a_violation(answer: bytes) -> None:
    """A body that is no chat completion is a protocol violation."""
    with pytest.raises(ProtocolViolation):
        read_completion(answer)


@pytest.mark.parametrize(
    "beside", [{}, {"choices": None}, {"choices": []}, {"choices": [{"message": {"content": "a"}}]}], ids=repr
)
def test_error_body_under_status_200_is_raised(beside: dict[str, Any]) -> None:
    """An error object in place of a completion, or beside one, is raised with its message and code."""
    answer = {"error": {"message": "no such model", "code": 404}} | beside
    with pytest.raises(ErrorObject, match="no such model") as caught:
        read_completion(json.dumps(answer).encode())
    assert caught.value.code == 404


# Embeddings


def embeddings(*rows: tuple[int, Any]) -> bytes:
    return json.dumps({"data": [{"index": index, "embedding": vector} for index, vector in rows]}).encode()


def test_embeddings_are_in_the_order_of_the_inputs() -> None:
    """Vectors are sorted by index, whatever order the server sends."""
    assert read_embeddings(embeddings((1, [3, 4]), (0, [1, 2])), 2) == [[1.0, 2.0], [3.0, 4.0]]


def test_no_inputs_have_no_embeddings() -> None:
    """An answer without vectors is that of no inputs."""
    assert read_embeddings(embeddings(), 0) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense",
        b"{}",
        b'{"data": null}',
        b'{"data": [{"index": 0}]}',
        b'{"data": [[1.0, 2.0]]}',
        embeddings((0, [1])),
        embeddings((0, [1]), (1, [1]), (2, [1])),
        embeddings((0, [1]), (0, [2])),
        embeddings((1, [1]), (2, [2])),
        embeddings((0, [1, 2]), (1, [1])),
        embeddings((0, [1]), (1, ["a"])),
        embeddings((0, [1]), (1, [None])),
        embeddings((0, [1]), (1, None)),
    ],
    ids=repr,
)
def test_answer_without_one_vector_an_input_is_a_violation(answer: bytes) -> None:
    """An answer that does not hold one vector of one length for each of two inputs is a protocol violation."""
    with pytest.raises(ProtocolViolation):
        read_embeddings(answer, 2)


def test_error_in_place_of_embeddings_is_raised() -> None:
    """An error object in place of embeddings is raised."""
    with pytest.raises(ErrorObject, match="too long"):
        read_embeddings(b'{"error": {"message": "too long"}}', 1)


# Errors, usage, logprobs


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        ({"error": {"message": "no", "code": 400}}, "no", 400),
        ({"error": {"message": "no", "type": "invalid_request_error", "code": "model_not_found"}}, "no", None),
        ({"error": {"message": "no", "status": 429}}, "no", 429),
        ({"error": {"reason": "no"}}, "{'reason': 'no'}", None),
        ({"error": "no"}, "no", None),
        ({"object": "error", "message": "no", "code": 404}, "no", 404),
        ({"detail": "Not Found"}, "Not Found", None),
    ],
    ids=repr,
)
def test_error_objects_of_every_shape_are_read(answer: dict[str, Any], message: str, code: int | None) -> None:
    """The error objects of all engines give a message, and a code where it is a number."""
    error = read_error(answer)
    assert error is not None
    assert (str(error), error.code) == (message, code)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"error": None}, {"object": "list", "data": []}], ids=repr)
def test_other_bodies_hold_no_error(answer: dict[str, Any]) -> None:
    """A body without an error object holds no error."""
    assert read_error(answer) is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, Usage(3, 4)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}, Usage(3, cached_tokens=2)),
        ({"prompt_tokens": 3, "completion_tokens": None, "prompt_tokens_details": None}, Usage(3)),
    ],
    ids=repr,
)
def test_usage_objects_are_read(usage: dict[str, Any], expected: Usage) -> None:
    """A usage object gives its counts, 0 for those that are missing or null."""
    assert read_usage(usage) == expected


def test_logprobs_without_alternatives_are_read() -> None:
    """A token without alternatives has none."""
    assert read_logprobs({"content": [{"token": "a", "logprob": 0, "top_logprobs": None}]}) == [TokenLogprob("a", 0.0)]


@pytest.mark.parametrize("payload", [b"", b"{", b'{"a": 1} x', b"[1]", b"null", b"'a'"], ids=repr)
def test_what_is_no_json_object_is_a_violation(payload: bytes) -> None:
    """Anything but one JSON object is a protocol violation."""
    with pytest.raises(ProtocolViolation):
        load(payload)


READERS: list[Callable[[bytes], object]] = [load, read_completion, lambda data: read_embeddings(data, 1)]


@pytest.mark.parametrize("read", READERS, ids=["load", "read_completion", "read_embeddings"])
@given(data=st.binary(max_size=40))
@settings(deadline=None, max_examples=60)
def test_random_bytes_are_a_violation(read: Callable[[bytes], object], data: bytes) -> None:
    """Random bytes are a protocol violation, and no other exception."""
    with pytest.raises(ProtocolViolation):
        read(data)
