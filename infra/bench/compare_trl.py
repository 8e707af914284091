"""Training with this project against TRL's SFTTrainer: same model, rows, labels, length, optimizer; one thread, a CPU.

python infra/bench/compare_trl.py --model FOLDER --python TRL_PYTHON [--length 512] [--steps 6] [--lora]

    ours          `sft run --until train`, packed rows
    trl           SFTTrainer as it comes: one sample a row, padded to the longest of the batch
    trl_packed    SFTTrainer with packing="bfd": on a CPU its samples see each other, so it does less than is right

Every case takes its steps in a process of its own, in turn, `--rounds` times. All train the answers only. Tokens are
those of the samples, without padding; the speed is the median over steps but the first. Memory is the peak of the
training process. Prints one JSON document and a sentence for each case of TRL's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
WORDS = "the model learns to answer what a user asks about numbers rivers cities music code and weather".split()
ROWS = 400
CASES = ("ours", "trl", "trl_packed")

TRL = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

folder, case, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
packed = case == "trl_packed"
arguments = SFTConfig(
    output_dir=folder + "/" + case, use_cpu=True, bf16=False, max_length=options["length"], packing=packed,
    packing_strategy="bfd", max_steps=options["steps"], learning_rate=2e-4, lr_scheduler_type="constant",
    per_device_train_batch_size=options["micro"] if packed else options["samples"], gradient_accumulation_steps=1,
    optim="adamw_torch_fused", gradient_checkpointing=False, save_strategy="no", report_to="none", logging_steps=1,
    completion_only_loss=True, seed=0, disable_tqdm=True, dataloader_num_workers=0, weight_decay=0.0,
)
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if options["lora"] else None
model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32)
rows = load_dataset("json", data_files=folder + "/trl.jsonl", split="train")


class Clock(TrainerCallback):
    tokens, speeds = 0, []

    def on_step_begin(self, *args, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.speeds.append(self.tokens / (time.perf_counter() - self.begun))
        Clock.tokens = 0


class Counting(SFTTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        Clock.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        return super().compute_loss(model, inputs, *args, **kwargs)


clock = Clock()
Counting(model=model, args=arguments, train_dataset=rows, peft_config=lora, callbacks=[clock]).train()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print("FOUND" + json.dumps({"tokens_per_second": clock.speeds[1:], "peak_memory_bytes": peak}))
"""


def main() -> None:
    """Run every case in turn and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small causal language model with a chat template")
    parser.add_argument("--python", required=True, help="the interpreter of an environment with TRL")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro", type=int, default=2, help="packed rows of a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--lora", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean = write_rows(folder, options.length)
        samples = max(1, round(options.micro * options.length / mean))
        found = [
            {case: measure(case, folder, {**vars(options), "samples": samples}) for case in CASES}
            for _ in range(options.rounds)
        ]
    report(options, found)


def report(options: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    """Print all figures, and the two ratios in a sentence."""
    speed = {case: median(s for one in found for s in one[case]["tokens_per_second"]) for case in CASES}
    memory = {case: median(one[case]["peak_memory_bytes"] for one in found) for case in CASES}
    print(json.dumps({"options": vars(options), "tokens_per_second": speed, "peak_memory_bytes": memory}, indent=2))
    for case in CASES[1:]:
        faster, smaller = speed["ours"] / speed[case], memory["ours"] / memory[case]
        print(f"{faster:.2f} times the tokens/s of {case}, with {smaller:.2f} of its memory")


def write_rows(folder: Path, length: int) -> float:
    """Write the same chats for both, of uneven length, and return their mean number of tokens, roughly."""
    draw = random.Random(0)  # the same rows every time
    words = [max(8, int(min(length * 0.8, draw.lognormvariate(4.6, 0.7)))) for _ in range(ROWS)]
    with (folder / "ours.jsonl").open("w") as ours, (folder / "trl.jsonl").open("w") as trl:
        for count in words:
            asked = count // 2
            prompt = [{"role": "user", "content": " ".join(draw.choices(WORDS, k=asked))}]
            answer = [{"role": "assistant", "content": " ".join(draw.choices(WORDS, k=count - asked))}]
            ours.write(json.dumps({"messages": prompt + answer}) + "\n")
            trl.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
    return sum(words) / len(words) + 30  # what the template adds


def measure(case: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return tokens/s of each step and the peak memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    if case == "ours":
        return measure_ours(folder, options, environment)
    command = [options["python"], "-c", TRL, str(folder), case, json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.rpartition("FOUND")[2]))


def measure_ours(folder: Path, options: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Run `sft` on a store of its own, and read its metrics."""
    work = Path(tempfile.mkdtemp(dir=folder))
    adapter = "adapter: lora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\n" if options["lora"] else ""
    (work / "run.yaml").write_text(
        adapter
        + textwrap.dedent(
            f"""
            base_model: {Path(options["model"]).resolve()}
            datasets: [{{path: {folder / "ours.jsonl"}, type: chat_template}}]
            sequence_len: {options["length"]}
            sample_packing: true
            micro_batch_size: {options["micro"]}
            gradient_accumulation_steps: 1
            max_steps: {options["steps"]}
            learning_rate: 0.0002
            lr_scheduler: constant
            warmup_steps: 0
            bf16: false
            logging_steps: 1
            save_strategy: "no"
            launcher: {{processes: 1, threads: 1}}
            output_dir: {work / "out"}
            artifact_store: {work / "store"}
            """
        )
    )
    command = [sys.executable, "-m", "flows.cli", "run", str(work / "run.yaml"), "--until", "train", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"ours failed:\n{done.stderr[-3000:]}")
    [path] = (work / "store").glob("train/*/metrics.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        "tokens_per_second": [record["tokens_per_second"] for record in records if "loss" in record][1:],
        "peak_memory_bytes": max(record["memory_bytes"] for record in records if "loss" in record),
    }


if __name__ == "__main__":
    main()
