"""merge: what it writes computes what base + adapter compute, and stands alone in plain transformers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import RunConfig
from stages import merge
from stages.artifacts import Artifact, FileDigests, Store, sha256_file
from stages.errors import StageError, TransientError
from stages.merge import check, stream, worker
from stages.merge.worker import Job
from stages.stage import Context, run_stage
from tests.tiny import build_model

# peft asks transformers for a property by its old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def context_for(base: Path, folder: Path, log: Callable[[str], None] = lambda line: None) -> Context:
    run = RunConfig.model_validate(
        {
            "base_model": str(base),
            "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-4,
        }
    )
    return Context(run, FileDigests(folder / "digests.sqlite"), log=log)


def train_adapter(base: Path, folder: Path, *, tokens: tuple[str, ...] = (), **options: Any) -> Path:
    """Write an adapter with large random weights, and the tokenizer, as the train stage leaves them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        model.resize_token_embeddings(len(tokenizer))
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings(action="ignore"):  # of peft, about saved embeddings and tied tables
        adapted = get_peft_model(model, LoraConfig(**{**settings, **options}))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def merge_here(
    base: Path, adapter: Path, output: Path, dtype: str = "float32", bits: dict[str, Any] | None = None
) -> Path:
    """Merge in this process, which has the libraries loaded already, and return the model's folder."""
    worker.merge(Job(base, adapter, output, output / "result.json", dtype, dtype, bits, trust_remote_code=False))
    return output


def trained(store: Store, model: Path, *, base: Path | None = None) -> Artifact:
    """Put a model folder into the store as the train stage does: an adapter of `base`, else a full model."""
    facts: dict[str, Any] = {"kind": "model" if base is None else "adapter", "precision": "fp32", "quantization": None}
    if base is not None:
        names = sorted(path.name for path in base.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
        facts["base_model"] = {"files": {name: sha256_file(base / name) for name in names}}
    with store.writer("train", {"made from": str(model)}, {}) as writer:
        for path in sorted(path for path in model.rglob("*") if path.is_file()):
            writer.take(path, f"model/{path.relative_to(model).as_posix()}")
        return writer.commit(facts=facts)


def run_merge(base: Path, store: Store, train: Artifact) -> Artifact:
    return run_stage(merge.STAGE, context_for(base, store.root), {"train": train}, store).artifact


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits.float()


def lora_by_hand(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Return W + (alpha / r) B A for every adapted weight: the definition, without peft."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights, parts = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    for name in weights:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in parts:
            product = parts[f"{stem}.lora_B.weight"].double() @ parts[f"{stem}.lora_A.weight"].double()
            weights[name] = weights[name].double() + scale * product
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_the_base_plus_the_scaled_product(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    adapter = train_adapter(base, tmp_path / "adapter")
    folder = merge_here(base, adapter, tmp_path / "merged", str(dtype).removeprefix("torch."))

    weights, by_hand = load_file(folder / "model.safetensors"), lora_by_hand(base, adapter)
    assert weights.keys() == by_hand.keys()
    for name, expected in by_hand.items():
        assert weights[name].dtype == dtype
        bound = 1e-6 if dtype == torch.float32 else 2.5 * 2**-9 * float(expected.abs().max())
        torch.testing.assert_close(weights[name].double(), expected.double(), rtol=0, atol=bound)


def test_the_merged_artifact_stands_alone(base: Path, store: Store, tmp_path: Path) -> None:
    adapter = train_adapter(base, tmp_path / "adapter")
    said: list[str] = []
    previous = os.umask(0o027)
    try:
        context = context_for(base, store.root, said.append)
        merged = run_stage(merge.STAGE, context, {"train": trained(store, adapter, base=base)}, store).artifact
    finally:
        os.umask(previous)
    folder = merged.path("model")
    ids = torch.arange(3, 35).reshape(2, 16)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    torch.testing.assert_close(logits(model, ids), logits(adapted, ids), rtol=1e-4, atol=1e-4)
    distance = (logits(model, ids) - logits(AutoModelForCausalLM.from_pretrained(base), ids)).abs().max()
    assert distance > 0.1  # the adapter is in it

    chat = [{"role": "user", "content": "hello"}]
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(folder)
    assert after.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)
    assert model.generation_config.eos_token_id == after.eos_token_id
    assert not list(folder.glob("adapter*"))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}  # what the umask asks for
    assert merged.facts == {"kind": "adapter", "dtype": "float32", "parameters": model.num_parameters()}
    measured = json.loads(merged.path("merge.json").read_text())
    assert measured["differences"]["logits"] < measured["bounds"]["logits"]
    assert any("logits differ from base + adapter by" in line for line in said)

    again = merge_here(base, adapter, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_new_tokens_arrive_with_their_embeddings(base: Path, tmp_path: Path) -> None:
    saved = ["embed_tokens", "lm_head"]
    adapter = train_adapter(base, tmp_path / "adapter", tokens=("<|one|>",), modules_to_save=saved)
    folder = merge_here(base, adapter, tmp_path / "merged")

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    (token,) = tokenizer("<|one|>", add_special_tokens=False)["input_ids"]
    parts = load_file(adapter / "adapter_model.safetensors")
    assert model.get_input_embeddings().weight.shape[0] == token + 1 == len(tokenizer)
    for table, name in ((model.get_input_embeddings(), "model.embed_tokens"), (model.lm_head, "lm_head")):
        torch.testing.assert_close(table.weight.detach(), parts[f"base_model.model.{name}.weight"])


def test_a_tied_base_with_two_trained_tables_is_untied(tmp_path: Path) -> None:
    base = build_model(tmp_path / "tied", tie_word_embeddings=True)
    adapter = train_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    folder = merge_here(base, adapter, tmp_path / "merged")

    model = AutoModelForCausalLM.from_pretrained(folder)
    parts = load_file(adapter / "adapter_model.safetensors")
    torch.testing.assert_close(model.lm_head.weight.detach(), parts["base_model.model.lm_head.weight"])
    base_table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), base_table)


