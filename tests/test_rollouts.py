"""Rollouts that read each prompt once: the same completions as TRL's own, for less work."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer

from duet import ConfigurationError
from duet_train.rollouts import SharedPrefixRollout, _roomy_layer

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("trl")
pytest.importorskip("peft")

# trl 1.16 reads the old name of activation checkpointing, of which transformers 5.23 warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.usefixtures("quiet_training"),
]

SYSTEM = {"role": "system", "content": "Write a profile of the reader."}
TEXTS = ["Of the sea.", "He liked the first and not the second, which was long.", "No."]
CHATS = [[SYSTEM, {"role": "user", "content": text}] for text in TEXTS]
MakeTrainer = Callable[..., Any]


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory: pytest.TempPathFactory) -> MakeTrainer:
    """Trainers on the CPU in float32, of a random model of two layers, a reward that counts letters, and three rows."""
    return lambda model=None, **options: build_trainer(tmp_path_factory.mktemp("run"), model, **options)


def build_trainer(
    folder: Path, model: Any = None, *, tokenizer: Any = None, adapter: dict[str, Any] | None = None, **options: Any
) -> Any:
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    given_to_trainer = {key: options.pop(key) for key in ("rollout_func", "eval_dataset") if key in options}
    plain: dict[str, Any] = {
        "num_generations": 2,
        "per_device_train_batch_size": 6,
        "max_completion_length": 12,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return GRPOTrainer(
        model=model or tiny_model(spread=0.3),
        reward_funcs=count_letters,
        args=GRPOConfig(output_dir=str(folder), **(plain | options)),
        train_dataset=rows(),
        processing_class=tokenizer or tiny_tokenizer(),
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False, **adapter) if adapter else None,
        **given_to_trainer,
    )


def rows() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": chat} for chat in CHATS])


def count_letters(completions: Sequence[list[dict[str, str]]], **_: Any) -> list[float]:
    return [float(sum(letter.isalpha() for letter in one[0]["content"])) for one in completions]


def theirs(trainer: Any, prompts: Sequence[Any], seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt and completion ids of TRL's own path."""
    torch.manual_seed(seed)
    prompt_ids, images, fields = trainer._tokenize_prompts(list(prompts))
    completion_ids, _ = trainer._generate_single_turn(prompt_ids, images, fields, 1)
    return prompt_ids, completion_ids


