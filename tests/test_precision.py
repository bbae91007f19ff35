"""Weights in bfloat16 keep what a small learning rate teaches them: what is trained is held in float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluations import prepared
from tiny import tiny_folder, tiny_model, tiny_tokenizer
from tunings import SHAPE, WARNINGS, history, words

from duet import Message
from duet_train.__main__ import main
from duet_train.rollouts import SharedPrefixRollout

torch: Any = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

pytestmark = [pytest.mark.filterwarnings(WARNINGS), pytest.mark.usefixtures("quiet_training")]

SMALL = 3e-7
ASKED: list[Message] = [{"role": "user", "content": "Who?"}]
VERBS = ("sft", "dpo", "grpo", "rlso")


@pytest.fixture(scope="module")
def bfloat16_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy in bfloat16, which finds all tokens about as likely, but for the last one: it ends at times."""
    folder = tiny_folder(tmp_path_factory.mktemp("policy"))
    model = tiny_model(spread=0.1)
    model.get_output_embeddings().weight.data[-1] *= 12
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def make_trainer(bfloat16_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """A trainer of each verb over the policy in bfloat16, which computes in bfloat16 unless told otherwise."""
    return lambda verb, **options: build_trainer(verb, bfloat16_folder, tmp_path, **options)


def build_trainer(verb: str, policy: Path, folder: Path, *, unfrozen_layers: int = 0, **options: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, GRPOConfig, SFTConfig, SFTTrainer

    from duet_train import dpo, grpo
    from duet_train.rebel import rebel_trainer
    from duet_train.rlso_phases import unfreeze
    from duet_train.settings import Settings
    from duet_train.trainers import quiet

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16)
    unfreeze(model, unfrozen_layers)
    plain: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "learning_rate": SMALL,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    extra: dict[str, Any] = {"peft_config": options.pop("peft_config", None)}
    ids = [list(b"a"), list(b"bc"), list(b"def"), list(b"g")]
    columns: dict[str, Any] = {"prompt": [ASKED] * 8}
    make: Any
    config: Any = GRPOConfig
    if verb == "sft":
        masks = [[0, 0, *[1] * len(one)] for one in ids]
        columns = {"input_ids": [[65, 66, *one] for one in ids], "completion_mask": masks}
        make, config = quiet(SFTTrainer), SFTConfig
    elif verb == "dpo":
        columns = {"prompt_ids": [[65]] * 4, "chosen_ids": ids, "rejected_ids": [list(b"xyz")] * 4}
        make, config = dpo._trainer_class(), DPOConfig
    else:
        plain |= {"max_completion_length": 8, "num_generations": 2, "beta": 0.1}
        extra |= {"reward_funcs": letters, "rollout_func": SharedPrefixRollout()}
        make = rebel_trainer if verb == "rlso" else grpo._trainer_class(Settings())
    return make(
        model=model,
        args=config(**plain | options),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tiny_tokenizer(),
        **extra,
    )


def letters(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float(sum(map(ord, one[0]["content"]))) for one in completions]


def trained(trainer: Any) -> dict[str, Any]:
    return {name: weights for name, weights in trainer.model.named_parameters() if weights.requires_grad}


def changed_by(trainer: Any) -> float:
    """The share of the trained weights that training changes, by their values in float32."""
    before = {name: weights.detach().float().clone() for name, weights in trained(trainer).items()}
    trainer.train()
    changed = [(weights.detach().float() != before[name]).flatten() for name, weights in trained(trainer).items()]
    return float(torch.cat(changed).float().mean())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bf16", [True, False])
def test_small_learning_rate_changes_every_weight(make_trainer: Callable[..., Any], verb: str, bf16: bool) -> None:
    """Three steps at 3e-7 change nearly all weights of a policy that was loaded in bfloat16."""
    assert changed_by(make_trainer(verb, bf16=bf16)) > 0.99


@pytest.mark.parametrize("bf16", [True, False])
def test_unfrozen_layers_change(make_trainer: Callable[..., Any], bf16: bool) -> None:
    """Where the last layers alone are trained, all of their weights change and no other does."""
    trainer = make_trainer("rlso", unfrozen_layers=1, bf16=bf16)
    frozen = {name: one.detach().clone() for name, one in trainer.model.named_parameters() if not one.requires_grad}
    assert changed_by(trainer) > 0.99
    assert frozen
    for name, weights in trainer.model.named_parameters():
        if name in frozen:
            assert torch.equal(weights, frozen[name])
            assert weights.dtype == (torch.bfloat16 if bf16 else torch.float32)


@pytest.mark.parametrize("verb", VERBS)
def test_adapters_are_float32(make_trainer: Callable[..., Any], verb: str) -> None:
    """A LoRA on weights in bfloat16 is trained in float32, and the weights under it stay as they were loaded."""
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = make_trainer(verb, peft_config=lora)
    assert {weights.dtype for weights in trained(trainer).values()} == {torch.float32}
    assert {one.dtype for one in trainer.model.parameters() if not one.requires_grad} == {torch.bfloat16}
    assert changed_by(trainer) > 0.99


# Arithmetic


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The dtypes in which linear layers answer from now on."""
    seen: list[Any] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, made: seen.append(made.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bf16", [True, False])
def test_arithmetic_is_that_of_mixed_precision(
    make_trainer: Callable[..., Any], products: list[Any], verb: str, bf16: bool
) -> None:
    """Training, sampling and the reference compute in bfloat16 with `bf16`, and in float32 without."""
    make_trainer(verb, bf16=bf16, max_steps=1).train()
    assert set(products) == {torch.bfloat16 if bf16 else torch.float32}


@pytest.mark.parametrize("bf16", [True, False])
def test_sampling_before_the_first_step_computes_alike(
    make_trainer: Callable[..., Any], products: list[Any], bf16: bool
) -> None:
    """The measurement at the start and the profiles of the first contrastive phase are sampled as later ones are."""
    from duet_train.generation import greedy

    trainer = make_trainer("rlso", bf16=bf16, unfrozen_layers=1)
    SharedPrefixRollout()([ASKED], trainer)
    greedy(trainer, tiny_tokenizer(), [ASKED], max_new_tokens=2)
    assert set(products) == {torch.bfloat16 if bf16 else torch.float32}


@pytest.mark.parametrize("verb", ["dpo", "grpo", "rlso"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_reference_is_the_policy_at_the_start(
    make_trainer: Callable[..., Any], bfloat16_folder: Path, verb: str, tied: bool, bf16: bool
) -> None:
    """Before the first update policy and reference give each token the very same log-probability."""
    config = json.loads((bfloat16_folder / "config.json").read_text(encoding="utf-8"))
    (bfloat16_folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}), encoding="utf-8")
    try:
        trainer = make_trainer(verb, bf16=bf16)
    finally:
        (bfloat16_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    policy, reference = (dict(model.named_parameters()) for model in (trainer.model, trainer.ref_model))
    assert policy.keys() == reference.keys()
    with torch.no_grad():
        for name, weights in reference.items():
            weights.copy_(policy[name])
    ids = torch.tensor([list(b"Who is it?")])
    with torch.no_grad(), trainer.accelerator.autocast():
        made = [model.eval()(input_ids=ids).logits.float() for model in (trainer.model, trainer.ref_model)]
    assert torch.equal(*made)


def test_reference_takes_half_the_memory(make_trainer: Callable[..., Any]) -> None:
    """Weights of the reference that autocast rounds anyway stay in bfloat16, unless they follow the policy."""
    for follows, expected in ((False, torch.bfloat16), (True, torch.float32)):
        trainer = make_trainer("grpo", sync_ref_model=follows)
        layer = trainer.ref_model.model.layers[0]
        assert layer.mlp.up_proj.weight.dtype == expected
        assert layer.input_layernorm.weight.dtype == torch.float32


# What is written


@pytest.mark.parametrize("bf16", [True, False])
def test_saved_model_is_in_the_dtype_it_computes_in(bfloat16_folder: Path, tmp_path: Path, bf16: bool) -> None:
    """A run keeps every bit in its checkpoints, and leaves the model in bfloat16 where it computed so."""
    from safetensors.torch import load_file

    expected = torch.bfloat16 if bf16 else torch.float32
    run = _sft(tmp_path, bfloat16_folder, "--max_steps", "2", "--bf16", str(bf16))
    assert {one.dtype for one in load_file(run / "checkpoint-2" / "model.safetensors").values()} == {torch.float32}
    saved = load_file(run / "model" / "model.safetensors")
    assert {one.dtype for one in saved.values()} == {expected}
    config = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == str(expected).removeprefix("torch.")
    for name, weights in load_file(run / "checkpoint-2" / "model.safetensors").items():
        assert torch.equal(saved[name], weights.to(expected))


def _sft(folder: Path, policy: Path, *more: str) -> Path:
    """The directory of a run that trains every weight in two steps or more."""
    if not (folder / "data").is_dir():
        prepared(folder / "data")
    options = {"teacher": "template", "rows": 4, "save_steps": 2, "per_device_train_batch_size": 2}
    options |= {"use_peft": "false", "dtype": "bfloat16", "learning_rate": 1e-3, "bf16": "true", "use_cpu": "true"}
    assert main([*words("sft", folder / "data", folder / "run", policy, SHAPE | options), *more]) == 0
    return folder / "run"


def test_checkpoint_in_bfloat16_goes_on(bfloat16_folder: Path, tmp_path: Path) -> None:
    """A run whose checkpoint holds weights and optimizer in bfloat16, as older ones do, goes on in float32."""
    from safetensors.torch import load_file, save_file

    checkpoint = _sft(tmp_path, bfloat16_folder, "--max_steps", "2") / "checkpoint-2"
    weights = load_file(checkpoint / "model.safetensors")
    halved = {name: one.to(torch.bfloat16) for name, one in weights.items()}
    save_file(halved, checkpoint / "model.safetensors", {"format": "pt"})
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for state in optimizer["state"].values():
        state |= {name: state[name].to(torch.bfloat16) for name in ("exp_avg", "exp_avg_sq")}
    torch.save(optimizer, checkpoint / "optimizer.pt")

    run = _sft(tmp_path, bfloat16_folder, "--max_steps", "4")
    after = load_file(run / "checkpoint-4" / "model.safetensors")
    assert [line["step"] for line in history(run)] == [1, 2, 3, 4]
    assert all(one.dtype == torch.float32 and not torch.equal(one, halved[name].float()) for name, one in after.items())
    state = torch.load(run / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert {one["exp_avg"].dtype for one in state.values()} == {torch.float32}
