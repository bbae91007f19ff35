"""A tokenizer of bytes and a random model of two layers, built in code: training in tests without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
VOCABULARY = 259

# Roles on a line of their own between start and end tokens; thinking is switched off as Qwen3's template does it.
CHAT_TEMPLATE = """
{%- for message in messages %}
{{- '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}""".strip()


def tiny_tokenizer() -> Any:
    """One token a byte, ids 0 to 255 in the byte's order, then pad, start (also bos) and end (also eos)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte)
    core = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in (PAD, START, END)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, bos_token=START, eos_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte(letter: str) -> int:
    """The byte that a letter of the byte-level alphabet stands for: itself where it prints, else counted from 256."""
    hidden = [byte for byte in range(256) if not (33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255)]
    return ord(letter) if ord(letter) < 256 else hidden[ord(letter) - 256]


def tiny_model(
    kind: str = "qwen3",
    width: int = 32,
    layers: int = 2,
    vocab: int = VOCABULARY,
    *,
    seed: int = 0,
    spread: float = 0.02,
) -> Any:
    """A random model in float32.

    Args:
        kind: "qwen3" or "llama".
        width: Of the hidden states; a multiple of 8.
        layers: Number of them.
        vocab: Tokens; the last three are pad, start and end.
        seed: Of its weights, which leaves torch's own random state as it was.
        spread: Standard deviation of the weights. At 0.02 all tokens are about as likely; at 0.5 few are.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    config = {"qwen3": Qwen3Config, "llama": LlamaConfig}[kind](
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        max_position_embeddings=4096,
        initializer_range=spread,
        tie_word_embeddings=True,
        pad_token_id=vocab - 3,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def tiny_folder(tmp_path: Path, **shape: Any) -> Path:
    """A folder that `from_pretrained` reads: the model as safetensors, and its tokenizer.

    Args:
        tmp_path: Where the folder is made.
        shape: As `tiny_model` takes it.
    """
    folder = tmp_path / "tiny"
    tiny_model(**shape).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