def ours(
    trainer: Any, prompts: Sequence[Any], seed: int = 0, *, rollout: SharedPrefixRollout | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    torch.manual_seed(seed)
    made = (rollout or SharedPrefixRollout())(list(prompts), trainer)
    return made["prompt_ids"], made["completion_ids"]


def greedy(trainer: Any, prompt_ids: list[int]) -> list[int]:
    """The likeliest continuation, token by token, each time from the whole text."""
    model, ids = trainer.model.eval(), list(prompt_ids)
    with torch.no_grad():
        while len(ids) < len(prompt_ids) + trainer.max_completion_length:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in trainer.eos_token_ids:
                break
    model.train()
    return ids[len(prompt_ids) :]


def each(prompts: Sequence[Any], times: int) -> list[Any]:
    return [prompt for prompt in prompts for _ in range(times)]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("seed", [0, 1])
def test_completions_are_those_of_trl(make_trainer: MakeTrainer, kind: str, seed: int) -> None:
    """At the same seed, three groups of prompts of different lengths get the same completions."""
    trainer = make_trainer(tiny_model(kind, spread=0.3))
    prompts = each(CHATS, 4)
    assert ours(trainer, prompts, seed) == theirs(trainer, prompts, seed)


def test_seed_matters(make_trainer: MakeTrainer) -> None:
    """Another seed gives other completions, so the tests of sameness can fail."""
    trainer = make_trainer()
    assert ours(trainer, CHATS, 0)[1] != ours(trainer, CHATS, 1)[1]


def test_completions_with_an_adapter_are_those_of_trl(make_trainer: MakeTrainer) -> None:
    """A model with LoRA layers samples through them."""
    trainer = make_trainer(adapter={"r": 4})
    prompts = each(CHATS, 2)
    found = ours(trainer, prompts)
    assert found == theirs(trainer, prompts)
    with trainer.model.disable_adapter():
        assert ours(trainer, prompts) != found


def test_padding_may_be_the_end_token(make_trainer: MakeTrainer) -> None:
    """Shorter prompts are padded with what also ends a text, and the model reads none of it."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    trainer = make_trainer(tokenizer=tokenizer)
    assert trainer.generation_config.pad_token_id in trainer.eos_token_ids
    assert ours(trainer, CHATS) == theirs(trainer, CHATS)


@pytest.fixture(scope="module")
def plain_trainer(make_trainer: MakeTrainer) -> Any:
    """One trainer for many batches."""
    return make_trainer()


@settings(deadline=None, max_examples=15)
@given(order=st.lists(st.integers(0, len(CHATS) - 1), min_size=1, max_size=7), seed=st.integers(0, 999))
def test_any_order_of_prompts_is_that_of_trl(plain_trainer: Any, order: list[int], seed: int) -> None:
    """Groups may be uneven, cut off, or scattered over the batch."""
    prompts = [CHATS[place] for place in order]
    assert ours(plain_trainer, prompts, seed) == theirs(plain_trainer, prompts, seed)


@pytest.mark.parametrize("seed", range(3))
def test_all_settings_of_sampling_are_those_of_trl(make_trainer: MakeTrainer, seed: int) -> None:
    """Temperature, top p, top k, min p and the penalty of repetition come in the same order over the same texts."""
    trainer = make_trainer(temperature=1.7, top_p=0.9, top_k=40, min_p=0.02, repetition_penalty=1.4)
    prompts = each(CHATS, 3)
    assert ours(trainer, prompts, seed) == theirs(trainer, prompts, seed)


@pytest.mark.parametrize("how", [{"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_sampling_can_be_narrowed_to_the_likeliest(make_trainer: MakeTrainer, how: dict[str, float]) -> None:
    """Each setting alone, at its limit, gives what a plain loop without a cache finds likeliest."""
    trainer = make_trainer(**how)
    prompt_ids, completion_ids = ours(trainer, each(CHATS, 2))
    assert completion_ids == [greedy(trainer, ids) for ids in prompt_ids]


def test_penalty_of_repetition_sees_the_prompt(make_trainer: MakeTrainer) -> None:
    """Letters of the prompt that were likeliest are not, once they are penalised."""
    trainer, letters = make_trainer(top_k=1, max_completion_length=1), "".join(map(chr, range(32, 127)))
    texts = [letters[place:] + letters[:place] for place in range(0, 95, 5)]
    before = {one for [one] in ours(trainer, texts)[1]}
    trainer.generation_config.repetition_penalty = 1e6
    after = {one for [one] in ours(trainer, texts)[1]}
    assert before & set(range(32, 127))
    assert not after & set(range(32, 127))


def test_completion_ends_with_its_first_end_token(make_trainer: MakeTrainer) -> None:
    """Whatever the model declares as an end ends a completion, and stays as its last token."""
    model = tiny_model()
    model.generation_config.eos_token_id = [*range(30), 258]
    trainer = make_trainer(model, max_completion_length=40)
    prompts = each(CHATS, 6)
    completions = ours(trainer, prompts)[1]
    ends = set(trainer.eos_token_ids)
    assert ends >= {*range(30), 258}
    assert len({len(one) for one in completions}) > 3
    assert all(not ends & set(one[:-1]) for one in completions)
    assert all(one[-1] in ends or len(one) == 40 for one in completions)
    assert completions == theirs(trainer, prompts)[1]


def test_sampling_stops_when_every_row_has_ended(make_trainer: MakeTrainer) -> None:
    """No more tokens run through the model than the longest completion needs."""
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(200))
    trainer = make_trainer(model, max_completion_length=200)
    runs: list[int] = []
    trainer.model.register_forward_pre_hook(lambda *_: runs.append(1))
    completions = ours(trainer, each(CHATS, 2))[1]
    assert len(runs) == 1 + max(map(len, completions)) < 50


def test_each_prompt_is_read_once(make_trainer: MakeTrainer) -> None:
    """The model sees a group's prompt once, and then a token a row and step."""
    trainer = make_trainer(max_completion_length=5)
    trainer.generation_config.suppress_tokens = trainer.eos_token_ids
    seen: list[tuple[int, int]] = []
    trainer.model.get_input_embeddings().register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    longest = max(map(len, ours(trainer, each(CHATS, 8))[0]))
    assert [tuple(shape) for shape in seen] == [(3, longest - 1), *[(24, 1)] * 5]


def test_keys_and_values_are_seldom_copied(make_trainer: MakeTrainer) -> None:
    """Over 300 tokens, which need the room three times, memory moves three times, and the tokens are those of TRL."""
    trainer, places = make_trainer(max_completion_length=300), []
    trainer.generation_config.suppress_tokens = trainer.eos_token_ids

    def note(_: Any, args: Any, options: dict[str, Any], out: Any) -> None:
        cache = options["cache"] if "cache" in options else options["past_key_values"]
        places.append(cache.layers[1].values.data_ptr())

    with trainer.model.model.register_forward_hook(note, with_kwargs=True):
        completions = ours(trainer, CHATS)[1]
    moves = sum(one != other for one, other in itertools.pairwise(places[1:]))
    assert (len(places), moves) == (301, 2)
    assert completions == theirs(trainer, CHATS)[1]


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.sampled_from(["add", "add one", "select", "reorder", "crop", "repeat"]), max_size=12))
def test_memory_is_that_of_transformers(steps: list[str]) -> None:
    """After any operations, keys and values are those of the layer that copies them at each token."""
    from transformers.cache_utils import DynamicLayer

    layers = [_roomy_layer()(), DynamicLayer()]
    for number, step in enumerate(["add", *steps]):
        size = 1 if number == 0 else len(layers[1].keys)
        new = torch.full((size, 2, 70 if step == "add" else 1, 3), float(number))
        for layer in layers:
            if step.startswith("add"):
                layer.update(new, -new)
            elif step == "crop":
                layer.crop(-2)
            elif step == "repeat":
                layer.batch_repeat_interleave(2 if size < 8 else 1)
            else:
                order = torch.arange(size).flip(0)
                layer.batch_select_indices(order[:3]) if step == "select" else layer.reorder_cache(order)
        assert torch.equal(layers[0].keys, layers[1].keys)
        assert torch.equal(layers[0].values, layers[1].values)


