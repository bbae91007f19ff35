"""Settings: what is sent, what is refused, and that keys go nowhere they should not."""

from __future__ import annotations

import math
import os
from typing import Any

import attrs
import pytest

from duet import ConfigurationError, Deadlines, EndpointSettings, HTTPEmbedder, HTTPEndpoint, Sampling

OPENAI = "https://api.openai.com/v1"
LOCAL = "http://127.0.0.1:8000/v1"


def found(**environ: str) -> EndpointSettings:
    return EndpointSettings.from_env({"DUET_MODEL": "m"} | environ)


# Sampling


def test_unset_fields_are_not_sent() -> None:
    """What is left to the server is not in the request."""
    assert Sampling().request_fields() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", 0.7),
        ("top_p", 0.9),
        ("max_tokens", 896),
        ("max_completion_tokens", 896),
        ("seed", 0),
        ("presence_penalty", 0.0),
        ("frequency_penalty", -2.0),
        ("logprobs", True),
        ("logprobs", False),
        ("top_logprobs", 20),
    ],
)
def test_set_field_is_sent_under_its_name(name: str, value: Any) -> None:
    """A field that is set is sent under its own name, 0 and False included."""
    fields: dict[str, Any] = {name: value}
    assert Sampling(**fields).request_fields() == {name: value}


def test_stop_strings_are_sent() -> None:
    """Stop strings are sent in the order given."""
    stop: dict[str, Any] = {"stop": ["</b>", "END"]}
    assert list(Sampling(**stop).request_fields()["stop"]) == ["</b>", "END"]


def test_stop_may_be_one_string() -> None:
    """A single stop string is one string, not its letters."""
    assert Sampling(stop="END") == Sampling(stop=["END"])


def test_extra_body_is_sent_beside_the_fields() -> None:
    """The engine's own fields stand beside the usual ones."""
    sampling = Sampling(temperature=1.0, extra_body={"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}})
    assert sampling.request_fields() == {
        "temperature": 1.0,
        "top_k": 20,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_extra_body_is_merged_last() -> None:
    """A field of the engine's own replaces the usual one of its name."""
    assert Sampling(temperature=1.0, extra_body={"temperature": 0.5}).request_fields() == {"temperature": 0.5}


def test_extra_body_is_copied() -> None:
    """Changing the mapping that was handed over changes no sampling."""
    extra = {"top_k": 20}
    sampling = Sampling(extra_body=extra)
    extra["top_k"] = 1
    assert sampling.request_fields() == {"top_k": 20}


def test_request_fields_are_a_copy() -> None:
    """Changing the request changes no sampling."""
    sampling = Sampling(extra_body={"top_k": 20})
    sampling.request_fields()["top_k"] = 1
    assert sampling.request_fields() == {"top_k": 20}


def test_grammar_is_left_to_the_endpoint() -> None:
    """The grammar is not among the fields, since each engine has its own for it."""
    assert Sampling(grammar="root ::= x").request_fields() == {}


def test_under_grammar_changes_the_grammar_alone() -> None:
    """A sampling under a grammar is the same sampling otherwise."""
    sampling = Sampling(temperature=0.5, extra_body={"top_k": 20})
    assert sampling.under_grammar("root ::= x") == attrs.evolve(sampling, grammar="root ::= x")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_tokens_are_refused(name: str, value: int) -> None:
    """A limit of no tokens is refused, and the error names it."""
    fields: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=name):
        Sampling(**fields)


@pytest.mark.parametrize("value", [-0.1, -math.inf, math.nan])
def test_negative_temperature_is_refused(value: float) -> None:
    """A temperature below zero, or none at all, is refused."""
    with pytest.raises(ConfigurationError, match="temperature"):
        Sampling(temperature=value)


# Deadlines


NAMES = ["connect", "first_token", "idle", "total"]


def test_deadlines_are_the_four() -> None:
    """There are four deadlines."""
    assert [field.name for field in attrs.fields(Deadlines)] == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_deadline_that_is_over_at_once_is_refused(name: str, value: float) -> None:
    """A deadline must lie in the future, and the error names it."""
    fields: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=f"Deadlines.{name}"):
        Deadlines(**fields)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, 0.001, math.inf])
