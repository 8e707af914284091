"""Merges an adapter into its base model in a process of its own, and checks the result before it says that it is done.

`python -m stages.merge.worker job.json`; the job is a `Job`. The outcome goes to `job.result`: what was measured, or
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from stages.base_model import ADAPTER_FILES
from stages.errors import StageError
from stages.merge.check import (
    LOGIT_BOUNDS,
    WEIGHT_BOUNDS,
    Difference,
    compare,
    compare_layers,
    compare_logits,
    compare_quantised,
    fingerprint,
    logits_of,
    probe_rows,
    shapes_of,
)
from stages.merge.stream import (
    WeightFiles,
    as_trained,
    can_stream,
    empty_adapted,
    empty_model,
    merged_shards,
    streamed,
    write_shards,
)

ADAPTER = "adapter_model.safetensors"
SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Job:
    """What to merge.

    Attributes:
        base_model: folder of the base model.
        adapter: folder of the adapter, with the tokenizer beside it.
        output: folder of the result.
        result: file of the outcome.
        dtype: of the merged weights.
        trained_dtype: in which the base was loaded for training; its quantised weights were rounded from there.
        quantization: arguments of BitsAndBytesConfig in training, or None.
        trust_remote_code: whether the base model's own code may run.
    """

    base_model: Path
    adapter: Path
    output: Path
    result: Path
    dtype: str
    trained_dtype: str
    quantization: dict[str, Any] | None
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
    warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
    try:
        found = {"dtype": job.dtype, **merge(job)}
    except StageError as error:
        found = {"error": str(error)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {"seconds": round(time.monotonic() - started, 3), "peak_memory_bytes": peak}
    job.result.write_bytes(orjson.dumps({**found, **measured}))


@torch.inference_mode()
def merge(job: Job) -> dict[str, Any]:
    """Merge, save, load what was saved and compare it with base + adapter.

    Raises:
        StageError: the adapter does not fit the base, or the merged model does not compute what they compute.
    """
    tokenizer = AutoTokenizer.from_pretrained(job.adapter, trust_remote_code=job.trust_remote_code)
    if not job.trust_remote_code and can_stream(job.base_model, job.adapter, len(tokenizer)):
        return merge_by_layer(job, tokenizer)
    return merge_whole(job, tokenizer)


def merge_by_layer(job: Job, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Merge and check in the memory of one file of the base model; see `stages.merge.stream`."""
    print(f"merging into {job.base_model.name} in {job.dtype}, file by file")  # noqa: T201
    dtype, files = getattr(torch, job.dtype), WeightFiles(job.base_model)
    base, adapted = empty_model(job.base_model, dtype), empty_adapted(job.base_model, job.adapter, dtype)
    dtypes = {"trained": getattr(torch, job.trained_dtype), "merged": dtype}
    parameters = base.num_parameters()  # tied ones count once, as long as they are one
    read = as_trained(base, files.read, **dtypes, quantization=job.quantization)
    job.output.mkdir(parents=True, exist_ok=True)
    write_shards(merged_shards(adapted, files, read, dtype), job.output)
    write_settings(base, tokenizer, job)
    rows, merged = probe_rows(min(len(tokenizer), base.get_input_embeddings().weight.shape[0])), WeightFiles(job.output)
    weights, rounding = compare_layers(adapted, read, merged.read, job.dtype)
    with streamed(adapted, read, dtype):
        expected = logits_of(adapted, rows)
    with streamed(base, merged.read, dtype):
        logits = compare_logits(logits_of(base, rows), expected, job.dtype)
    return outcome(parameters, Difference(weights, logits, rounding), job.dtype)


def merge_whole(job: Job, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Merge and check with the whole model in memory: where the adapter brings more than low-rank layers."""
    print(f"loading {job.base_model.name} in {job.dtype}")  # noqa: T201
    base = load_base(job, len(tokenizer))
    rows = probe_rows(min(len(tokenizer), base.get_input_embeddings().weight.shape[0]))
    quantised_logits = None
    if job.quantization:
        quantised_logits = logits_of(load_adapter(base, job.adapter), rows)
        del base
        gc.collect()
        base = load_base(job, len(tokenizer)).dequantize().to(getattr(torch, job.dtype))
    shapes = shapes_of(base)
    adapted = load_adapter(base, job.adapter)
    expected = fingerprint(adapted, shapes, rows)
    if quantised_logits is not None:
        compare_quantised(expected.logits, quantised_logits, job.quantization or {})
    print(f"merging {len(expected.products)} adapted layers")  # noqa: T201
    save(adapted.merge_and_unload(), tokenizer, job)  # not its "safe" way, which rounds twice in bfloat16
    del base, adapted
    gc.collect()  # so that one model at a time is in memory
    merged = load_model(job.output, job, job.dtype)
    return outcome(merged.num_parameters(), compare(merged, expected, job.dtype), job.dtype)


def outcome(parameters: int, difference: Difference, dtype: str) -> dict[str, Any]:
    """Say what the check measured, and return it."""
    print(  # noqa: T201
        f"checked: logits differ from base + adapter by {difference.logits:.2g} (allowed "
        f"{LOGIT_BOUNDS[dtype]:.2g}), rounding of weights is {difference.rounding:.2%} of what the adapter changed"
    )
    bounds = {"weights": WEIGHT_BOUNDS[dtype], "logits": LOGIT_BOUNDS[dtype]}
    return {"parameters": parameters, "differences": asdict(difference), "bounds": bounds}


def load_base(job: Job, tokens: int) -> PreTrainedModel:
    """Load the base model as it was in training, quantised if it was, with embeddings for its tokens."""
    if job.quantization:
        config = BitsAndBytesConfig(**job.quantization)
        base = load_model(job.base_model, job, job.trained_dtype, quantization_config=config)
    else:
        base = load_model(job.base_model, job, job.dtype)
    fit_vocabulary(base, job.adapter, tokens)
    return base


def load_model(folder: Path, job: Job, dtype: str, **options: Any) -> PreTrainedModel:
    """Load a model onto the CPU, whole: no key missing, none left over."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=job.trust_remote_code,
        output_loading_info=True,
        **options,
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


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    """Write the complete folder: weights and configs from the model, the tokenizer's files as they were trained."""
    align_special_tokens(model, tokenizer)
    model.save_pretrained(job.output, max_shard_size=SHARD_SIZE)
    copy_tokenizer(job)
    open_to_readers(job.output)


def write_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    """Write all of the complete folder but the weights."""
    if (job.base_model / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(job.base_model)
    align_special_tokens(model, tokenizer)
    model.config.architectures, model.config.dtype = [type(model).__name__], getattr(torch, job.dtype)
    model.config.save_pretrained(job.output)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(job.output)
    copy_tokenizer(job)
    open_to_readers(job.output)


def copy_tokenizer(job: Job) -> None:
    """Copy the tokenizer's files as they were trained: all that is beside the adapter."""
    for path in sorted(job.adapter.rglob("*")):
        name = path.relative_to(job.adapter)
        if path.is_file() and str(name) not in ADAPTER_FILES:
            (job.output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, job.output / name)


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


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