def test_a_stop_token_of_the_tokenizer_joins_those_of_the_base(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base")
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 0}))
    folder = merge_here(base, train_adapter(base, tmp_path / "adapter"), tmp_path / "merged")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_new_tokens_without_embeddings_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = train_adapter(base, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|one|>"]})
    tokenizer.save_pretrained(adapter)
    with pytest.raises(StageError, match="lora_modules_to_save"):
        merge_here(base, adapter, tmp_path / "merged")


def test_an_adapter_of_another_model_is_refused(base: Path, store: Store, tmp_path: Path) -> None:
    adapter = train_adapter(build_model(tmp_path / "deeper", num_hidden_layers=3), tmp_path / "adapter")
    with pytest.raises(StageError, match="does not fit the base model"):
        run_merge(base, store, trained(store, adapter, base=base))
    assert list(store.artifacts("merge")) == []


def test_a_full_model_is_linked_not_copied(base: Path, store: Store) -> None:
    train = trained(store, base)
    merged = run_merge(base, store, train)
    assert merged.path("model/model.safetensors").samefile(train.path("model/model.safetensors"))
    assert {entry.path for entry in merged.manifest.files} == {entry.path for entry in train.manifest.files}


def test_the_key_knows_the_base_that_was_trained_and_not_the_output(base: Path, store: Store, tmp_path: Path) -> None:
    adapter, other = train_adapter(base, tmp_path / "adapter"), build_model(tmp_path / "other", seed=1)
    train = {"train": trained(store, adapter, base=base)}
    context = context_for(base, tmp_path)
    first = merge.STAGE.key_inputs(context, train)
    moved = context.run.model_copy(update={"output_dir": "elsewhere"})
    assert merge.STAGE.key_inputs(Context(moved, context.digests), train) == first
    on_other = {"train": trained(Store(tmp_path / "second", context.digests), adapter, base=other)}
    assert merge.STAGE.key_inputs(context, on_other)["base_model"] != first["base_model"]


def test_a_base_that_changed_after_training_is_refused(store: Store, tmp_path: Path) -> None:
    base = build_model(tmp_path / "base")
    train = trained(store, train_adapter(base, tmp_path / "adapter"), base=base)
    build_model(base, seed=1)
    with pytest.raises(StageError, match="changed after the adapter was trained"):
        run_merge(base, store, train)


PARENT = """
import sys
from pathlib import Path
from configs import RunConfig
from stages import merge
from stages.artifacts import FileDigests, Store
from stages.stage import Context, run_stage

store = Store(Path(sys.argv[1]))
context = Context(RunConfig.model_validate_json(sys.argv[2]), FileDigests(store.root / "digests.sqlite"))
run_stage(merge.STAGE, context, {"train": next(store.artifacts("train"))}, store)
"""


def test_nothing_survives_a_killed_parent(base: Path, store: Store, tmp_path: Path) -> None:
    train = trained(store, train_adapter(base, tmp_path / "adapter"), base=base)
    run = context_for(base, store.root).run.model_dump_json(exclude_unset=True)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(store.root), run])
    worker = wait_for(lambda: next(iter(psutil.Process(parent.pid).children()), None))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE or None)
    assert list(store.artifacts("merge")) == []
    assert run_merge(base, store, train).damaged(sha256_file) == []


def merging() -> list[psutil.Process]:
    """Return the merging processes below this one; a test session has other children too."""
    below = psutil.Process().children()
    return [p for p in below if p.status() != psutil.STATUS_ZOMBIE and "stages.merge.worker" in p.cmdline()]


