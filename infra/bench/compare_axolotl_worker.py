"""The side of axolotl in `compare_axolotl.py`: run by the interpreter of its environment, imports nothing of ours.

python compare_axolotl_worker.py REQUEST.json ANSWER.json
"""

from __future__ import annotations

import json
import logging
import sys
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import axolotl.prompt_strategies.messages.chat as messages
import transformers
import transformers.utils.chat_template_utils as templates
from axolotl.core.chat.messages import ChatFormattedChats
from axolotl.utils.data import wrappers
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset


def main() -> None:
    """Answer a request."""
    logging.disable(logging.CRITICAL)
    request = json.loads(Path(sys.argv[1]).read_text())
    _set_date(request["date"])
    # the strategy itself instead of a data set that it has been applied to
    wrappers.wrap_dataset_for_tokenized_prompt = lambda strategy, dataset, **_: strategy
    messages.ChatMessageDatasetWrappingStrategy.wrap_dataset = lambda strategy, dataset, **_: strategy
    answer = [[_case(request["tokenizer"], run["keys"], case) for case in run["cases"]] for run in request["runs"]]
    Path(sys.argv[2]).write_text(json.dumps(answer))


def _set_date(day: str) -> None:
    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromisoformat(day)

    templates.datetime = Fixed


def _case(folder: str, keys: dict[str, Any], case: dict[str, Any]) -> list[Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = DictDefault({"sequence_len": 512, "train_on_inputs": False, **keys})
    dataset = SFTDataset(path="rows.jsonl", **case["dataset"]).model_dump(exclude_none=True)
    settings = DictDefault(dataset)
    kind = settings.type if isinstance(settings.type, str) else None
    base, _, style = (kind or "").partition(":")
    rows = case["rows"]
    if kind is None and not settings.type:
        return [[{"input_ids": row["input_ids"], "labels": row["labels"]}] for row in rows]
    try:
        nothing = Dataset.from_list([{"none": 0}])
        strategy, _ = wrappers.get_dataset_wrapper(settings, tokenizer, config, base, nothing, style or None)
    except Exception as error:  # noqa: BLE001  any error of theirs is an answer
        return [f"{type(error).__name__}: {error}"] * len(rows)
    return [_row(strategy, deepcopy(row)) for row in rows]


def _row(strategy: Any, row: dict[str, Any]) -> Any:
    try:
        if isinstance(strategy, messages.ChatMessageDatasetWrappingStrategy):
            chat = ChatFormattedChats(formatter=strategy.formatter, **strategy.message_transform(row))
            tokens = chat.tokenized(strategy.processor)
            return [{"input_ids": tokens["input_ids"], "labels": tokens["labels"]}]
        batched = getattr(strategy, "supports_batched", False)
        result = strategy.tokenize_prompt({key: [value] for key, value in row.items()} if batched else row)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    ids, labels = result["input_ids"], result["labels"]
    if ids and isinstance(ids[0], list):
        return [{"input_ids": one, "labels": two} for one, two in zip(ids, labels, strict=True)]
    return [{"input_ids": ids, "labels": labels}] if ids else []


if __name__ == "__main__":
    main()
