"""What the model answers to held-out prompts: before training, at each evaluation, and at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from configs.schema import RunConfig
from stages.tokens import IGNORED, Packs, TokenRows
from stages.train.metrics import MetricsLog

MOST_PROMPT_TOKENS = 1024
"""Of a longer prompt the last so many tokens are given."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A held-out row, cut where its last answer begins.

    Attributes:
        dataset: index of its data set.
        row: its number there.
        input_ids: (tokens,) the prompt.
        expected: (tokens,) what the row goes on with.
    """

    dataset: int
    row: int
    input_ids: list[int]
    expected: list[int]


def prompts(rows: TokenRows, held_out: Packs, *, most: int, ratio: float) -> list[Prompt]:
    """Return the first prompts of the held-out rows; of a row that is trained from its start, a share of it."""
    return list(islice(_prompts(rows, held_out, ratio), most))


def _prompts(rows: TokenRows, held_out: Packs, ratio: float) -> Iterator[Prompt]:
    for row in dict.fromkeys(held_out.rows.tolist()):
        ids, labels = rows[row]
        trained = np.flatnonzero(labels != IGNORED)
        if not len(trained):
            continue
        gaps = np.flatnonzero(np.diff(trained) > 1)
        begin = int(trained[gaps[-1] + 1] if len(gaps) else trained[0])  # the last stretch of trained tokens
        begin = begin or int(ratio * len(ids))
        if 0 < begin < len(ids):
            dataset, number = rows.source(row)
            last = int(trained[-1]) + 1
            yield Prompt(dataset, number, ids[:begin][-MOST_PROMPT_TOKENS:].tolist(), ids[begin:last].tolist())


class Samples(TrainerCallback):  # type: ignore[misc]
    """Writes what the model says to a file, a line for each prompt and step; step 0 is the base model."""

    def __init__(self, run: RunConfig, asked: list[Prompt], tokenizer: Path, log: MetricsLog) -> None:
        self._asked, self._log = asked, log
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._seed = run.seed
        sampling = {"temperature": run.generation_temperature, "top_p": run.generation_top_p}
        sampling["top_k"] = run.generation_top_k
        self._options: dict[str, Any] = {
            "max_new_tokens": run.generation_max_new_tokens,
            "do_sample": run.generation_do_sample,
            "pad_token_id": self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0,
            "use_cache": True,
        }
        if run.generation_do_sample:
            self._options |= {name: value for name, value in sampling.items() if value is not None}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Ask the base model; a training that is resumed has done so."""
        if state.global_step == 0:
            self._ask(kw["model"], 0)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Ask the model as it is now."""
        self._ask(kw["model"], state.global_step)

    @torch.no_grad()
    def _ask(self, model: Any, step: int) -> None:
        was_training = model.training
        model.eval()
        try:
            for place, prompt in enumerate(self._asked):
                ids = torch.tensor([prompt.input_ids], device=model.device)
                devices = [model.device] if model.device.type == "cuda" else []
                with torch.random.fork_rng(devices=devices):  # dropout draws as if nothing had been asked
                    torch.manual_seed(self._seed + place)
                    said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **self._options)
                self._write(step, prompt, said[0, ids.shape[1] :].tolist())
        finally:
            model.train(was_training)

    def _write(self, step: int, prompt: Prompt, said: list[int]) -> None:
        decode = self._tokenizer.decode
        text = decode(said, skip_special_tokens=True)
        logger.info("step %d, sample of row %d: %s", step, prompt.row, text.replace("\n", " ")[:200])
        record = {"step": step, "dataset": prompt.dataset, "row": prompt.row, "text": text}
        record["prompt"] = decode(prompt.input_ids, skip_special_tokens=False)
        self._log.append(record | {"expected": decode(prompt.expected, skip_special_tokens=True)})