def test_transformers_keeps_its_own_layers(make_trainer: MakeTrainer) -> None:
    """What a rollout uses for its memory is not what other caches are then made of."""
    trainer = make_trainer()
    ours(trainer, CHATS)
    layers = transformers.DynamicCache(config=trainer.model.config).layers
    assert {type(layer) for layer in layers} == {transformers.cache_utils.DynamicLayer}


def test_nothing_is_kept_for_gradients(make_trainer: MakeTrainer) -> None:
    """No layer's output holds the way back to the weights, neither of the prompt nor of the completion."""
    trainer, recorded = make_trainer(), []
    trainer.model.lm_head.register_forward_hook(lambda _, args, out: recorded.append(out.requires_grad))
    ours(trainer, CHATS)
    assert len(recorded) > 1
    assert not any(recorded)


@pytest.mark.parametrize("adapter", [None, {"r": 4, "lora_dropout": 0.5}])
def test_model_is_left_as_it_was(make_trainer: MakeTrainer, adapter: dict[str, Any] | None) -> None:
    """Modes, checkpointing, what is trained and the settings of caches are the same afterwards."""
    trainer = make_trainer(adapter=adapter, gradient_checkpointing=True)
    model = trainer.model.train()
    model.gradient_checkpointing_enable()
    layers = [module for module in model.modules() if type(module).__name__ == "Qwen3MLP"]
    layers[0].eval()

    def state() -> list[Any]:
        checkpointed = [getattr(module, "gradient_checkpointing", None) for module in model.modules()]
        trained = [parameter.requires_grad for parameter in model.parameters()]
        kept = [model.config.use_cache, model.generation_config.to_dict(), trainer.generation_config.to_dict()]
        return [[module.training for module in model.modules()], checkpointed, trained, *kept]

    before = state()
    assert any(before[1])
    ours(trainer, CHATS)
    assert state() == before
    assert torch.is_grad_enabled()


def test_modes_are_restored_after_a_failure(make_trainer: MakeTrainer) -> None:
    """A model that fails while it samples is in train mode all the same."""
    trainer = make_trainer()
    trainer.model.train()

    def fail(*_: Any) -> None:
        raise RuntimeError("broken layer")

    trainer.model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken layer"):
        ours(trainer, CHATS)
    assert all(module.training for module in trainer.model.modules())


def test_dropout_is_off_while_it_samples(make_trainer: MakeTrainer) -> None:
    """The likeliest completion is that of the model in use, not of one with half of its adapter dropped."""
    trainer = make_trainer(adapter={"r": 4, "lora_dropout": 0.5}, top_k=1)
    trainer.model.train()
    prompt_ids, completion_ids = ours(trainer, CHATS)
    assert completion_ids == [greedy(trainer, ids) for ids in prompt_ids]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_bound_the_rows_decoded_at_once(make_trainer: MakeTrainer, chunk: int) -> None:
    """No more rows than asked run together, and every row gets its completion, in order."""
    trainer, widths = make_trainer(top_k=1), []
    trainer.model.lm_head.register_forward_hook(lambda _, args, out: widths.append(len(args[0])))
    prompt_ids, completion_ids = ours(trainer, each(CHATS, 3), rollout=SharedPrefixRollout(chunk=chunk))
    assert max(widths) == min(chunk, 9)
    assert completion_ids == [greedy(trainer, ids) for ids in prompt_ids]


@pytest.mark.parametrize("chunk", [0, -3])
def test_chunk_below_one_is_refused(chunk: int) -> None:
    """Decoding no rows at once is a mistake of the caller's."""
    with pytest.raises(ConfigurationError, match="chunk must be at least 1"):
        SharedPrefixRollout(chunk=chunk)


