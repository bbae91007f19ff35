"""Before the first step: will this server do, and does it serve the model that is trained?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from duet import ConfigurationError, EndpointError
from duet_train.server_adapters import is_sharded, on_main
from duet_train.server_rollouts import ServerRollout

TRIED = ("0.22", "0.33")
"""The first and the last version of vLLM whose way of answering is known; run with 0.32."""

TEXT = (
    "She liked slow films with long takes, gave five stars to each of them, and wrote that the third act of the last "
    "one had bored her: 'too loud, too short, no silence left.' What will she make of a comedy?"
)
"""What server and trainer are compared on: plain words, nothing of the data."""

_PROBE = "duet-probe"


@attrs.frozen(kw_only=True)
class ServerReport:
    """What was found.

    Args:
        problems: Each a sentence; with any of them the run fails or learns from wrong numbers.
        warnings: Each a sentence; things to know.
        version: Of vLLM; None where unknown.
        max_model_len: Most tokens of prompt and completion; None where unknown.
        base_difference: Mean |log-probability of the trainer − of the server| over a fixed text for the base model, in
            nats; None where not compared.
        adapter_difference: The same for the adapter as it is before the first step.
    """

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    version: str | None = None
    max_model_len: int | None = None
    base_difference: float | None = None
    adapter_difference: float | None = None


def check_server(rollout: ServerRollout, trainer: Any, *, max_prompt_length: int) -> ServerReport:
    """Look at the server, then have it score a fixed text with the base model and with the adapter.

    Every process has to call it, since publishing an adapter takes all of them. The adapter stays loaded for the first
    step.

    Args:
        rollout: The one that the trainer samples with.
        trainer: A GRPOTrainer before `train`.
        max_prompt_length: Tokens of the longest prompt.
    """
    try:
        found = on_main(trainer, lambda: _seen(rollout, trainer, max_prompt_length))
        if found.problems or is_sharded(trainer.model):
            return found
        adapter = rollout.publish(trainer)
        difference = on_main(trainer, lambda: _difference(rollout, trainer, adapter))
    except (EndpointError, ConfigurationError, OSError) as exc:
        return ServerReport(problems=(str(exc),))
    wrong = _disagreement("the server does not serve the adapter as it was saved", difference, rollout)
    return attrs.evolve(found, adapter_difference=difference, problems=(*found.problems, *wrong))


def _seen(rollout: ServerRollout, trainer: Any, max_prompt_length: int) -> ServerReport:
    """All but the adapter, whose publishing takes every process."""
    found = _served(rollout, max_prompt_length + trainer.max_completion_length)
    if found.version is None:
        return found
    problems = (*found.problems, *_sampling_problems(rollout, trainer))
    if is_sharded(trainer.model):
        note = "the model is sharded before the first step: the first step compares trainer and server"
        return attrs.evolve(found, problems=problems, warnings=(*found.warnings, note))
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        difference = _difference(rollout, trainer, rollout.base_model)
    wrong = _disagreement("server and trainer have different base models", difference, rollout)
    return attrs.evolve(found, base_difference=difference, problems=(*problems, *wrong))


def _served(rollout: ServerRollout, tokens: int) -> ServerReport:
    """Who answers, and for which model."""
    listed = rollout.server.get("models")
    models = {str(model["id"]): model for model in (listed.get("data") if isinstance(listed, dict) else None) or ()}
    base = models.get(rollout.base_model)
    if not models or any(model.get("owned_by") != "vllm" for model in models.values()):
        return ServerReport(problems=(f"{rollout.server.address} is no vLLM server: rollouts from a server need one",))
    if base is None or base.get("parent"):
        served = ", ".join(sorted(name for name, model in models.items() if not model.get("parent")))
        return ServerReport(problems=(f"the server's base model is {served}, not {rollout.base_model}",))
    version = str(rollout.server.get("/version").get("version"))
    window = base.get("max_model_len")
    problems = [] if window is None or window >= tokens else [_window(window, tokens)]
    return ServerReport(
        problems=tuple(problems), warnings=tuple(_version_warnings(version)), version=version, max_model_len=window
    )


def _window(window: int, tokens: int) -> str:
    return (
        f"the server takes {window} tokens in all (--max-model-len), but a prompt with its completion may have "
        f"{tokens}: completions would be cut short without a word"
    )


def _version_warnings(version: str) -> Iterator[str]:
    first, last = (_numbers(tried) for tried in TRIED)
    if not first <= _numbers(version)[:2] <= last:
        yield f"the server is vLLM {version}; known are {TRIED[0]} to {TRIED[1]}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _difference(rollout: ServerRollout, trainer: Any, model: str) -> float:
    tokens = list(trainer.processing_class(TEXT, add_special_tokens=False)["input_ids"])
    served = server_log_probabilities(rollout, model, tokens)
    own = trainer_log_probabilities(trainer, tokens)
    return sum(abs(a - b) for a, b in zip(own, served, strict=True)) / len(own)


def _disagreement(what: str, difference: float, rollout: ServerRollout) -> Iterator[str]:
    if not difference <= rollout.max_logp_difference:
        yield (
            f"{what}: log-probabilities of the same text differ by {difference:.2f} nat on average, and "
            f"{rollout.max_logp_difference:g} is the limit. Another model, another revision, or quantised?"
        )


def server_log_probabilities(rollout: ServerRollout, model: str, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token but the first, given those before it, as the server sees it.

    Args:
        rollout: Knows the server.
        model: Name of the base model or of an adapter.
        tokens: Of the server's own vocabulary.
    """
    body = {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    (choice,) = rollout.server.post("completions", body)["choices"]
    listed = choice.get("prompt_logprobs") or []
    if len(listed) != len(tokens):
        raise ConfigurationError("the server gives no log-probabilities of a prompt (prompt_logprobs)")
    return [float(one[str(token)]["logprob"]) for token, one in zip(tokens[1:], listed[1:], strict=True)]


def trainer_log_probabilities(trainer: Any, tokens: Sequence[int]) -> list[float]:
    """The same, as the trainer sees it.

    Args:
        trainer: A GRPOTrainer whose model is not sharded.
        tokens: Of its tokenizer.
    """
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    ids = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        logits = model(input_ids=ids).logits
    model.train(training)
    scores = logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])
    return [float(score) for score in scores[:, 0]]


def _sampling_problems(rollout: ServerRollout, trainer: Any) -> Iterator[str]:
    """Whether the log-probabilities that come back are those of the distribution that was sampled from."""
    if trainer.temperature == 1.0 and trainer.repetition_penalty == 1.0:
        return
    body = {"model": rollout.base_model, "prompt": TEXT[:60], "max_tokens": 4, "logprobs": 0, "top_k": 1}
    (choice,) = rollout.server.post("completions", body | {"temperature": 1.0})["choices"]
    # Among one token each has probability 1, unless what comes back was taken before the choice was narrowed.
    if any(logp is None or logp < -1e-6 for logp in choice["logprobs"]["token_logprobs"]):
        yield (
            f"at temperature {trainer.temperature:g} the server has to run with --logprobs-mode processed_logprobs: it "
            "gives back log-probabilities from before the temperature, and the correction would be wrong"
        )
