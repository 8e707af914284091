"""The quick start's base model: a small Llama with random weights, and a tokenizer learned from the training chats.

Run as `python -m flows.quickstart.model FOLDER`: it reads the training file in FOLDER and writes FOLDER/base.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flows.quickstart.data import TRAIN_FILE, Row, read

SEED = 0
MOST_TOKENS = 640  # enough for every word of the chats to become one token
CONTEXT_LEN = 512  # tokens
BEGIN, START_OF_TURN, END_OF_TURN, PADDING = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(rows: list[Row], folder: Path) -> None:
    """Write a complete Hugging Face model folder; the same rows give the same bytes."""
    tokenizer = build_tokenizer(rows)
    tokenizer.save_pretrained(folder)
    build_model(tokenizer).save_pretrained(folder)


def build_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of the words in the chats; any other text is spelled in bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS,
        special_tokens=[BEGIN, START_OF_TURN, END_OF_TURN, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_LEN,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a model of 0.4 million parameters that knows nothing."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LEN,
            initializer_range=0.05,  # the usual 0.02 is for wide models: this narrow one then starts slowly
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _texts(rows: list[Row]) -> Iterator[str]:
    for message in (message for row in rows for message in row["messages"]):
        yield f"{message['role']}\n"
        yield message["content"]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    build(read(target / TRAIN_FILE), target / "base")