def test_a_killed_worker_can_be_tried_again_and_says_memory(base: Path, store: Store, tmp_path: Path) -> None:
    train = trained(store, train_adapter(base, tmp_path / "adapter"), base=base)

    def kill_worker() -> None:
        wait_for(lambda: next(iter(merging()), None)).kill()

    thread = threading.Thread(target=kill_worker)
    thread.start()
    with pytest.raises(TransientError, match="memory"):
        run_merge(base, store, train)
    thread.join()


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ("nothing", None),
        ("one layer without its adapter", "mlp.down_proj differs"),
        ("another norm", "logits differ"),
        ("another shape", "other tensors"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_went_wrong_is_not_kept(
    base: Path, tmp_path: Path, dtype: str, planted: str, complaint: str | None
) -> None:
    adapter = train_adapter(base, tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    before = model.model.layers[1].mlp.down_proj.weight.detach().clone()
    shapes = check.shapes_of(model)
    adapted = PeftModel.from_pretrained(model, adapter)
    expected = check.fingerprint(adapted, shapes, check.probe_rows(400))
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        match planted:
            case "one layer without its adapter":
                merged.model.layers[1].mlp.down_proj.weight.copy_(before)
            case "another norm":
                merged.model.norm.weight.mul_(1.2)
            case "another shape":
                merged.lm_head = torch.nn.Linear(64, 409, bias=False)
    if complaint is None:
        difference = check.compare(merged, expected, dtype)
        assert difference.rounding < (1e-5 if dtype == "float32" else 0.02)
    else:
        with pytest.raises(StageError, match=complaint):
            check.compare(merged, expected, dtype)


def wait_for(found: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value is not None:
            return value
        time.sleep(0.02)
    raise AssertionError(f"nothing after {seconds} s")


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_file_by_file_is_as_in_memory(tmp_path: Path, options: dict[str, Any], tied: bool) -> None:
    small = build_model(tmp_path / "base", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(small)
    model.save_pretrained(small, max_shard_size="200KB")
    (small / "model.safetensors").unlink()  # several files now, with an index
    adapter = train_adapter(small, tmp_path / "adapter", **options)
    jobs = [Job(small, adapter, tmp_path / name, tmp_path / "r", "float32", "float32", None, False) for name in "ab"]
    assert stream.can_stream(small, adapter, 300)
    with torch.inference_mode():
        found = worker.merge_by_layer(jobs[0], AutoTokenizer.from_pretrained(adapter))
        whole = worker.merge_whole(jobs[1], AutoTokenizer.from_pretrained(adapter))
    assert found["parameters"] == whole["parameters"]
    assert {p.name for p in jobs[0].output.glob("*.safetensors")} == {p.name for p in small.glob("*.safetensors")}
    a, b = (AutoModelForCausalLM.from_pretrained(job.output).state_dict() for job in jobs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (jobs[0].output / name).read_bytes() == (jobs[1].output / name).read_bytes(), name


def test_what_is_more_than_low_rank_layers_is_merged_in_memory(base: Path, tmp_path: Path) -> None:
    saved = train_adapter(base, tmp_path / "saved", modules_to_save=["lm_head"], target_modules=["q_proj"])
    assert not stream.can_stream(base, saved, 300)
    assert not stream.can_stream(base, train_adapter(base, tmp_path / "plain"), 10_000)  # a grown vocabulary


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("more", [{}, {"llm_int8_skip_modules": ["q_proj", "c_attn"]}], ids=["usual", "some kept"])
def test_weights_are_rounded_where_transformers_quantised_them(
    tmp_path: Path, kind: str, bits: str, more: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    folder = build_model(tmp_path / "base")
    if kind == "gpt2":  # its layers are Conv1D
        sizes = {"vocab_size": 300, "n_embd": 64, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
        folder = tmp_path / "gpt2"
        GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    arguments: dict[str, Any] = {bits: True, **more}
    files, model = stream.WeightFiles(folder), stream.empty_model(folder, torch.float32)
    kinds = {"trained": torch.float32, "merged": torch.float32}
    read = stream.as_trained(model, files.read, **kinds, quantization=arguments)
    config = BitsAndBytesConfig(**arguments)
    trained = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).dequantize()
    rounded = set()
    for name in files.place:
        owner, _, own = name.rpartition(".")
        expected = trained.get_submodule(owner).get_parameter(own)
        if isinstance(model.get_submodule(owner), Conv1D) and type(trained.get_submodule(owner)) is torch.nn.Linear:
            expected = expected if own == "bias" else expected.T
        torch.testing.assert_close(read(name), expected.detach(), atol=1e-6, rtol=0)
        rounded |= {owner.rpartition(".")[2]} if not torch.equal(read(name), files.read(name)) else set()
    assert rounded
    assert rounded.isdisjoint(("q_proj", "c_attn")) == bool(more)
