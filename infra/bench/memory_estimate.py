"""The estimate of memory against what trainings really take: training processes on a CPU, watched from outside.

python infra/bench/memory_estimate.py [--cases full lora ...] [--layers 6] [--size 512]

Each case trains a model with random weights for three steps, in the processes that `sft train` starts, and the memory
of the fullest one is read from the system every few milliseconds from the end of the first step on, when the optimizer
has its states. What the same training takes with a model of hardly any weights is subtracted: Python, libraries,
threads. The allocator is told to give freed tensors back at once. Prints one JSON document, and a sentence on standard
error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from configs.schema import RunConfig  # noqa: E402  found by the line above
from stages.estimate.activations import Pass  # noqa: E402
from stages.estimate.memory import estimate  # noqa: E402
from stages.estimate.shapes import model_shape  # noqa: E402
from stages.train.job import Job, WorkFolder  # noqa: E402
from stages.train.outcome import AGENT  # noqa: E402

WIDTH = 768
PORT = 29_600
SAMPLED_EVERY = 0.004
TRAIN = ("-m", "stages.train")
VOCABULARY = 16_384
LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
BF16 = {"bf16": True}
TWO = {"launcher": {"processes": 2, "threads": 1}}
KERNELS = {"lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # name -> (family, keys)
    "full": ("llama", {}),
    "full, recomputed": ("llama", {"gradient_checkpointing": True}),
    "full, accumulated": ("qwen2", {"gradient_accumulation_steps": 2}),
    "full, two rows": ("qwen3", {"micro_batch_size": 2, "sequence_len": 384}),
    "full, 8-bit optimizer": ("llama", {"optimizer": "adamw_8bit"}),
    "lora": ("llama", LORA),
    "lora, recomputed": ("mistral", {**LORA, "gradient_checkpointing": True}),
    "lora, dropout": ("qwen3", {**LORA, "lora_dropout": 0.1}),
    "lora, attention only": (
        "llama",
        {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "v_proj"]},
    ),
    "lora, kernels": ("llama", {**LORA, **KERNELS}),
    "lora, kernels, recomputed": ("llama", {**LORA, **KERNELS, "gradient_checkpointing": True}),
    "qlora": ("llama", {**LORA, "adapter": "qlora", "load_in_4bit": True}),
    "full, bf16": ("llama", BF16),
    "lora, bf16": ("llama", {**LORA, **BF16}),
    "lora, kernels, bf16": ("llama", {**LORA, **KERNELS, **BF16}),
    "lora, recomputed, bf16": ("llama", {**LORA, **BF16, "gradient_checkpointing": True}),
    "qlora, bf16": ("llama", {**LORA, **BF16, "adapter": "qlora", "load_in_4bit": True}),
    "full, FSDP2, bf16": ("llama", {**BF16, **TWO, "fsdp_config": {}}),
    "full, ZeRO-1": ("llama", {**TWO, "deepspeed": {"zero_optimization": {"stage": 1}}}),
    "full, ZeRO-2": ("llama", {**TWO, "deepspeed": {"zero_optimization": {"stage": 2}}}),
    "full, ZeRO-3": ("llama", {**TWO, "deepspeed": {"zero_optimization": {"stage": 3}}}),
    "full, DDP": ("llama", TWO),
    "full, FSDP2": ("llama", {**TWO, "fsdp_config": {}}),
    "lora, FSDP2": ("llama", {**LORA, **TWO, "fsdp_config": {}}),
}


def main() -> None:
    """Measure the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    found = {}
    for name in options.cases:
        found[name] = compare(*CASES[name], size=options.size, layers=options.layers)
        print(name, found[name]["error"], file=sys.stderr, flush=True)
    errors = sorted(abs(case["error"]) for case in found.values())
    print(json.dumps({"size": options.size, "layers": options.layers, "cases": found}, indent=2))
    print(
        f"{len(errors)} trainings: the estimate is off by {errors[len(errors) // 2]:.1%} in the middle and by "
        f"{errors[-1]:.1%} at most.",
        file=sys.stderr,
    )


