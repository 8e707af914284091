"""A small tokenizer and a small random model, built in code: no weights and no downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
SENTENCES = (
    "the quick brown fox jumps over the lazy dog. what is the capital of France? Paris is the capital.",
    "user assistant system tool hello world, how are you today? I am fine, thank you.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n",
    "0 1 2 3 4 5 6 7 8 9 + - * / = ( ) { } [ ] [[ ]] < > # : ; \" '",
)


def build_tokenizer(folder: Path, chat_template: str | None = CHATML, *, vocabulary: int = 512) -> Path:
    """Write a byte-level BPE tokenizer as a Hugging Face folder: eos `<|im_end|>` (id 2), pad `<|pad|>` (id 3)."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<|endoftext|>",
    )
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return folder


def build_model(folder: Path, chat_template: str | None = CHATML, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a random two-layer Llama (about 0.1 M parameters, float32) with its tokenizer as a Hugging Face folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    build_tokenizer(folder, chat_template)
    sizes: dict[str, Any] = {
        "vocab_size": len(AutoTokenizer.from_pretrained(folder)),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    config = LlamaConfig(**{**sizes, **overrides}, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
