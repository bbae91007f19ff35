"""``python -m duet_train explore``: models and temperatures sample many profiles an example, and all are scored.

LettinGo's first two stages (arXiv 2506.18309, "Explore" and "Evaluate"). The scored groups are what `sft` and `dpo` are
trained on, and a table of them says whether several models find better profiles than one model at several temperatures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from duet import ConfigurationError, Embedder, EndpointError, Ledger, Sampling
from duet_train.card import manifest_digest, plain, read_card, start_card
from duet_train.data.prepared import Prepared
from duet_train.dataset import Row, training_rows
from duet_train.exploration import Likeness, figures, markdown, profile_text, word_likeness
from duet_train.generators import open_generators, parse_generators
from duet_train.group_maker import GroupMaker
from duet_train.groups import FILE, append_group, mend, read_groups
from duet_train.recommenders import Opened, check_recommender, open_envs, with_mode
from duet_train.settings import Settings, add_training_arguments, names, option, read
from duet_train.tuning import say

PATIENCE = 8
"""Examples after which too many failures end a run."""


@dataclasses.dataclass(kw_only=True)
class ExploreSettings(Settings):
    """What exploring needs to know: who samples, how often and how hot."""

    output_dir: str = option("", "folder for groups.jsonl, the table, the card and, unless named, the ledger")
    seed: int = option(0, "of the rows that are drawn, and of the sampling")
    generators: str = option("", "who samples: URL,MODEL of one or more endpoints (URL,MODEL,KEY_VARIABLE), or local")
    temperatures: str = option("1.0", "at which each of them samples")
    samples: int = option(10, "completions an example in all, dealt in turn to the generators and temperatures")
    max_tokens: int = option(896, "of a completion")
    generator_extra_body: str = option("", "JSON merged into the generators' requests, to turn a model's thinking off")
    constrained: bool = option(False, "decode under the grammar of the form, for models that do not keep to it")
    concurrency: int = option(16, "most generations under way")
    similarity: str = option("words", "in the table: words for a cosine of word counts, embedding for the embedder's")

    @property
    def arms(self) -> list[tuple[str, float]]:
        """Each model at each temperature; models change fastest, so that few samples still meet all of them."""
        models = [one.model for one in parse_generators(self.generators)]
        return [(model, temperature) for temperature in self.degrees for model in models]

    @property
    def degrees(self) -> list[float]:
        """The temperatures."""
        try:
            found = [float(part) for part in names(self.temperatures)]
        except ValueError as exc:
            raise ConfigurationError(f"temperatures must be numbers with commas, got {self.temperatures!r}") from exc
        if not found or min(found) < 0 or len(set(found)) < len(found):
            raise ConfigurationError(f"temperatures must be different numbers from 0, got {self.temperatures!r}")
        return found

    @property
    def generator_body(self) -> dict[str, Any]:
        """Fields of the generators' requests."""
        try:
            body = json.loads(self.generator_extra_body or "{}")
        except ValueError as exc:
            raise ConfigurationError("generator_extra_body must be JSON") from exc
        if not isinstance(body, dict):
            raise ConfigurationError("generator_extra_body must be a JSON object")
        return body

    def check(self) -> None:
        """As for all runs, and the keys of this class.

        Raises:
            ConfigurationError: Names the key.
        """
        super().check()
        for name in ("data", "output_dir", "generators"):
            if not getattr(self, name):
                raise ConfigurationError(f"{name} is missing")
        for name in ("samples", "max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.similarity not in ("words", "embedding"):
            raise ConfigurationError(f"similarity must be words or embedding, got {self.similarity!r}")
        if self.samples < len(self.arms):
            raise ConfigurationError(
                f"samples = {self.samples} is too few for {len(self.arms)} pairs of generator and temperature"
            )
        _ = self.generator_body


DECIDING = (
    *("split", "sides", "sections", "independent", "history_limit", "evidence_limit", "review_chars", "section_chars"),
    *("generators", "temperatures", "samples", "seed", "max_tokens", "generator_extra_body", "constrained"),
    *("recommender", "recommender_mode", "recommender_extra_body", "rewards", "length_chars", "strict_paper"),
)
"""Keys that decide what a group holds: with others in these, a run cannot go on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_training_arguments(parser, ExploreSettings, "")
    parser.epilog = "The same command again goes on where a killed run was."


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    settings, keys, argv = read(args, ExploreSettings)
    if unknown := [*keys, *argv]:
        raise ConfigurationError(f"unknown key or option {unknown[0]!r}")
    check_recommender(settings)
    data = Prepared.open(settings.data)
    rows = training_rows(data, settings, seed=settings.seed)
    folder = Path(settings.output_dir)
    settings = with_mode(settings, data, folder)
    known = kept_groups(folder, settings, data)
    card = start_card(folder, "explore", data, len(rows), settings, seed=settings.seed)
    left = [row for row in rows if row.id not in known]
    say(f"{len(rows)} examples, {len(rows) - len(left)} of them done before; {settings.samples} completions each")
    failed = anyio.run(_explore, settings, data, left, folder) if left else []
    if failed and not (folder / FILE).exists():
        raise failed[0]
    text = report(settings, data, rows, folder)
    if failed:
        card.update(status="unfinished", unfinished=len(failed))
        say(
            f"{len(failed)} of {len(left)} examples unfinished ({failed[0]}); the same command asks for what is missing"
        )
    else:
        card.update(status="finished", finished=datetime.now(UTC).isoformat(timespec="seconds"), unfinished=0)
    print(text, end="")
    return 1 if failed else 0


def kept_groups(folder: Path, settings: ExploreSettings, data: Prepared) -> set[int]:
    """The examples that an earlier attempt finished.

    Args:
        folder: Of the run.
        settings: Of this attempt.
        data: What prepare wrote.

    Raises:
        ConfigurationError: The earlier attempt was made with other settings or data.
    """
    file = folder / FILE
    mend(file)
    if not file.exists():
        return set()
    before = read_card(folder)
    if before.get("data", {}).get("manifest_sha256") != manifest_digest(data):
        raise ConfigurationError(f"{folder} holds groups of other data than {data.directory}: name another output_dir")
    for name in DECIDING:
        old, new = before.get("settings", {}).get(name), getattr(settings, name)
        if _identity(name, old) != _identity(name, new):
            raise ConfigurationError(
                f"{folder} holds groups that were made with {name} = {old!r}, not {new!r}: name another output_dir"
            )
    return {group.example for group in read_groups(file)}


def _identity(name: str, value: Any) -> Any:
    """What of a value decides the groups: of generators the models, not the addresses, which may move."""
    if name == "generators":
        return [one.model for one in parse_generators(str(value))]
    return str(value).rpartition(",")[2] if name == "recommender" else value


async def _explore(settings: ExploreSettings, data: Prepared, rows: Sequence[Row], folder: Path) -> list[EndpointError]:
    """Write a group for each row; the errors of the rows that could not be finished."""
    failed: list[EndpointError] = []
    broken: list[Exception] = []
    generators = parse_generators(settings.generators)
    opened = open_generators(generators, rows, max_tokens=settings.max_tokens, key_variable=settings.api_key_env)
    async with (
        Ledger(settings.ledger or folder / "ledger.sqlite") as ledger,
        open_envs(settings, data, ledger=ledger) as envs,
        opened as endpoints,
    ):
        if any(envs(schema).in_batch for schema in {row.schema for row in rows}):
            raise ConfigurationError("rewards: explore scores group by group, and cannot take a contrastive term")
        maker = GroupMaker(
            endpoints,
            envs,
            ledger,
            arms=[settings.arms[place % len(settings.arms)] for place in range(settings.samples)],
            sampling=Sampling(top_p=1.0, max_tokens=settings.max_tokens, extra_body=settings.generator_body),
            seed=settings.seed,
            constrained=settings.constrained,
            concurrency=settings.concurrency,
        )
        waiting = iter(enumerate(rows, 1))

        async def work() -> None:
            for begun, row in waiting:
                try:
                    append_group(folder / FILE, await maker.group(row))
                except EndpointError as exc:
                    failed.append(exc)
                    if begun >= PATIENCE and len(failed) > settings.max_failed_share * begun:
                        broken.append(exc)
                except Exception as exc:  # raised below: a task group would wrap it
                    broken.append(exc)
                if broken:
                    return
                step()

        with _bar(len(rows)) as step:
            async with anyio.create_task_group() as group:
                # So many rows at once that the limit on generations is what binds.
                for _ in range(2 + settings.concurrency // settings.samples):
                    group.start_soon(work)
    if broken:
        raise broken[0]
    return failed


def report(settings: ExploreSettings, data: Prepared, rows: Sequence[Row], folder: Path) -> str:
    """Write the figures of all groups, and their tables; the tables.

    Args:
        settings: What counts as like.
        data: What prepare wrote.
        rows: That this run names.
        folder: With the groups.

    Raises:
        ConfigurationError: There is no group.
    """
    schemas = {row.id: row.schema for row in rows}
    file = folder / FILE
    groups = [group for group in read_groups(file) if group.example in schemas] if file.exists() else []
    if not groups:
        raise ConfigurationError(f"{folder}: no group was finished")
    texts = {profile_text(sample, schemas[group.example]) for group in groups for sample in group.samples}
    embedding = settings.similarity == "embedding"
    likeness = anyio.run(_embedded, settings, data, sorted(texts)) if embedding else word_likeness
    found = figures(groups, schemas, likeness, seed=settings.seed)
    (folder / "explore.json").write_text(
        json.dumps(plain(found), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    formed = sum(any(sample.well_formed for sample in group.samples) for group in groups)
    text = f"{len(groups)} examples, {formed} of them with a well-formed completion\n\n{markdown(found)}"
    (folder / "explore.md").write_text(text, encoding="utf-8")
    return text


async def _embedded(settings: ExploreSettings, data: Prepared, texts: Sequence[str]) -> Likeness:
    """The cosine of the embeddings of any two of the texts."""
    import numpy as np

    async with Opened(settings, data) as opened:
        embedder: Embedder = await opened.embedder()
        vectors = [
            vector for start in range(0, len(texts), 64) for vector in await embedder.embed(texts[start : start + 64])
        ]
    matrix = np.asarray(vectors, dtype=np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    places = {text: place for place, text in enumerate(texts)}
    return lambda first, second: float(matrix[places[first]] @ matrix[places[second]])


class _bar:
    """A progress bar on stderr; entering it gives the function that moves it on."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(total=total, desc="explore", unit="example", file=sys.stderr)

    def __enter__(self) -> Callable[[], object]:
        return lambda: self._bar.update()

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()
