"""Rollouts over HTTP from a vLLM server whose adapter is swapped in each step."""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer
from vllm_double import LOST, VLLMDouble

from duet import ConfigurationError, EndpointRejected, EndpointUnavailable
from duet_train.server_adapters import check_lora, check_name
from duet_train.server_check import ServerReport, check_server
from duet_train.server_client import VLLMServer
from duet_train.server_rollouts import (
    DIFFERENCE,
    ServerRollout,
    StaleAdapter,
    check_arguments,
    server_trainer_class,
)
from duet_train.trainers import quiet as quiet_trainer

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

# trl 1.16 reads the old name of activation checkpointing, of which transformers 5.23 warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.usefixtures("quiet_training"),
]

COLOURS = ("red", "blue", "green", "grey", "pink", "brown")
CHATS = [[{"role": "user", "content": colour}] for colour in COLOURS]
KEY = "sk-secret-of-the-house"
RATIO = "sampling/importance_sampling_ratio"


def base_model() -> Any:
    return tiny_model(spread=0.3)


@pytest.fixture
def double() -> Iterator[VLLMDouble]:
    with VLLMDouble(base_model, tiny_tokenizer()) as server:
        yield server


def rollout_at(double: VLLMDouble, folder: Path, **options: Any) -> ServerRollout:
    return ServerRollout(double.address, "base", folder / "adapters", **({"run_name": "duet"} | options))


