"""Merges an adapter into its base model in a process of its own, and checks the result before it says that it is done.

`python -m stages.merge_worker job.json`; the job is a `Job`. The outcome goes to `job.result`: what was measured, or
`{"error": ...}`, a sentence for the user.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from stages.base_model import TOKENIZER_FILES
from stages.errors import StageError

ADAPTER = "adapter_model.safetensors"
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}
"""Greatest difference of the logits, as RMS over RMS: rounding of the weights and of each product, and nothing more."""
PROBE_SHAPE = (4, 16)  # rows, tokens: enough to touch every layer at many positions, and cheap on a CPU
SHARD_SIZE = "5GB"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Job:
    """What to merge: folders of the base model, of the adapter (with the tokenizer beside it) and of the result."""

    base_model: Path
    adapter: Path
    output: Path
    result: Path
    dtype: str
    trust_remote_code: bool

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job file."""
        values = orjson.loads(path.read_bytes())
        folders = {name: Path(values[name]) for name in ("base_model", "adapter", "output", "result")}
        return cls(**{**values, **folders})


def main(job: Job) -> None:
    """Merge and check; write the outcome."""
    started = time.monotonic()
    disable_progress_bar()
    try:
        outcome = {"dtype": job.dtype, **merge(job)}
    except StageError as error:
        outcome = {"error": str(error)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {"seconds": round(time.monotonic() - started, 3), "peak_memory_bytes": peak}
    job.result.write_bytes(orjson.dumps({**outcome, **measured}))


@torch.inference_mode()
def merge(job: Job) -> dict[str, Any]:
    """Merge, save, load what was saved and compare it with base + adapter.

    Raises:
        StageError: the adapter does not fit the base, or the merged model does not compute what they compute.
    """
    print(f"loading {job.base_model.name} in {job.dtype}")  # noqa: T201
    tokenizer = AutoTokenizer.from_pretrained(job.adapter, trust_remote_code=job.trust_remote_code)
    base = load_model(job.base_model, job)
    fit_vocabulary(base, job.adapter, len(tokenizer))
    shapes = shapes_of(base)
    adapted = load_adapter(base, job.adapter)
    probe = probe_rows(min(len(tokenizer), base.get_input_embeddings().weight.shape[0]))
    expected = logits_of(adapted, probe)
    print(f"merging {count_layers(adapted)} adapted layers")  # noqa: T201
    save(adapted.merge_and_unload(safe_merge=True), tokenizer, job)
    del base, adapted
    gc.collect()  # so that one model at a time is in memory
    difference = check(load_model(job.output, job), shapes, probe, expected, job.dtype)
    print(f"merged logits differ from base + adapter by {difference:.2e}; allowed {BOUNDS[job.dtype]:.0e}")  # noqa: T201
    return {
        "parameters": sum(torch.Size(shape).numel() for shape in shapes.values()),
        "logit_difference": difference,
        "logit_bound": BOUNDS[job.dtype],
    }


def load_model(folder: Path, job: Job) -> PreTrainedModel:
    """Load a model onto the CPU, whole: no key missing, none left over."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, job.dtype),
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=job.trust_remote_code,
        output_loading_info=True,
    )
    problems = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    if problems:
        listed = "; ".join(f"{name.replace('_', ' ')}: {', '.join(keys[:3])}" for name, keys in problems.items())
        raise StageError(
            f"{folder}: its weights do not fit its config.json ({listed}). Check that the folder is whole."
        )
    return model.eval()


def fit_vocabulary(base: PreTrainedModel, adapter: Path, tokens: int) -> None:
    """Give the base as many embedding rows as it was trained with; the adapter brings the new rows.

    Raises:
        StageError: the tokenizer has tokens without an embedding, and the adapter brings none.
    """
    table = base.get_input_embeddings().weight
    rows = table.shape[0]
    name = next(name for name, parameter in base.named_parameters() if parameter is table)
    with safe_open(adapter / ADAPTER, "pt") as file:
        key = next((key for key in file.keys() if key.endswith(name)), None)
        trained_rows = file.get_slice(key).get_shape()[0] if key else rows
    if tokens > trained_rows:
        raise StageError(
            f"the tokenizer has {tokens} tokens, the model embeddings for {trained_rows}. New tokens must be trained: "
            "set lora_modules_to_save: [embed_tokens, lm_head] and run again."
        )
    if trained_rows != rows:
        base.resize_token_embeddings(trained_rows, mean_resizing=False)


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapter onto the base, every one of its tensors in its place."""
    adapted = PeftModel(base, PeftConfig.from_pretrained(folder), "default")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # they are errors below
        report = adapted.load_adapter(folder, "default", torch_device="cpu")
    with safe_open(folder / ADAPTER, "pt") as file:
        names = set(file.keys())
    # peft saves a table that is trained in full beside new tokens twice, under two names, and loads one of them
    unexpected = [name for name in report.unexpected_keys if name.replace(".modules_to_save", "") not in names - {name}]
    problems = [*report.missing_keys, *unexpected]
    if problems:
        raise StageError(
            f"the adapter does not fit the base model: {len(problems)} of its tensors have no place or are missing, "
            f"the first is {problems[0]}. Train again on this base model."
        )
    return adapted.eval()


def count_layers(adapted: PeftModel) -> int:
    """Return how many layers have an adapter."""
    return sum(hasattr(module, "lora_A") for module in adapted.modules())


def probe_rows(vocabulary: int) -> torch.Tensor:
    """Return (rows, tokens) int64 token ids, the same on every machine."""
    return torch.randint(vocabulary, PROBE_SHAPE, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits_of(model: PreTrainedModel | PeftModel, rows: torch.Tensor) -> torch.Tensor:
    """Return (rows, tokens, vocabulary) float32."""
    logits: torch.Tensor = model(input_ids=rows, use_cache=False).logits
    return logits.float()


def shapes_of(model: PreTrainedModel) -> Shapes:
    """Return the shape of every tensor of the model's state by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    """Write the complete folder: weights and configs from the model, the tokenizer's files as they were trained."""
    align_special_tokens(model, tokenizer)
    model.save_pretrained(job.output, max_shard_size=SHARD_SIZE)
    for path in sorted(job.adapter.rglob("*")):
        name = path.relative_to(job.adapter)
        if (name.name in TOKENIZER_FILES and name.name != "config.json") or name.suffix == ".jinja":
            (job.output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, job.output / name)
    open_to_readers(job.output)


def align_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop and pad with the tokens of the trained tokenizer; further stop tokens of the base stay."""
    generation, config = model.generation_config, model.config.get_text_config()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name)
        if value is None:
            continue
        setattr(config, name, value)
        if generation is None:
            continue
        present = getattr(generation, name)
        others = present if isinstance(present, list) else [present] if present is not None else []
        several = name == "eos_token_id" and set(others) - {value}
        setattr(generation, name, [value, *(token for token in others if token != value)] if several else value)


def open_to_readers(folder: Path) -> None:
    """Give every file the mode that the umask asks for: safetensors files are written for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def check(merged: PreTrainedModel, shapes: Shapes, rows: torch.Tensor, expected: torch.Tensor, dtype: str) -> float:
    """Return how far the saved model's logits are from base + adapter, as RMS over RMS.

    Raises:
        StageError: other tensors than the base's, or a difference beyond what rounding explains.
    """
    found = shapes_of(merged)
    if found != shapes:
        odd = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise StageError(f"the merged model has other tensors than the base: {', '.join(odd[:3])}. Nothing was kept.")
    actual = logits_of(merged, rows)
    difference = float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    if not difference <= BOUNDS[dtype]:  # also when it is not a number
        raise StageError(
            f"the merged model does not compute what base + adapter compute: logits differ by {difference:.3g} "
            f"(RMS over RMS), rounding to {dtype} explains at most {BOUNDS[dtype]:g}. Nothing was kept."
        )
    return difference


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