@pytest.mark.parametrize("texts", [["a", "a", "b"], ["a", "a longer text", "a"]])
def test_prompt_of_one_token(make_trainer: MakeTrainer, texts: list[str]) -> None:
    """Where there is nothing to read beforehand, completions are those of TRL too."""
    trainer = make_trainer()
    assert ours(trainer, texts) == theirs(trainer, texts)


def test_options_of_the_chat_template_are_honoured(make_trainer: MakeTrainer) -> None:
    """The prompt's ids are those of the template with the trainer's options for it."""
    trainer = make_trainer(chat_template_kwargs={"enable_thinking": False})
    prompt_ids = ours(trainer, CHATS)[0]
    tokenizer = tiny_tokenizer()
    options = {"add_generation_prompt": True, "enable_thinking": False}
    assert prompt_ids == [tokenizer.apply_chat_template(chat, **options)["input_ids"] for chat in CHATS]
    assert all(tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n") for ids in prompt_ids)


@pytest.mark.parametrize("adapter", [None, {"r": 4}])
@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision(make_trainer: MakeTrainer, adapter: dict[str, Any] | None, mixed: bool) -> None:
    """Weights in bfloat16, or mixed precision over float32, give whole completions."""
    model = tiny_model(spread=0.3)
    trainer = make_trainer(model if mixed else model.to(torch.bfloat16), adapter=adapter, bf16=mixed)
    completions = ours(trainer, each(CHATS, 2))[1]
    assert len(completions) == 6
    assert all(len(one) == 12 or one[-1] == 258 for one in completions)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_heads_of_a_key_are_read_together_in_half_precision(
    make_trainer: MakeTrainer, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch is slow at grouped heads, a step's attention gets the two query heads of a key as one of two rows."""
    trainer = make_trainer(tiny_model().to(getattr(torch, dtype)))
    attention, queries = torch.nn.functional.scaled_dot_product_attention, []

    def note(query: Any, *args: Any, **options: Any) -> Any:
        queries.append(tuple(query.shape))
        return attention(query, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    ours(trainer, each(CHATS[:1], 3))
    assert queries[-1] == ((3, 2, 2, 8) if dtype == "bfloat16" else (3, 4, 1, 8))


def test_seconds_are_those_of_the_last_call(make_trainer: MakeTrainer) -> None:
    """A rollout knows how long its last call took."""
    trainer, rollout = make_trainer(), SharedPrefixRollout()
    assert rollout.seconds == 0
    ours(trainer, each(CHATS, 8), rollout=rollout)
    started = time.perf_counter()
    ours(trainer, CHATS[:1], rollout=rollout)
    assert 0 < rollout.seconds <= time.perf_counter() - started


@pytest.mark.train
@pytest.mark.parametrize(("mixed", "adapter"), [(False, None), (True, {"r": 4}), (True, None)])
def test_training_is_that_of_trl(make_trainer: MakeTrainer, mixed: bool, adapter: dict[str, Any] | None) -> None:
    """Two steps and measurements with another number of completions end with the same weights, to the last bit.

    With an adapter and mixed precision TRL samples in float32 all the same.
    """
    ended = []
    for rollout in (None, SharedPrefixRollout()):
        options = {"max_steps": 2, "learning_rate": 0.01, "eval_strategy": "steps", "eval_steps": 1, "seed": 3}
        options |= {"num_generations_eval": 3, "per_device_eval_batch_size": 3, "logging_steps": 1}
        options |= {"bf16": mixed, "adapter": adapter}
        trainer = make_trainer(rollout_func=rollout, eval_dataset=rows(), **options)
        trainer.train()
        logged = [{key: one.get(key) for key in ("reward", "eval_reward", "loss")} for one in trainer.state.log_history]
        ended.append((logged, {name: weight.tolist() for name, weight in trainer.model.named_parameters()}))
    assert ended[0] == ended[1]
    assert any(one["eval_reward"] for one in ended[1][0])


def test_fixed_cache_is_refused(make_trainer: MakeTrainer) -> None:
    """A cache of transformers' choosing cannot be filled beforehand."""
    trainer = make_trainer(cache_implementation="static")
    with pytest.raises(ConfigurationError, match="cache_implementation"):
        ours(trainer, CHATS)


def test_other_ways_to_generate_are_refused(make_trainer: MakeTrainer) -> None:
    """A trainer that batches continuously would not be sampled as it was told."""
    trainer = make_trainer(use_transformers_continuous_batching=True)
    with pytest.raises(ConfigurationError, match="neither use_vllm nor"):
        ours(trainer, CHATS)


def test_module_is_read_without_torch() -> None:
    """Importing the module loads none of the heavy packages."""
    code = "import sys, duet_train.rollouts; assert not {'torch', 'trl', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 (this interpreter)
