"""What would go wrong in a run is found before it starts: a good file is quiet, a planted fault says its sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from configs.load import load_run
from stages.outlook import Outlook, look_ahead
from stages.preflight import Finding
from stages.preflight.advice import RANGES
from stages.train.machine import Machine
from stages.train.rules import problems_by_check
from tests.hub_endpoint import serving

LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "chat_template": "{{ messages }}",
    "eos_token": "<|eot|>",
    "pad_token": "<|pad|>",
}
GOOD: dict[str, Any] = {
    "base_model": "base",
    "datasets": [{"path": "data.jsonl", "type": "chat_template"}],
    "sequence_len": 4096,
    "sample_packing": True,
    "val_set_size": 0.05,
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": ["q_proj", "v_proj"],
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 2,
    "learning_rate": 2e-4,
    "evals_per_epoch": 2,
    "gradient_checkpointing": True,
    "output_dir": "out",
    "artifact_store": "store",
}
FULL = {"adapter": None, "learning_rate": 2e-5, "micro_batch_size": 1}
QLORA = {"adapter": "qlora", "load_in_4bit": True}
LARGE = {**LLAMA, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80}


@dataclass
class Desk:
    """A user's folder: the configuration of a model, its tokenizer's files, data, run.yaml."""

    folder: Path

    def write(self, model: dict[str, Any] | None = None, tokenizer: dict[str, Any] | None = None) -> None:
        base = self.folder / "base"
        base.mkdir(exist_ok=True)
        (base / "config.json").write_bytes(orjson.dumps(model or LLAMA))
        (base / "tokenizer_config.json").write_bytes(orjson.dumps(TOKENIZER if tokenizer is None else tokenizer))
        words = {"w7": 7}  # the added tokens' numbers say how many there are
        added = [{"id": 128_000, "content": "<|eot|>"}, {"id": 128_001, "content": "<|pad|>"}]
        (base / "tokenizer.json").write_bytes(orjson.dumps({"model": {"vocab": words}, "added_tokens": added}))
        (self.folder / "data.jsonl").write_text('{"messages": []}\n')

    def outlook(self, *, gpu: str | None = "h100", finished: tuple[str, ...] = (), **keys: Any) -> Outlook:
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump({**GOOD, **keys}))
        return look_ahead(load_run(path), gpu=gpu, finished=finished)

    def one(self, level: str, **keys: Any) -> Finding:
        """Return the only error (or warning) that there is."""
        [finding] = self.outlook(**keys).at(level)
        return finding


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    made = Desk(tmp_path)
    made.write()
    return made


@pytest.mark.parametrize(
    "keys",
    [
        {},
        FULL,
        QLORA,
        {"fsdp_config": {}, "launcher": {"processes": 8}},
        {"attn_implementation": "flash_attention_2", "bf16": True},
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        {"lora_target_modules": ["q_proj", "gate_proj", "embed_tokens"]},
        {"lora_target_modules": [r".*self_attn\.(q|k|v|o)_proj"]},
        {"special_tokens": {"pad_token": "<|pad|>"}},
        {"special_tokens": {"pad_token": "w7", "additional_special_tokens": ["<new>"]}},  # rows to spare
        {"datasets": [{"path": "data.jsonl", "type": "alpaca"}]},
    ],
    ids=str,
)
def test_a_good_run_is_quiet(desk: Desk, keys: dict[str, Any]) -> None:
    outlook = desk.outlook(**keys)
    assert [str(finding) for finding in outlook.at("error", "warning")] == []
    assert outlook.fit is not None
    assert outlook.fit.fits


ZERO_2: dict[str, Any] = {"deepspeed": {"zero_optimization": {"stage": 2}}}
ZERO_3: dict[str, Any] = {"deepspeed": {"zero_optimization": {"stage": 3}}}
MANY_TOKENS = {"additional_special_tokens": [f"<{number}>" for number in range(300)]}
FAULTS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    # check, key, part of the rule, part of the remedy, keys
    (
        "attention-cannot-isolate",
        "attn_implementation",
        "does not keep packed samples apart",
        "attn_implementation: sdpa",
        {"attn_implementation": "paged_attention"},
    ),
    (
        "optimizer-cannot-be-sharded",
        "optimizer",
        "FSDP2 cannot shard",
        "optimizer: adamw_torch_fused",
        {"fsdp_config": {}, "optimizer": "adamw_8bit"},
    ),
    ("quantised-cannot-be-sharded", "load_in_4bit", "ZeRO-3", "fsdp_config", {**QLORA, **ZERO_3}),
    (
        "deepspeed-settings",
        "deepspeed",
        "stage is 1, 2 or 3",
        "stage: 2",
        {"deepspeed": {"zero_optimization": {"stage": 0}}},
    ),
    (
        "deepspeed-not-reentrant",
        "gradient_checkpointing_kwargs",
        "CheckpointError",
        "use_reentrant: true",
        {**ZERO_2, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    ("optimizer-or-schedule", "optimizer", "known are", "Use one of them", {"optimizer": "adamwx"}),
    (
        "target-matches-nothing",
        "lora_target_modules",
        "no such layer; its linear layers are down_proj",
        "lora_target_linear: true",
        {"lora_target_modules": ["query_key_value"]},
    ),
    (
        "new-tokens-not-trained",
        "lora_modules_to_save",
        "grows from 128,256 to 128,302",
        "lora_modules_to_save: [embed_tokens, lm_head]",
        {"special_tokens": MANY_TOKENS},
    ),
    ("unknown-chat-template", "chat_template", "not a known chat template", "Known: ", {"chat_template": "chatmll"}),
    ("bf16-missing", "bf16", "has no bfloat16", "bf16: auto", {"gpu": "t4", "bf16": True, "micro_batch_size": 2}),
    (
        "flash-attention-missing",
        "attn_implementation",
        "Ampere",
        "attn_implementation: sdpa",
        {"gpu": "t4", "attn_implementation": "flash_attention_2"},
    ),
    ("too-few-gpus", "launcher.processes", "2 GPU(s)", "auto", {"gpu": "2xh100", "launcher": {"processes": 4}}),
    (
        "copies-and-processes",
        "dp_shard_size",
        "for 3 processes, not 4",
        "launcher.processes",
        {"gpu": "4xh100", "fsdp_config": {}, "dp_shard_size": 3},
    ),
    (
        "nothing-to-speed-up",
        "experts_implementation",
        "no experts",
        "Remove it",
        {"level": "note", "experts_implementation": "grouped_mm"},
    ),
    (
        "nothing-to-speed-up",
        "lora_mlp_kernel",
        "without lora_dropout",
        "lora_dropout: 0",
        {"level": "note", "lora_mlp_kernel": True, "lora_dropout": 0.1},
    ),
    (
        "kernels-in-shards",
        "lora_o_kernel",
        "ZeRO-3",
        "ZeRO-2",
        {"lora_o_kernel": True, "deepspeed": {"zero_optimization": {"stage": 3}}, "launcher": {"processes": 1}},
    ),
    (
        "does-not-fit",
        "micro_batch_size",
        "GiB are needed on each t4, which has 14.6",
        "gradient_checkpointing: true",
        {"gpu": "t4", "level": "warning", "gradient_checkpointing": False, "micro_batch_size": 8},
    ),
    (
        "no-evaluation-set",
        "evals_per_epoch",
        "no evaluation set",
        "val_set_size: 0.05",
        {"level": "warning", "val_set_size": 0},
    ),
    (
        "sequence-over-positions",
        "sequence_len",
        "trained on 8,192 positions",
        "sequence_len: 8192",
        {"level": "warning", "sequence_len": 16_384, "micro_batch_size": 2},
    ),
]


@pytest.mark.parametrize(("check", "key", "rule", "remedy", "keys"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_found(desk: Desk, check: str, key: str, rule: str, remedy: str, keys: dict[str, Any]) -> None:
    keys = dict(keys)
    finding = desk.one(keys.pop("level", "error"), **keys)
    assert (finding.check, finding.key) == (check, key)
    assert rule in finding.rule
    assert remedy in finding.remedy
    if key in keys:
        lines = (desk.folder / "run.yaml").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if text.startswith(f"{key}:"))
        assert finding.place.endswith(f"run.yaml:{line}:1")
    else:
        assert "run.yaml" in finding.place


def test_new_tokens_count_what_the_model_has_no_row_for(desk: Desk) -> None:
    """128,002 tokens and 300 new ones in a table of 128,256 rows."""
    assert "to 128,302 (<0>, <100>, <101>, <102>)" in desk.one("error", special_tokens=MANY_TOKENS).rule
    fitting = {"additional_special_tokens": MANY_TOKENS["additional_special_tokens"][:254]}
    assert not desk.outlook(special_tokens=fitting).at("error")
    desk.write(model={**LLAMA, "vocab_size": 128_002})
    assert not desk.outlook(special_tokens={"pad_token": "<new>"}).at("error"), "padding needs no training"
    assert desk.one("error", special_tokens={"unk_token": "<new>"}).check == "new-tokens-not-trained"


def test_every_check_is_in_the_documentation(desk: Desk) -> None:
    root = Path(__file__).parent.parent
    sources = [
        *(root / "stages" / "preflight").glob("*.py"),
        root / "stages" / "outlook.py",
        root / "flows/planning.py",
    ]
    desk.outlook()
    names = {name for name, _ in problems_by_check(load_run(desk.folder / "run.yaml").run)}
    for source in sources:
        names |= set(re.findall(r'(?:error|warning|note|refused)\(\s*"([a-z0-9-]+)"', source.read_text()))
    page = (root / "infra" / "docs" / "planning.md").read_text()
    assert len(names) > 20
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("check", "level", "without"),
    [
        ("missing-chat-template", "error", "chat_template"),
        ("missing-eos-token", "error", "eos_token"),
        ("missing-pad-token", "warning", "pad_token"),
    ],
)
def test_what_a_tokenizer_lacks(desk: Desk, check: str, level: str, without: str) -> None:
    desk.write(tokenizer={key: value for key, value in TOKENIZER.items() if key != without})
    finding = desk.one(level)
    assert (finding.check, finding.stage) == (check, "tokenize")
    assert without in finding.key


def test_a_template_of_its_own_is_enough(desk: Desk) -> None:
    desk.write(tokenizer={key: value for key, value in TOKENIZER.items() if key != "chat_template"})
    assert not desk.outlook(chat_template="chatml").at("error")
    assert not desk.outlook(datasets=[{"path": "data.jsonl", "type": "completion"}]).at("error")


def test_a_pad_token_that_is_trained_is_safe_here_and_said(desk: Desk) -> None:
    desk.write(tokenizer={**TOKENIZER, "pad_token": {"content": "<|eot|>"}})
    outlook = desk.outlook()
    assert not outlook.at("error", "warning")
    [note] = outlook.at("note")
    assert note.check == "pad-token-is-trained"


def test_positions_in_a_table_end_for_good(desk: Desk) -> None:
    desk.write(model={**LLAMA, "model_type": "gpt2", "n_positions": 1024, "max_position_embeddings": None})
    finding = desk.one("error", sequence_len=4096)
    assert (finding.check, finding.remedy[:24]) == ("sequence-over-positions", "Set sequence_len: 1024, ")


@pytest.mark.parametrize(
    ("keys", "key"),
    [({**FULL}, "base_model"), (QLORA, "load_in_4bit")],
)
def test_a_base_that_is_quantised_already(desk: Desk, keys: dict[str, Any], key: str) -> None:
    desk.write(model={**LLAMA, "quantization_config": {"quant_method": "gptq"}})
    finding = desk.one("error", **keys)
    assert (finding.check, finding.key) == ("quantised-base", key)


def test_what_only_this_machine_lacks_is_no_fault_of_the_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.outlook.this_machine", lambda: Machine(()))
    outlook = desk.outlook(gpu=None, attn_implementation="flash_attention_2", micro_batch_size=2)
    [finding] = outlook.at("error")
    assert (finding.check, finding.rule) == ("flash-attention-missing", "it needs a GPU, and this machine shows none")
    assert [finding.check for finding in outlook.of_file().at("warning")] == ["flash-attention-missing"]
    assert not outlook.of_file().at("error")
    assert not outlook.until("pack").at("error", "warning")
    assert not desk.outlook(gpu="h100", attn_implementation="flash_attention_2").at("error", "warning")
    [finding] = desk.outlook(gpu=None, attn_implementation="flex_attention").at("error")
    assert finding.check == "flex-attention-on-cpu"
    [finding] = desk.outlook(gpu=None, fp16=True, bf16=False).at("error")
    assert (finding.check, finding.key) == ("fp16-on-cpu", "fp16")


def test_a_missing_login_of_a_tracker_has_its_own_name(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(desk.folder))
    here = desk.outlook(gpu=None, wandb_project="p")
    [finding] = [f for f in here.at("error") if f.key == "wandb_project"]
    assert (finding.check, finding.remedy[:18]) == ("tracker-login-missing", "Set WANDB_API_KEY,")
    assert finding.check in [f.check for f in here.of_file().at("warning")]
    there = desk.outlook(gpu="h100", wandb_project="p")
    assert not there.at("error", "warning")
    assert [f.rule for f in there.at("note")] == ["it needs a login at Weights & Biases there"]


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="it is installed")
def test_flash_attention_is_looked_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.outlook.this_machine", lambda: Machine(((9, 0),)))
    finding = desk.one("error", gpu=None, attn_implementation="flash_attention_2")
    assert "flash-attn, which is not installed" in finding.rule


@pytest.mark.parametrize(
    ("key", "check", "stage"),
    [("artifact_store", "store-not-writable", "fetch"), ("output_dir", "output-not-writable", "train")],
)
def test_a_place_below_a_file_cannot_be_written(desk: Desk, key: str, check: str, stage: str) -> None:
    (desk.folder / "file").write_text("")
    found = [finding for finding in desk.outlook(gpu=None, **{key: "file/below"}).at("error") if finding.key == key]
    assert [(finding.check, finding.stage) for finding in found] == [(check, stage)]
    assert "is a file, so nothing can be written below it" in found[0].rule


def test_a_folder_of_somebody_else_cannot_be_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.preflight.places.os.access", lambda path, mode: False)  # the tests may run as root
    found = desk.outlook(gpu=None, publish="elsewhere").at("error")
    assert {"store-not-writable", "output-not-writable", "publish-target-not-writable"} == {f.check for f in found}
    assert all("this user cannot write in" in finding.rule for finding in found)


def test_a_target_that_keeps_nothing_is_refused(desk: Desk) -> None:
    [finding] = desk.outlook(gpu=None, publish="memory://model").at("error")
    assert (finding.check, finding.stage) == ("publish-target", "publish")


def test_a_push_to_the_hub_needs_a_token(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    found = [f for f in desk.outlook(gpu=None, publish="hf://me/model").at("error") if f.check == "hub-token-missing"]
    assert len(found) == 1
    assert "HF_TOKEN" in found[0].remedy
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    assert "hub-token-missing" not in [f.check for f in desk.outlook(gpu=None, publish="hf://me/model").findings]


def test_too_little_disk_is_an_error_only_where_nothing_fits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(desk.folder)
    monkeypatch.setattr("stages.preflight.places.shutil.disk_usage", lambda path: usage._replace(free=10**9))
    [finding] = desk.outlook(gpu=None, **FULL).at("error")
    assert (finding.check, finding.key) == ("too-little-disk", "artifact_store")
    assert "1.0 GB are free" in finding.rule
    assert not desk.outlook(gpu=None, finished=("train",), **FULL).at("error")
    monkeypatch.setattr("stages.preflight.places.shutil.disk_usage", lambda path: usage._replace(free=40 * 10**9))
    [finding] = [f for f in desk.outlook(gpu=None, **FULL).at("warning") if f.check == "too-little-disk"]
    assert "save_total_limit: 1" in finding.remedy


def outside() -> list[tuple[str, dict[str, Any], str, float, float]]:
    """Each key of each range, with a value below and one above."""
    methods = {"LoRA": {}, "QLoRA": QLORA, "full fine-tuning": FULL}
    cases = []
    for method, ranges in RANGES.items():
        for key, usual in ranges.items():
            for value in (usual.low / 2, usual.high * 2):
                value = value if key in ("learning_rate", "num_epochs") else int(value)
                if value > 0:
                    cases.append((method, {**methods[method], key: value}, key, usual.low, usual.high))
    return cases


@pytest.mark.parametrize(("method", "keys", "key", "low", "high"), outside(), ids=str)
def test_a_value_outside_its_range_is_a_warning(
    desk: Desk, method: str, keys: dict[str, Any], key: str, low: float, high: float
) -> None:
    found = [f for f in desk.outlook(gpu="8xh200", **keys).at("warning") if f.key == key]
    assert [finding.check for finding in found] == ["unusual-value"]
    assert f"usual for {method} is {low:g} to {high:g}" in found[0].rule
    assert f"Set {key}: " in found[0].remedy


WIDE = {**LLAMA, "hidden_size": 8192, "head_dim": 128}
LARGE_BATCH = {"gradient_accumulation_steps": 8, "micro_batch_size": 8, "gpu": "16xh200"}


@pytest.mark.parametrize(
    ("model", "keys", "key", "rule"),
    [
        (LLAMA, {"lora_alpha": 128}, "lora_alpha", "1 to 2 times lora_r (16)"),
        (LLAMA, {"optimizer": "sgd"}, "optimizer", "meant for AdamW"),
        (
            LLAMA,
            LARGE_BATCH,
            "gradient_accumulation_steps",
            "1,024 sequences (micro batch 8 x accumulation 8 x 16 processes)",
        ),
        (WIDE, {**FULL, "gpu": "h200", "bf16": "full"}, "adapter", "takes several GPUs"),
        (LARGE, {"gpu": "8xb200"}, "learning_rate", ""),
        (LARGE, {"learning_rate": 3e-4, "gpu": "8xb200"}, "learning_rate", "larger models take smaller steps"),
        (LARGE, {"gpu": "b200"}, "adapter", "QLoRA is preferred on one GPU"),
    ],
)
def test_advice_on_what_belongs_together(
    desk: Desk, model: dict[str, Any], keys: dict[str, Any], key: str, rule: str
) -> None:
    desk.write(model=model)
    found = [f for f in desk.outlook(**keys).at("warning") if f.key == key and f.check != "does-not-fit"]
    assert len(found) == bool(rule)
    assert all(rule in finding.rule for finding in found)


def test_a_gated_model_without_a_token_is_refused_at_once(tmp_path: Path) -> None:
    """The Hub tells everybody that a gated model is there, and gives its files to those whom it knows."""
    desk = Desk(tmp_path)
    desk.write()
    repository = tmp_path / "hub" / "models" / "lab" / "gated"
    repository.mkdir(parents=True)
    shutil.copytree(tmp_path / "base", repository, dirs_exist_ok=True)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**GOOD, "base_model": "lab/gated"}))
    with serving(tmp_path / "hub") as hub:
        hub.gated = {"lab/gated"}
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = _sft(tmp_path, "validate", "run.yaml", "--json", **environment)
        given = _sft(tmp_path, "validate", "run.yaml", "--json", **environment, HF_TOKEN="hf_secret")
    assert done.returncode == 2, done.stderr
    [problem] = orjson.loads(done.stdout)["problems"]
    assert (problem["check"], problem["key"]) == ("hub-token-missing", "base_model")
    assert "HF_TOKEN" in problem["remedy"]
    assert given.returncode == 0, given.stderr


def _sft(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "flows.cli", *words]
    root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    environment = {**os.environ, **root, **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120)
