"""How many held-out questions a model answers exactly right.

Run as `python -m flows.quickstart.evaluate HELD_OUT_FILE MODEL_FOLDER ...`. It prints one JSON list with, for each
model, a list of `{"chat", "expected", "answer"}`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.quickstart.data import Message, questions, read

LONGEST_ANSWER = 24  # tokens; the right ones have at most 12


def answers(folder: Path, chats: list[list[Message]]) -> list[str]:
    """Return what the model says next in each chat: greedy, up to its end-of-turn token, special tokens visible."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        generated = model.generate(**prompts, do_sample=False, max_new_tokens=LONGEST_ANSWER)
    ends = tokenizer.eos_token_id
    new = [
        ids[: ids.index(ends)] if ends in ids else ids for ids in generated[:, prompts["input_ids"].shape[1] :].tolist()
    ]
    return list(tokenizer.batch_decode(new, skip_special_tokens=False))


def evaluate(held_out: Path, folder: Path) -> list[dict[str, object]]:
    """Return every held-out question with the expected answer and the model's."""
    asked = questions(read(held_out))
    said = answers(folder, [chat for chat, _ in asked])
    return [
        {"chat": chat, "expected": expected, "answer": answer}
        for (chat, expected), answer in zip(asked, said, strict=True)
    ]


if __name__ == "__main__":
    results = [evaluate(Path(sys.argv[1]), Path(folder)) for folder in sys.argv[2:]]
    sys.stdout.buffer.write(orjson.dumps(results))