def test_deadline_may_be_far_or_none(name: str, value: float | None) -> None:
    """Any positive number of seconds will do, and None waits for ever."""
    fields: dict[str, Any] = {name: value}
    assert getattr(Deadlines(**fields), name) == value


# The environment


def test_address_model_and_key_are_read() -> None:
    """DUET_BASE_URL, DUET_MODEL and DUET_API_KEY are the endpoint's settings."""
    environ = {"DUET_BASE_URL": LOCAL, "DUET_MODEL": "m", "DUET_API_KEY": "k"}
    assert EndpointSettings.from_env(environ) == EndpointSettings(LOCAL, "m", "k")


@pytest.mark.parametrize("environ", [{}, {"DUET_MODEL": ""}, {"DUET_BASE_URL": LOCAL, "OPENAI_API_KEY": "k"}], ids=repr)
def test_missing_model_is_refused(environ: dict[str, str]) -> None:
    """Without a model the environment names no endpoint, and the error says which variable to set."""
    with pytest.raises(ConfigurationError, match="DUET_MODEL"):
        EndpointSettings.from_env(environ)


def test_openais_own_address_is_the_default() -> None:
    """Without an address the endpoint is OpenAI's, with its key."""
    assert found(OPENAI_API_KEY="k") == EndpointSettings(OPENAI, "m", "k")


def test_openais_address_comes_with_openais_key() -> None:
    """OPENAI_API_KEY is sent to OPENAI_BASE_URL."""
    assert found(OPENAI_BASE_URL=LOCAL, OPENAI_API_KEY="k") == EndpointSettings(LOCAL, "m", "k")


@pytest.mark.parametrize("other", [{}, {"OPENAI_BASE_URL": OPENAI}, {"DUET_API_KEY": ""}], ids=repr)
def test_openais_key_never_goes_to_another_address(other: dict[str, str]) -> None:
    """OPENAI_API_KEY is not sent to DUET_BASE_URL, whatever else is set."""
    assert found(DUET_BASE_URL=LOCAL, OPENAI_API_KEY="k", **other) == EndpointSettings(LOCAL, "m", None)


@pytest.mark.parametrize("address", [{"DUET_BASE_URL": LOCAL}, {"OPENAI_BASE_URL": LOCAL}, {}], ids=repr)
def test_own_key_wins(address: dict[str, str]) -> None:
    """DUET_API_KEY is sent wherever the endpoint is, before OPENAI_API_KEY."""
    assert found(DUET_API_KEY="own", OPENAI_API_KEY="k", **address).api_key == "own"


def test_own_address_wins() -> None:
    """DUET_BASE_URL comes before OPENAI_BASE_URL."""
    assert found(DUET_BASE_URL=LOCAL, OPENAI_BASE_URL=OPENAI).base_url == LOCAL


@pytest.mark.parametrize("environ", [{}, {"DUET_API_KEY": ""}, {"OPENAI_API_KEY": ""}], ids=repr)
def test_empty_key_is_none(environ: dict[str, str]) -> None:
    """A key that is empty, or not there, is not sent."""
    assert found(**environ).api_key is None


def test_empty_address_is_none() -> None:
    """An address that is empty is as good as none."""
    assert found(DUET_BASE_URL="", OPENAI_BASE_URL="").base_url == OPENAI


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping the environment of the process is read, as it is at the time."""
    for name in [name for name in os.environ if name.startswith(("DUET_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DUET_MODEL", "m")
    monkeypatch.setenv("DUET_BASE_URL", LOCAL)
    assert EndpointSettings.from_env() == EndpointSettings(LOCAL, "m")


# Keys


SECRET = "sk-very-secret"


@pytest.mark.parametrize(
    "holder",
    [
        EndpointSettings(LOCAL, "m", SECRET),
        HTTPEndpoint(LOCAL, "m", api_key=SECRET),
        HTTPEmbedder(LOCAL, "m", api_key=SECRET),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_key_does_not_show(holder: object) -> None:
    """Neither the repr nor the text of what holds a key shows it."""
    assert SECRET not in f"{holder!r} {holder}"


def test_repr_tells_whether_there_is_a_key() -> None:
    """The repr of settings tells a hidden key from no key."""
    assert [repr(EndpointSettings(LOCAL, "m", key)).rpartition("=")[2] for key in (None, SECRET)] == ["None)", "'***')"]
