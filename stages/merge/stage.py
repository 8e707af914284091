"""merge: the adapter into its base model, as a complete Hugging Face folder that needs nothing of ours to load.

A full fine-tuning is complete already; its files are taken as they are.

    model/       weights (safetensors), config, generation config, tokenizer, chat template
    merge.log    what the merging process said; volatile
    merge.json   what the check measured, seconds and peak memory; volatile
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from stages.artifacts import Artifact, ArtifactWriter
from stages.base_model import MODEL_FILES, ModelSource, trained_model
from stages.errors import StageError, TransientError
from stages.lifeline import bound
from stages.quantization import TORCH_NAMES
from stages.stage import Context, Stage, Upstream

LIBRARIES = ("torch", "transformers", "peft", "safetensors")
DTYPES = {"fp32": "float32", "fp16": "float32", "bf16": "bfloat16"}
"""Precision of the training -> type of the merged weights; float16 would lose range that training had."""
LOG_TAIL = 20  # lines of the log that an error shows


def inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    """Return the content of the base that was trained, and the libraries that merge; nothing for a full model."""
    trained = upstream["train"].facts
    if trained["kind"] == "model":
        return {"kind": "model"}
    libraries = (*LIBRARIES, "bitsandbytes") if trained["quantization"] else LIBRARIES
    return {
        "kind": "adapter",
        "base_model": trained["base_model"],
        "dtype": DTYPES[trained["precision"]],
        "quantization": trained["quantization"],
        "trust_remote_code": context.run.trust_remote_code,
        "versions": {name: version(name) for name in libraries},
    }


def produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    """Write `model/` and return `{"kind", "dtype", "parameters"}` (dtype and parameters null for a full model)."""
    trained = upstream["train"]
    if trained.facts["kind"] == "model":
        writer.take_folder(trained.path("model"), prefix="model/")
        return {"kind": "model", "dtype": None, "parameters": None}
    scratch = writer.work / "merging"
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed try left is of no use to this one
    scratch.mkdir(parents=True)
    try:
        measured = _merge(context, trained, scratch)
        writer.take_folder(scratch / "model", prefix="model/")
        writer.take(scratch / "merge.log", "merge.log", volatile=True)
        writer.take(scratch / "merge.json", "merge.json", volatile=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"kind": "adapter", "dtype": measured["dtype"], "parameters": measured["parameters"]}


def _merge(context: Context, trained: Artifact, scratch: Path) -> dict[str, Any]:
    """Merge into `<scratch>/model` and return what the worker measured, after it has checked its own result."""
    result, log, job_file = (scratch / name for name in ("merge.json", "merge.log", "job.json"))
    job = {
        "base_model": str(_trained_base(context, trained).folder(MODEL_FILES).resolve()),
        "adapter": str(trained.path("model").resolve()),
        "output": str((scratch / "model").resolve()),
        "result": str(result.resolve()),
        "dtype": DTYPES[trained.facts["precision"]],
        "trained_dtype": TORCH_NAMES[trained.facts["precision"]],
        "quantization": trained.facts["quantization"],
        "trust_remote_code": context.run.trust_remote_code,
    }
    job_file.write_bytes(orjson.dumps(job))
    code = _run_worker(job_file, log, context.log)
    outcome: dict[str, Any] = orjson.loads(result.read_bytes()) if result.is_file() else {}
    if code != 0 or not outcome or "error" in outcome:
        raise _failure(code, outcome, log, context.run.base_model)
    return outcome


def _trained_base(context: Context, trained: Artifact) -> ModelSource:
    """Return the base model that was trained: its commit, though the branch may have moved since; its folder as it was.

    Raises:
        StageError: the folder holds another model now.
    """
    content = trained.facts["base_model"]
    source = trained_model(context.run, content)
    if source.content(MODEL_FILES, context.digests) != content:
        raise StageError(
            f"{source.name}: the base model's files changed after the adapter was trained on them. "
            "Put them back, or run again to train on the new ones."
        )
    return source


def _run_worker(job_file: Path, log: Path, say: Callable[[str], None]) -> int:
    """Run the worker to its end and return its exit code; it ends with this process, however that dies."""
    command = bound([sys.executable, "-m", "stages.merge.worker", str(job_file)])
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w") as file:
        worker = subprocess.Popen(
            command, env=environment, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            for line in worker.stdout or ():
                file.write(line)
                say(line.rstrip())
            return worker.wait()
        finally:  # also when this process is told to stop
            worker.kill()
            worker.wait()
            if worker.stdout:
                worker.stdout.close()


def _failure(code: int, outcome: dict[str, Any], log: Path, base_model: str) -> Exception:
    if "error" in outcome:
        return StageError(f"merge into {base_model}: {outcome['error']}")
    if code == -signal.SIGKILL:
        return TransientError(
            f"merge into {base_model}: the merging process was killed, most often because memory ran out. "
            "It needs the size of the model in the training precision and some GB; free memory and run again."
        )
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
    return StageError(
        f"merge into {base_model}: the merging process ended with exit code {code}. Its last lines:\n{tail}"
    )


STAGE = Stage("merge", version=2, needs=("train",), inputs=inputs, produce=produce)