def compare(family: str, keys: dict[str, Any], *, size: int, layers: int) -> dict[str, Any]:
    """Return estimate and measurement of one case, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(Path(folder), family, keys, size=size, layers=layers, vocabulary=VOCABULARY)
        parts = _estimate(job)
        fullest = peak(job)
    with tempfile.TemporaryDirectory() as folder:
        baseline = peak(prepare(Path(folder), family, keys, size=64, layers=1, vocabulary=512))
    measured, estimated = fullest - baseline, sum(parts.values())
    return {
        "family": family,
        "keys": {key: value for key, value in keys.items() if key != "launcher"},
        "measured_mib": round(measured),
        "estimated_mib": round(estimated),
        "error": round(estimated / measured - 1, 4),
        "baseline_mib": round(baseline),
        "parts_mib": {name: round(part, 1) for name, part in parts.items()},
    }


def prepare(folder: Path, family: str, keys: dict[str, Any], *, size: int, layers: int, vocabulary: int) -> Job:
    """Write a model and full sequences of random tokens, and return the training of them."""
    import transformers

    from tests.tiny import build_tokenizer
    from tests.train_data import FileDigests, Store, packs_of, random_rows, write_packs, write_tokens

    build_tokenizer(folder / "base")
    heads = size // 64
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": 64,
        "intermediate_size": size * 11 // 4,
        "tie_word_embeddings": False,
    }
    config = transformers.AutoConfig.for_model(family, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    settings = {
        "base_model": str(folder / "base"),
        "datasets": [{"path": "unused.jsonl", "type": "completion"}],
        "sequence_len": WIDTH,
        "sample_packing": True,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "bf16": False,
        "launcher": {"processes": 1, "threads": 1},
    }
    run = RunConfig.model_validate({**settings, **keys})
    width = run.sequence_len if size > 64 else 64
    store = Store(folder / "store", FileDigests(folder / "digests.sqlite"))
    rows = random_rows([width] * 8)
    processes = int(run.launcher.processes)
    work = folder / "work"
    work.mkdir()
    job = Job(
        key="bench",
        run=run,
        tokens=write_tokens(store, rows, folder / "base").folder,
        packs=write_packs(store, packs_of([[row] for row in range(8)], rows), packs_of([], rows)).folder,
        model=folder / "base",
        model_name="base",
        model_commit=None,
        work=work,
        precision="bf16" if run.bf16 else "fp32",
        tf32=False,
        world_size=processes,
    )
    WorkFolder(work).job.write_text(job.model_dump_json())
    return job


def _estimate(job: Job) -> dict[str, float]:
    shape = model_shape(job.model)
    step = Pass(job.precision, "cpu", rows=job.run.sequences_per_pass, width=job.run.sequence_len)
    memory = estimate(job.run, shape, step, job.world_size)
    return {name: size / 2**20 for name, size in memory.parts.items()}


def peak(job: Job, program: tuple[str, ...] = TRAIN) -> float:
    """Return the most memory that a training process has after its first step, MiB."""
    port = PORT + os.getpid() % 1000
    processes = [_start(job, rank, program, port=port) for rank in range(job.world_size)]
    most = 0.0
    try:
        while all(process.poll() is None for process in processes):
            steps = _steps(job)
            if steps >= 3:
                return most
            if steps >= 1:
                most = max([most, *(_resident(process.pid) for process in processes)])
            time.sleep(SAMPLED_EVERY)
        raise SystemExit(f"the training ended early: {WorkFolder(job.work).log.read_text()[-2000:]}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(job: Job, rank: int, program: tuple[str, ...], *, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.world_size),
        "LOCAL_WORLD_SIZE": str(job.world_size),
        AGENT: str(os.getpid()),
    }
    return subprocess.Popen([sys.executable, *program, str(WorkFolder(job.work).job)], env=environment)


def _steps(job: Job) -> int:
    log = WorkFolder(job.work).metrics
    return log.read_bytes().count(b'"loss"') if log.exists() else 0


def _resident(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