def share_of_letters(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [sum(97 <= token < 123 for token in ids) / len(ids) for ids in completion_ids]


def make_trainer(
    rollout: ServerRollout,
    folder: Path,
    *,
    reward: Any = share_of_letters,
    rank: int = 8,
    adapter: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig

    plain: dict[str, Any] = {
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "max_completion_length": 12,
        "max_steps": 4,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "vllm_importance_sampling_mode": "token_truncate",
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    lora = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules="all-linear", **(adapter or {}))
    return quiet_trainer(server_trainer_class())(
        model=base_model(),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(folder / "run"), **(plain | options)),
        train_dataset=Dataset.from_list([{"prompt": chat} for chat in CHATS]),
        processing_class=tiny_tokenizer(),
        peft_config=lora,
        rollout_func=rollout,
    )


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# A run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A run of fourteen steps, the server still up."""
    with pytest.MonkeyPatch.context() as patch, VLLMDouble(base_model, tiny_tokenizer(), key=KEY) as server:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        folder = tmp_path_factory.mktemp("finished")
        rollout = rollout_at(server, folder, api_key=KEY)
        trainer = make_trainer(rollout, folder, max_steps=14)
        before = server._sample(server._base, [104, 105], SAMPLE)
        trainer.train()
        bodies = server.bodies("/v1/completions")
        yield SimpleNamespace(
            bodies=bodies, server=server, rollout=rollout, trainer=trainer, folder=folder, before=before
        )


SAMPLE = {"n": 4, "max_tokens": 8, "temperature": 1.0, "seed": 3, "logprobs": 0, "return_token_ids": True}


@pytest.mark.train
def test_run_learns(finished: SimpleNamespace) -> None:
    """Rewards rise from below a sixth to above a half: the server samples from what was learnt."""
    rewards = logged(finished.trainer, "reward")
    assert max(rewards[:3]) < 1 / 6
    assert min(rewards[-2:]) > 1 / 2


@pytest.mark.train
def test_swapped_adapter_agrees_with_the_trainer(finished: SimpleNamespace) -> None:
    """With the adapter of the step the log-probabilities of server and trainer are the same, and the ratios one."""
    assert max(logged(finished.trainer, DIFFERENCE)) < 1e-4
    assert logged(finished.trainer, f"{RATIO}/max") == pytest.approx([1.0] * 14, abs=1e-3)
    assert logged(finished.trainer, f"{RATIO}/min") == pytest.approx([1.0] * 14, abs=1e-3)


@pytest.mark.train
def test_each_step_has_a_version_of_its_own(finished: SimpleNamespace) -> None:
    """Version numbers are the steps, and each step's completions come from its own version."""
    names = [body["lora_name"] for body in finished.server.bodies("/v1/load_lora_adapter")]
    assert [name.rpartition("-v")[2] for name in names] == [str(step) for step in range(14)]
    asked = [body["model"] for body in finished.bodies]
    assert asked == [name for name in names for _ in range(2)]


@pytest.mark.train
def test_old_version_goes_when_the_new_one_is_there(finished: SimpleNamespace) -> None:
    """Load, then unload the one before; one is left, at the server and on disk."""
    paths = [(one.path, one.body["lora_name"]) for one in finished.server.seen if one.path.endswith("_lora_adapter")]
    names = [name for path, name in paths if path == "/v1/load_lora_adapter"]
    expected = [("/v1/load_lora_adapter", names[0])]
    for old, new in itertools.pairwise(names):
        expected += [("/v1/load_lora_adapter", new), ("/v1/unload_lora_adapter", old)]
    assert paths == expected
    assert list(finished.server.loaded) == [names[-1]] == os.listdir(finished.folder / "adapters")


@pytest.mark.train
def test_base_model_stays_the_base_model(finished: SimpleNamespace) -> None:
    """The recommender's half: under its own name the base model answers as before, and the policy does not."""
    server = finished.server
    body = SAMPLE | {"model": "base", "prompt": [104, 105]}
    now = VLLMServer(server.address, api_key=KEY).post("completions", body)["choices"]
    policy = VLLMServer(server.address, api_key=KEY).post("completions", body | {"model": finished.rollout.adapter})
    assert [one["token_ids"] for one in now] == [one["token_ids"] for one in finished.before]
    assert [one["token_ids"] for one in policy["choices"]] != [one["token_ids"] for one in now]


@pytest.mark.train
def test_requests_are_what_trl_would_sample(finished: SimpleNamespace) -> None:
    """Token ids as TRL renders them, one request a group, its sampling arguments, and no grammar of any kind."""
    body = finished.bodies[0]
    rendered = [finished.trainer._tokenize_prompts([chat])[0][0] for chat in CHATS]
    assert body["prompt"] in rendered
    assert body["n"] == 8
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"], body["max_tokens"]) == (1, 1, 0, 0, 12)
    assert body["stop_token_ids"] == [258]
    assert not {"structured_outputs", "response_format", "guided_grammar", "grammar", "logit_bias"} & body.keys()


@pytest.mark.train
def test_no_seed_is_used_twice(finished: SimpleNamespace) -> None:
    """A request's seeds, which are those from its own on, one a completion, are nobody else's."""
    seeds = [body["seed"] + place for body in finished.bodies for place in range(8)]
    assert len(set(seeds)) == len(seeds) == 14 * 16


@pytest.mark.train
def test_key_is_sent(finished: SimpleNamespace) -> None:
    """Every request carries the key."""
    assert {one.authorization for one in finished.server.seen} == {f"Bearer {KEY}"}


def test_closing_leaves_nothing(double: VLLMDouble, tmp_path: Path) -> None:
    """After `close` the server has no adapter, and the folder is empty."""
    rollout = rollout_at(double, tmp_path)
    rollout.publish(make_trainer(rollout, tmp_path))
    rollout.close()
    assert (list(double.loaded), os.listdir(tmp_path / "adapters")) == ([], [])


def test_thinking_stays_off(double: VLLMDouble, tmp_path: Path) -> None:
    """Arguments of the chat template reach the server's prompt."""
    rollout = rollout_at(double, tmp_path)
    trainer = make_trainer(rollout, tmp_path, chat_template_kwargs={"enable_thinking": False})
    made = rollout(CHATS[:1] * 3, trainer)
    (body,) = double.bodies("/v1/completions")
    assert b"</think>" in bytes(token for token in body["prompt"] if token < 256)
    assert made["prompt_ids"] == [body["prompt"]] * 3


def test_rows_keep_their_order(double: VLLMDouble, tmp_path: Path) -> None:
    """Rows come back in the order of the prompts, a log-probability for each token."""
    rollout = rollout_at(double, tmp_path, concurrency=2)
    trainer = make_trainer(rollout, tmp_path)
    prompts = [CHATS[0], CHATS[1], CHATS[1], CHATS[0], CHATS[2], CHATS[2]]
    made = rollout(prompts, trainer)
    assert made["prompt_ids"] == [trainer._tokenize_prompts([chat])[0][0] for chat in prompts]
    assert [len(ids) for ids in made["completion_ids"]] == [len(logps) for logps in made["logprobs"]]
    assert [body["n"] for body in double.bodies("/v1/completions")].count(2) == 2


def test_step_that_comes_again_gets_another_name(double: VLLMDouble, tmp_path: Path) -> None:
    """No name is used twice, since the server may keep what it computed under it."""
    rollout = rollout_at(double, tmp_path)
    trainer = make_trainer(rollout, tmp_path)
    names = []
    for step in (0, 1, 1, 0):
        trainer.state.global_step = step
        names.append(rollout.publish(trainer))
    assert names[1] == names[2]
    assert len(set(names)) == 3


# The alarm


@pytest.mark.train
def test_stale_adapter_ends_the_run(double: VLLMDouble, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of adapters that the server does not swap a warning comes at once, and after the third step in a row an error."""
    trainer = make_trainer(rollout_at(double, tmp_path), tmp_path, max_steps=9)
    double.stale = True
    with pytest.raises(StaleAdapter, match="does not serve the adapter of this step") as caught:
        trainer.train()
    assert trainer.state.global_step == 3
    assert [record.levelname for record in caplog.records if "does not serve" in record.message] == ["WARNING"]
    assert "step 4:" in str(caught.value)


@pytest.mark.train
def test_correction_is_bounded(double: VLLMDouble, tmp_path: Path) -> None:
    """Where the server's policy is an old one tokens weigh by the ratio of probabilities, up to TRL's own limit."""
    rollout = rollout_at(double, tmp_path, patience=9)
    trainer = make_trainer(rollout, tmp_path, max_steps=4, vllm_importance_sampling_clip_max=2.0)
    double.stale = True
    trainer.train()
    highest, lowest = logged(trainer, f"{RATIO}/max"), logged(trainer, f"{RATIO}/min")
    assert highest[0] == pytest.approx(1.0, abs=1e-3)
    assert highest[1:] == [2.0] * 3
    assert max(lowest[1:]) < 0.5


def weighted_gradient(double: VLLMDouble, folder: Path, *, weight: bool) -> Any:
    """The gradient of one batch whose second half of tokens the server claims to have drawn twice as likely."""
    rollout = rollout_at(double, folder)
    trainer = make_trainer(rollout, folder)

    def claimed(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        made = rollout(prompts, trainer)
        if weight:
            made["logprobs"] = [[logp + math.log(2) for logp in logps] for logps in made["logprobs"]]
        return made

    claimed.watch = lambda *_: None  # type: ignore[attr-defined]
    trainer.rollout_func = claimed
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = [{"prompt": chat} for chat in CHATS[:2] for _ in range(8)]
    loss = trainer._compute_loss(trainer.model, trainer._generate_and_score_completions(inputs))
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None])


def test_correction_reaches_the_gradient(double: VLLMDouble, tmp_path: Path) -> None:
    """Tokens that the server drew twice as readily as the trainer would count half."""
    plain = weighted_gradient(double, tmp_path / "a", weight=False)
    corrected = weighted_gradient(double, tmp_path / "b", weight=True)
    assert float(plain.norm()) > 0
    assert torch.allclose(corrected, plain / 2, rtol=1e-3, atol=1e-6)


@given(differences=st.lists(st.sampled_from([0.05, 0.15, 0.16, 0.4, math.nan]), max_size=12))
def test_alarm_counts_steps_in_a_row(differences: list[float]) -> None:
    """The run ends at the third of three steps in a row that are not within the limit, and at no other step."""
    rollout = ServerRollout("http://127.0.0.1:9/v1", "base", "unused")
    over = [not difference <= 0.15 for difference in differences]
    expected = next((step for step in range(2, len(over)) if all(over[step - 2 : step + 1])), None)
    ended = None
    for step, difference in enumerate(differences):
        try:
            rollout.watch(difference, step)
        except StaleAdapter:
            ended = step
            break
    assert ended == expected


# Killed, and started again


class Killed(Exception):
    """What ends a run in the middle."""


def prompts_by_step(double: VLLMDouble) -> dict[int, list[Any]]:
    """The prompts that were asked, by the version's number; of a step that was asked twice, those asked last."""
    found: dict[str, list[Any]] = {}
    for body in double.bodies("/v1/completions"):
        found.setdefault(body["model"], []).append(body["prompt"])
    return {int(name.rpartition("-v")[2]): sorted(prompts) for name, prompts in found.items()}


def killed_run(double: VLLMDouble, folder: Path) -> None:
    """A run that is killed while it scores its fourth step, with a checkpoint of the second."""
    steps = []

    def reward(completion_ids: Any, **_: Any) -> list[float]:
        steps.append(1)
        if len(steps) == 4:
            raise Killed
        return share_of_letters(completion_ids)

    trainer = make_trainer(rollout_at(double, folder), folder, reward=reward, **SAVING)
    with pytest.raises(Killed):
        trainer.train()


SAVING: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.002}


@pytest.mark.train
@pytest.mark.faults
def test_no_prompt_is_skipped_on_resume(double: VLLMDouble, tmp_path: Path) -> None:
    """A run that is killed and resumed asks, step by step, for the prompts of one that ran through."""
    make_trainer(rollout_at(double, tmp_path / "through"), tmp_path / "through", **SAVING).train()
    through = prompts_by_step(double)
    double.seen.clear()
    killed_run(double, tmp_path / "killed")
    assert sorted(prompts_by_step(double)) == [0, 1, 2, 3]
    resumed = make_trainer(rollout_at(double, tmp_path / "killed"), tmp_path / "killed", **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert prompts_by_step(double) == through
    assert max(logged(resumed, DIFFERENCE)) < 1e-4


@pytest.mark.train
@pytest.mark.faults
def test_resumed_run_meets_no_version_of_the_killed_one(double: VLLMDouble, tmp_path: Path) -> None:
    """What the killed run left loaded is unloaded first, and no name comes again; another run's adapter stays."""
    other = rollout_at(double, tmp_path / "other")
    other.publish(make_trainer(other, tmp_path / "other"))
    killed_run(double, tmp_path)
    before = {body["lora_name"] for body in double.bodies("/v1/load_lora_adapter")}
    rollout = rollout_at(double, tmp_path)
    make_trainer(rollout, tmp_path, **SAVING).train(resume_from_checkpoint=True)
    after = {body["lora_name"] for body in double.bodies("/v1/load_lora_adapter")} - before
    assert {name.rpartition("-v")[2] for name in after} == {"2", "3", "4"}
    assert set(double.loaded) == {other.adapter, rollout.adapter}
    assert os.listdir(tmp_path / "adapters") == [rollout.adapter]


# Errors


@pytest.mark.parametrize(
    ("change", "rank", "words"),
    [
        ({"updating": False}, 8, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"lora": False}, 8, "--enable-lora"),
        ({"rank": 4}, 8, "--max-lora-rank"),
        ({"key": "another"}, 8, "check api_key"),
    ],
)
def test_refused_adapter_says_what_to_do(change: dict[str, Any], rank: int, words: str, tmp_path: Path) -> None:
    """A server that cannot load adapters is told from one that will not, and neither is asked twice."""
    with VLLMDouble(base_model, tiny_tokenizer(), **change) as server:
        rollout = rollout_at(server, tmp_path)
        with pytest.raises(EndpointRejected, match=words):
            make_trainer(rollout, tmp_path, rank=rank).train()
        assert len(server.bodies("/v1/load_lora_adapter")) <= 1


def test_folder_that_the_server_does_not_see(double: VLLMDouble, tmp_path: Path) -> None:
    """A path that means nothing to the server is named, and how to say another."""
    rollout = rollout_at(double, tmp_path, folder_on_server="/elsewhere")
    with pytest.raises(EndpointRejected, match=r"cannot read /elsewhere/duet-.*folder_on_server"):
        rollout.publish(make_trainer(rollout, tmp_path))


def test_folder_under_another_path(double: VLLMDouble, tmp_path: Path) -> None:
    """The server may see the folder of the adapters under a path of its own."""
    (tmp_path / "there").symlink_to(tmp_path / "adapters")
    rollout = rollout_at(double, tmp_path, folder_on_server=f"{tmp_path}/there/")
    name = rollout.publish(make_trainer(rollout, tmp_path))
    assert double.loaded[name][0] == f"{tmp_path}/there/{name}"


def test_answer_lost_on_its_way(double: VLLMDouble, tmp_path: Path) -> None:
    """An adapter that was loaded although the answer got lost is loaded."""
    double.failing["/v1/load_lora_adapter"] = [LOST]
    rollout = rollout_at(double, tmp_path)
    assert rollout.publish(make_trainer(rollout, tmp_path)) in double.loaded


def test_old_version_that_does_not_go(double: VLLMDouble, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failed unload is a warning, and is tried again with the next step."""
    rollout = rollout_at(double, tmp_path, attempts=1)
    trainer = make_trainer(rollout, tmp_path)
    rollout.publish(trainer)
    double.failing["/v1/unload_lora_adapter"] = [500]
    trainer.state.global_step = 1
    rollout.publish(trainer)
    assert len(double.loaded) == 2
    assert "still loaded" in caplog.text
    trainer.state.global_step = 2
    rollout.publish(trainer)
    assert list(double.loaded) == [rollout.adapter]


@pytest.mark.parametrize("failures", [[503], [0], [429, 500], [LOST, 503, 0]])
def test_passing_failures_pass(double: VLLMDouble, failures: list[int]) -> None:
    """Connections cut, 429 and 5xx are tried again."""
    double.failing["/v1/models"] = list(failures)
    assert VLLMServer(double.address, pause=0.0, attempts=4).get("models")["object"] == "list"
    assert len(double.seen) == len(failures) + 1


def test_failures_that_stay_end(double: VLLMDouble) -> None:
    """After the last attempt the error says who failed, how, and how often it was tried."""
    double.failing["/v1/models"] = [503] * 9
    with pytest.raises(EndpointUnavailable, match=r"/v1/models answers 503: busy \(after 3 attempts\)") as caught:
        VLLMServer(double.address, pause=0.0, attempts=3).get("models")
    assert caught.value.status_code == 503
    assert len(double.seen) == 3


def test_nobody_there() -> None:
    """A server that is not there is unavailable."""
    with pytest.raises(EndpointUnavailable, match=r"127\.0\.0\.1:9/v1/models does not answer: ConnectError"):
        VLLMServer("http://127.0.0.1:9/v1", pause=0.0, attempts=2).get("models")


def test_refusals_are_not_tried_again(double: VLLMDouble) -> None:
    """A model that is not served is refused at once, in the server's words."""
    body = SAMPLE | {"model": "nope", "prompt": [1]}
    with pytest.raises(EndpointRejected, match="The model `nope` does not exist") as caught:
        VLLMServer(double.address).post("completions", body)
    assert caught.value.status_code == 404
    assert len(double.seen) == 1


def test_first_failure_drops_the_rest(double: VLLMDouble) -> None:
    """With one request refused those that wait are not sent."""
    bodies = [SAMPLE | {"model": "nope", "prompt": [1]}] * 20
    with pytest.raises(EndpointRejected):
        VLLMServer(double.address).post_all("completions", bodies, concurrency=2)
    assert len(double.seen) < 10


def test_answer_without_tokens(double: VLLMDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives back no token ids is too old, and is told so."""
    rollout = rollout_at(double, tmp_path)
    trainer = make_trainer(rollout, tmp_path)
    sample = double._sample
    monkeypatch.setattr(
        VLLMDouble,
        "_sample",
        lambda self, model, prompt, body: sample(model, prompt, body | {"return_token_ids": False}),
    )
    with pytest.raises(EndpointRejected, match="return_token_ids"):
        rollout(CHATS[:1], trainer)


def test_key_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither logs at any level, nor reprs, nor errors hold the key, even where the server repeats it."""
    caplog.set_level(logging.DEBUG)
    with VLLMDouble(base_model, tiny_tokenizer(), key=KEY) as server:
        rollout = rollout_at(server, tmp_path, api_key=KEY)
        rollout.server.get("models")
        with pytest.raises(EndpointRejected) as caught:
            rollout.server.post("completions", SAMPLE | {"model": KEY, "prompt": [1]})
    assert KEY not in caplog.text + repr(rollout.server) + repr(vars(rollout)) + str(caught.value)
    assert "***" in str(caught.value)


@pytest.mark.anyio
async def test_works_where_a_loop_runs(double: VLLMDouble, anyio_backend_name: str) -> None:
    """Under a running event loop, as in a notebook, calls run in a thread of their own."""
    assert VLLMServer(double.address).get("/version") == {"version": "0.32.0"}


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", ".hidden", "x" * 65, "a\n"])
def test_names_with_paths_are_refused(name: str) -> None:
    """An adapter's name has no part of a path."""
    with pytest.raises(ConfigurationError, match="letters, digits"):
        check_name(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "127.0.0.1:8000"},
        {"base_url": "http://user:secret@127.0.0.1/v1"},
        {"api_key": "line\n"},
        {"run_name": "a/b"},
        {"concurrency": 0},
        {"patience": 0},
        {"attempts": 0},
        {"max_logp_difference": 0.0},
        {"max_logp_difference": math.nan},
        {"timeout": 0.0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    """What cannot work is refused before anything is sent."""
    settings: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "base_model": "base", "adapter_dir": "unused"}
    with pytest.raises(ConfigurationError):
        ServerRollout(**(settings | wrong))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "use_peft"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    ],
)
def test_what_vllm_cannot_serve_is_refused(config: dict[str, Any] | None, words: str) -> None:
    """Full fine-tuning, and what is no plain LoRA, cannot reach the server as an adapter."""
    from peft import LoraConfig

    with pytest.raises(ConfigurationError, match=words):
        check_lora(None if config is None else LoraConfig(**config))


def test_other_adapters_are_refused() -> None:
    """vLLM serves no adapters but LoRA."""
    from peft import IA3Config

    with pytest.raises(ConfigurationError, match="IA3"):
        check_lora(IA3Config())


def test_full_fine_tuning_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    """The trainer is not even made: the model's name is never looked up."""
    rollout = ServerRollout("http://127.0.0.1:9/v1", "base", tmp_path)
    with pytest.raises(ConfigurationError, match="use_peft"):
        server_trainer_class()(model="no/such-model", reward_funcs=share_of_letters, rollout_func=rollout)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"use_vllm": True}, "use_vllm"),
        ({"vllm_importance_sampling_correction": False}, "vllm_importance_sampling_correction"),
        ({"generation_kwargs": {"typical_p": 0.5}}, "generation_kwargs"),
    ],
)
def test_arguments_that_do_not_go_together(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    """TRL's own vLLM, a correction switched off, and sampling that is not sent are refused."""
    from trl import GRPOConfig

    with pytest.raises(ConfigurationError, match=words):
        check_arguments(GRPOConfig(output_dir=str(tmp_path), bf16=False, report_to=[], **wrong))


def test_alarm_survives_pickling() -> None:
    """The error comes back from another process as it was."""
    again = pickle.loads(pickle.dumps(StaleAdapter("step 3: stale")))  # noqa: S301  # our own
    assert str(again) == "step 3: stale"


# Before the first step


def report_of(server: VLLMDouble, folder: Path, *, prompt: int = 400, **options: Any) -> ServerReport:
    rollout = rollout_at(server, folder, attempts=1)
    return check_server(rollout, make_trainer(rollout, folder, **options), max_prompt_length=prompt)


def test_good_server_has_no_problems(double: VLLMDouble, tmp_path: Path) -> None:
    """Trainer and server agree on base and adapter, and the adapter stays for the first step."""
    report = report_of(double, tmp_path, adapter={"init_lora_weights": False})
    assert (report.problems, report.warnings) == ((), ())
    assert (report.version, report.max_model_len) == ("0.32.0", 512)
    assert report.base_difference == pytest.approx(0, abs=1e-5)
    assert report.adapter_difference == pytest.approx(0, abs=1e-5)
    assert len(double.loaded) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"owner": "llamacpp"}, "no vLLM server"),
        ({"name": "other"}, "base model is other, not base"),
        ({"window": 411}, "takes 411 tokens in all .* may have 412"),
        ({"updating": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"lora": False}, "--enable-lora"),
        ({"rank": 4}, "--max-lora-rank"),
        ({"key": KEY}, "check api_key"),
        ({"make": lambda: tiny_model(spread=0.3, seed=1)}, "different base models"),
    ],
)
def test_problems_are_said_in_words(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """One sentence says what is wrong with the server."""
    import re

    with VLLMDouble(**({"make": base_model, "tokenizer": tiny_tokenizer()} | change)) as server:
        (problem,) = report_of(server, tmp_path).problems
    assert re.search(words, problem)


def test_adapter_that_is_not_served(double: VLLMDouble, tmp_path: Path) -> None:
    """An adapter that the server takes but does not use is found out before the first step."""
    rollout = rollout_at(double, tmp_path)
    rollout.publish(make_trainer(rollout, tmp_path))
    double.stale = True
    (problem,) = report_of(double, tmp_path / "next", adapter={"init_lora_weights": False}).problems
    assert "does not serve the adapter" in problem


def test_nobody_there_before_the_first_step(tmp_path: Path) -> None:
    """A server that is not there is a problem, and no crash."""
    rollout = ServerRollout("http://127.0.0.1:9/v1", "base", tmp_path / "adapters", attempts=1)
    (problem,) = check_server(rollout, make_trainer(rollout, tmp_path), max_prompt_length=100).problems
    assert "does not answer" in problem


@pytest.mark.parametrize(("version", "known"), [("0.32.0", True), ("0.22.1", True), ("0.21.0", False), ("1.0", False)])
def test_unknown_versions_are_a_warning(version: str, known: bool, tmp_path: Path) -> None:
    """A version whose ways are not known is named, and may be tried."""
    with VLLMDouble(base_model, tiny_tokenizer(), version=version) as server:
        report = report_of(server, tmp_path)
    assert report.problems == ()
    assert bool(report.warnings) is not known


@pytest.mark.parametrize(
    ("processed", "temperature", "fine"),
    [(False, 0.7, False), (True, 0.7, True), (False, 1.0, True), (True, 1.0, True)],
)
def test_temperature_wants_processed_log_probabilities(
    processed: bool, temperature: float, fine: bool, tmp_path: Path
) -> None:
    """At a temperature other than 1 the server's log-probabilities have to be those after it."""
    with VLLMDouble(base_model, tiny_tokenizer(), processed=processed) as server:
        problems = report_of(server, tmp_path, temperature=temperature).problems
    assert [("processed_logprobs" in problem) for problem in problems] == [True] * (not fine)


@pytest.mark.train
def test_processed_log_probabilities_agree(tmp_path: Path) -> None:
    """At temperature 0.7 trainer and server agree where the server gives back what it sampled from."""
    with VLLMDouble(base_model, tiny_tokenizer(), processed=True) as server:
        trainer = make_trainer(rollout_at(server, tmp_path), tmp_path, temperature=0.7, max_steps=3)
        trainer.train()
    assert max(logged(trainer, DIFFERENCE)) < 1e-4


# Several processes, and none of torch


WORKER = """
import sys
from types import SimpleNamespace
import torch
torch.set_num_threads(1)
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from duet import DuetError
from duet_train.server_rollouts import ServerRollout

accelerator, tokenizer = Accelerator(cpu=True), tiny_tokenizer()
torch.manual_seed(accelerator.process_index)
trainer = SimpleNamespace(
    accelerator=accelerator, deepspeed=None, is_fsdp_enabled=False, args=SimpleNamespace(seed=0),
    model=get_peft_model(tiny_model(spread=0.3), LoraConfig(target_modules="all-linear")),
    state=SimpleNamespace(global_step=0), max_completion_length=4, temperature=1.0, top_p=1.0, top_k=0, min_p=None,
    repetition_penalty=1.0, eos_token_ids={258}, _tokenize_prompts=lambda texts: (tokenizer(texts)["input_ids"],),
)
rollout = ServerRollout(sys.argv[1], "base", sys.argv[2], attempts=1)
for step in range(2):
    trainer.state.global_step = step
    rollout([f"of {accelerator.process_index}"] * 2, trainer)
    accelerator.wait_for_everyone()
names = rollout.adapter
trainer.state.global_step = 2
rollout._versions._seen_at = "/elsewhere"
try:
    rollout(["x"], trainer)
except DuetError as exc:
    print(accelerator.num_processes, accelerator.process_index, names, type(exc).__name__, flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.serial
@pytest.mark.timeout(180)  # three interpreters that import torch, on what may be a busy machine
def test_two_processes_share_one_adapter(double: VLLMDouble, tmp_path: Path) -> None:
    """The first process publishes for both, each asks for its own rows, and both hear of a refusal."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
    }
    workers = [
        subprocess.Popen(  # noqa: S603  # our own interpreter and our own script
            [sys.executable, str(tmp_path / "worker.py"), double.address, str(tmp_path / "adapters")],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(Path(__file__).parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    first, second = (worker.communicate()[0].split() for worker in workers)
    assert (first[:2], second[:2]) == (["2", "0"], ["2", "1"])
    assert first[2:] == second[2:] == [first[2], "EndpointRejected"]
    assert len(double.bodies("/v1/load_lora_adapter")) == 3
    asked = [(body["model"][-2:], bytes(body["prompt"]).decode()) for body in double.bodies("/v1/completions")]
    assert sorted(asked) == [("v0", "of 0"), ("v0", "of 1"), ("v1", "of 0"), ("v1", "of 1")]


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_import_needs_no_torch() -> None:
    """The modules can be imported where nothing for training is installed."""
    block = "import sys; sys.modules.update(dict.fromkeys(('torch', 'trl', 'peft', 'transformers', 'accelerate')))"
    names = ("server_client", "server_adapters", "server_rollouts", "server_check")
    code = "; ".join([block, *(f"import duet_train.{name}" for name in names)])
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  # our own interpreter and words
