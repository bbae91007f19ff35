"""Methods by name, and the ledger that counts what they ask."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from evaluations import prepared, tools

from duet import Completion, ConfigurationError, Ledger, Sampling
from duet.testing import ScriptedEndpoint, completion_text
from duet_train.baselines import IndependentProfiler, TemplateProfiler, duet_ladder
from duet_train.data.prepared import PreparedExample
from duet_train.methods import LADDER, METHODS, PROMPTED, CountingLedger, build

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> PreparedExample:
    """One test row."""
    return prepared(tmp_path_factory.mktemp("methods") / "out").examples("test")[0]


def test_every_method_can_be_built(tmp_path: Path) -> None:
    """Each name makes a method, and no two names the same one."""
    names = [build(name, tools(tmp_path)).name for name in METHODS]
    assert len(set(names)) == len(METHODS) == 14


def test_ladder_is_named_in_its_order(tmp_path: Path) -> None:
    """Each rung's name is that of the ladder's rung in the same place: the paper's order."""
    expected = [name for name, _ in duet_ladder(ScriptedEndpoint(""))]
    assert [build(name, tools(tmp_path)).name for name in LADDER] == expected
    assert [name for name in METHODS if name.startswith("duet")] == list(LADDER)


@pytest.mark.parametrize("name", ["duett", "", "DUET", "duett@adapter"])
def test_unknown_method_is_refused(tmp_path: Path, name: str) -> None:
    """A name that is none is refused with those that there are."""
    with pytest.raises(ConfigurationError, match="there are 10h, template, kar"):
        build(name, tools(tmp_path))


@pytest.mark.parametrize("name", ["10h@adapter", "template@adapter"])
def test_methods_without_a_model_take_none(tmp_path: Path, name: str) -> None:
    """A model for a method that asks none is a mistake, not something to pass over."""
    with pytest.raises(ConfigurationError, match="asks no model"):
        build(name, tools(tmp_path))


@pytest.mark.parametrize("name", ["duet", "duet-independent", "kar"])
def test_adapter_is_a_method_like_any_other(tmp_path: Path, name: str) -> None:
    """The name after @ is the model that is asked, however it is spelt; without one the common endpoint is."""
    asked: list[str | None] = []

    def endpoint(model: str | None) -> ScriptedEndpoint:
        asked.append(model)
        return ScriptedEndpoint("")

    kit = attrs.evolve(tools(tmp_path), endpoint=endpoint)
    build(f"{name}@org/adapter@7", kit)
    build(name, kit)
    assert asked == ["org/adapter@7", None]


def test_limits_of_the_prompt_hold_for_the_template(tmp_path: Path) -> None:
    """The template shows as many rows and characters as the prompts of the others."""
    found = build("template", tools(tmp_path))
    assert isinstance(found, TemplateProfiler)
    assert (found.history_limit, found.evidence_limit, found.max_chars) == (4, 5, 120)


@pytest.mark.parametrize("name", [*PROMPTED, "duet"])
async def test_limits_of_the_prompt_hold_for_all(tmp_path: Path, row: PreparedExample, name: str) -> None:
    """No method's prompt shows more rows of the user than the limit, nor a row that is not the profile's."""
    endpoint = ScriptedEndpoint(completion_text())
    kit = attrs.evolve(tools(tmp_path), endpoint=lambda model: endpoint)
    async with kit.ledger:
        try:
            await build(name, kit).profile(row.profile_user, row.example.item)
        except Exception:
            assert endpoint.calls  # the answer was none that this method can read; what it asked is what counts
    asked = "\n".join(message["content"] for messages, _ in endpoint.calls for message in messages)
    assert len(row.profile_user.history) > 4
    assert not [one.review for one in row.profile_user.history[:-4] if one.review in asked]


def test_independent_passes_share_the_prompt(tmp_path: Path) -> None:
    """The rung in two passes is one method, too."""
    assert isinstance(build("duet-independent", tools(tmp_path)), IndependentProfiler)


# Counting

MESSAGES = ({"role": "user", "content": "Name a whale."},)


async def test_generations_are_counted_made_or_not(tmp_path: Path) -> None:
    """What the other ledger holds counts as what is made, so that a second run counts the same."""
    endpoint = ScriptedEndpoint("Moby")
    async with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for _ in range(2):
            counting = CountingLedger(ledger)
            for _ in range(3):
                await counting.generate(endpoint, MESSAGES, Sampling(), users=[])  # type: ignore[arg-type]
            assert counting.calls == 3
    assert len(endpoint.calls) == 1


async def test_counting_ledger_keeps_in_the_other(tmp_path: Path) -> None:
    """What is put into it is found in the other, and the other way round."""
    async with Ledger(tmp_path / "ledger.sqlite") as ledger:
        counting = CountingLedger(ledger)
        await counting.put("digest", Completion("Moby"), model="m", messages=(), users=[])
        kept, seen = await ledger.get("digest"), await counting.get("digest")
    assert kept is not None
    assert seen == kept


@pytest.mark.parametrize(("name", "calls"), [("duet", 1), ("duet-independent", 2), ("template", 0), ("10h", 0)])
async def test_method_counts_its_own_generations(tmp_path: Path, row: PreparedExample, name: str, calls: int) -> None:
    """One pass is one generation, two passes are two, and no model is none."""
    kit = tools(tmp_path, ScriptedEndpoint(completion_text()))
    counting = CountingLedger(kit.ledger)
    async with kit.ledger:
        await build(name, attrs.evolve(kit, ledger=counting)).profile(row.profile_user, row.example.item)
    assert counting.calls == calls
