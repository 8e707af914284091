"""Prepare data as a peer does; `compare_preparation.py` starts this in the peer's environment.

python infra/bench/peer_preparation.py trl|llamafactory|bare chats|instructions FOLDER TOKENIZER

FOLDER holds `data.jsonl`; what is made goes into FOLDER/prepared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SEQUENCE_LEN = 2048
# TRL finds what to train by these marks; this is the template of SmolLM2 with them
MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
)
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def main() -> None:
    """Prepare."""
    peer, kind, folder, tokenizer = sys.argv[1:]
    {"trl": trl, "llamafactory": llamafactory, "bare": bare}[peer](kind, Path(folder), tokenizer)


def prompt_of(row: dict[str, Any]) -> str:
    """Return the prompt of an instruction."""
    return (PROMPT_WITH_INPUT if row.get("input") else PROMPT).format(**row)


def trl(kind: str, folder: Path, model: str) -> None:
    """Tokenize with a mask, and pack, as SFTTrainer does before it trains; the model is a random one of two layers."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = load_dataset(
        "json", data_files=str(folder / "data.jsonl"), split="train", cache_dir=str(folder / "prepared")
    )
    if kind == "chats":
        tokenizer.chat_template = MARKED
        rows = rows.select_columns(["messages"])
    else:
        names = rows.column_names
        rows = rows.map(lambda row: {"prompt": prompt_of(row), "completion": row["output"]}, remove_columns=names)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    small = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    settings = SFTConfig(
        output_dir=str(folder / "out"),
        max_length=SEQUENCE_LEN,
        packing=True,
        assistant_only_loss=kind == "chats",
        dataset_num_proc=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainer = SFTTrainer(small, args=settings, train_dataset=rows, processing_class=tokenizer)
    trainer.train_dataset.save_to_disk(str(folder / "saved"))


def llamafactory(kind: str, folder: Path, model: str) -> None:
    """Tokenize with a mask, pack and save, as its `train` does with `tokenized_path`, which ends there."""
    from llamafactory.train.tuner import run_exp

    chats = {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        | {"system_tag": "system"},
    }
    instructions = {"columns": {"prompt": "instruction", "query": "input", "response": "output"}}
    entry = {"file_name": "data.jsonl", **(chats if kind == "chats" else instructions)}
    (folder / "dataset_info.json").write_text(json.dumps({"data": entry}))
    run_exp(
        {
            "model_name_or_path": model,
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "dataset": "data",
            "dataset_dir": str(folder),
            "template": "chatml" if kind == "chats" else "alpaca",
            "cutoff_len": SEQUENCE_LEN,
            "packing": True,
            "preprocessing_num_workers": 1,
            "overwrite_cache": True,
            "tokenized_path": str(folder / "saved"),
            "output_dir": str(folder / "out"),
            "cache_dir": str(folder / "prepared"),
            "report_to": "none",
        }
    )


def bare(kind: str, folder: Path, model: str) -> None:
    """Tokenize texts, and nothing else; contents joined without a template, which is fewer tokens than others make."""
    from tokenizers import Tokenizer

    rows = [json.loads(line) for line in (folder / "data.jsonl").read_bytes().splitlines()]
    if kind == "chats":
        texts = ["\n".join(message["content"] for message in row["messages"]) for row in rows]
    else:
        texts = [prompt_of(row) + row["output"] for row in rows]
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    for start in range(0, len(texts), 1000):
        tokenizer.encode_batch(texts[start : start + 1000])


if __name__ == "__main__":
    main()
