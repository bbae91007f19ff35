"""The cues alone: cheap to make, easy to inspect, fit to be cached or corrected by hand."""

from __future__ import annotations

from duet._endpoint import Endpoint
from duet._errors import ConfigurationError
from duet._ledger import Ledger, read_through
from duet._parser import SectionParser
from duet._prompts import CuePrompt
from duet._records import Item, User
from duet._results import Cues
from duet._settings import Sampling


class CueExtractor:
    """Writes the short cues of both sides and nothing else (DUET, stage 1).

    A profiler writes cues of its own in the same pass; this is for those who want to see them, keep them, or fix them:
    hand the result to `JointProfiler.profile` as ``cues=``.

    Args:
        endpoint: What generates.
        prompt: What the model is asked.
        sampling: How to sample.
        ledger: Where finished generations are kept and looked up.
        constrained: Decode under the schema's grammar.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        prompt: CuePrompt = CuePrompt(),
        sampling: Sampling = Sampling(max_tokens=256),
        ledger: Ledger | None = None,
        constrained: bool = False,
    ) -> None:
        if prompt.schema.sections != ("cue",):
            raise ConfigurationError(f"a CueExtractor writes cues alone, not {prompt.schema.sections!r}")
        self._endpoint = endpoint
        self._prompt = prompt
        self._sampling = sampling.under_grammar(prompt.schema.grammar()) if constrained else sampling
        self._ledger = ledger

    async def extract(self, user: User, item: Item) -> Cues:
        """The cues of one pair.

        Args:
            user: With the history to go by.
            item: With the evidence to go by.

        Raises:
            EndpointError: The infrastructure's fault.
            CompletionError: The completion holds no cues.
        """
        schema = self._prompt.schema
        messages = self._prompt.render(user, item)
        users = self._prompt.subjects(user, item)
        completion = await read_through(self._ledger, self._endpoint, messages, self._sampling, schema, users)
        parser = SectionParser(schema)
        parser.feed(completion.text)
        sections = parser.close(completion.finish_reason)
        return Cues(sections.get(("user", "cue")), sections.get(("item", "cue")))
