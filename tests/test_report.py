"""report: the numbers of the artifacts and the curves of metrics.jsonl, on one page that needs nothing else."""

from __future__ import annotations

import doctest
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs import RunConfig
from stages.artifacts import Artifact, Store
from stages.report import curves, page
from stages.report.curves import Series, draw, nice_ticks, number, thin
from stages.report.page import judge, write_report

STEPS = 40
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json")
FULL = ("model.safetensors", "tokenizer.json")
COUNTS = {"sequences": 120, "rows": 480, "tokens": 57_600, "trained_tokens": 14_400, "efficiency": 0.9375}
MERGED = {"dtype": "float32", "differences": {"logits": 2e-6}, "bounds": {"logits": 1e-4}}


def metrics(losses: list[float | None], held_out: dict[int, float]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, 1):
        record = {"step": step, "epoch": step / STEPS, "loss": loss, "grad_norm": 1.5, "learning_rate": 2e-4 / step}
        records.append(record | {"tokens_per_second": 900.0 + step, "trained_tokens": 90, "seconds": 1.0})
        records[-1]["memory_bytes"] = 3 * 2**30
        if step in held_out:
            records.append({"step": step, "epoch": step / STEPS, "eval_loss": held_out[step]})
    return records


def falling(steps: int = STEPS) -> list[float | None]:
    return [4.5 * 0.93**step + 0.1 for step in range(steps)]


def run_config(**keys: Any) -> RunConfig:
    values = {
        "base_model": "models/tiny",
        "datasets": [{"path": "data/chats.jsonl", "type": "chat_template"}],
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "adapter": "lora",
        "lora_target_linear": True,
        "output_dir": "./out",
    }
    return RunConfig.model_validate(values | keys)


def facts(kind: str = "adapter") -> dict[str, dict[str, Any]]:
    dataset = {"path": "data/chats.jsonl", "rows_read": 505, "rows_written": 500, "rejected": {"not_json": 5}}
    dataset |= {"tokens": 60_000, "trained_tokens": 15_000}
    counted = {"rows_read": 505, "rows_written": 500, "rejected": {"not_json": 5}, "tokens": 60_000}
    train = {
        "kind": kind,
        "precision": "fp32",
        "steps": STEPS,
        "steps_per_epoch": 20,
        "epochs": 2.0,
        "world_size": 1,
        "waiting": None,
    }
    train |= {"first_loss": 4.6, "final_loss": 0.35, "eval_loss": 0.4, "trained_tokens_seen": 28_800}
    packed = {"sequence_len": 512, "train": COUNTS, "eval": COUNTS | {"sequences": 0, "rows": 0, "tokens": 0}}
    return {
        "fetch": {"datasets": []},
        "tokenize": counted | {"trained_tokens": 15_000, "datasets": [dataset]},
        "pack": packed | {"rejected": {"too_long": 20, "too_short": 0, "nothing_trained": 0}},
        "train": train | {"base_model": {"files": {}}, "losses_digest": "0" * 64},
        "merge": {"kind": kind},
        "publish": {"to": "out/merged", "files": 6, "bytes": 1_234_567, "model": "1" * 64},
    }


def make_artifacts(
    store: Store,
    records: list[dict[str, Any]],
    *,
    kind: str = "adapter",
    seed: int = 0,
    files: dict[str, str] | None = None,
) -> dict[str, Artifact]:
    artifacts: dict[str, Artifact] = {}
    for stage, stated in facts(kind).items():
        with store.writer(stage, {"stage": stage, "seed": seed}, {}) as writer:
            if stage == "train":
                names = (
                    ["adapter_model.safetensors", "adapter_config.json"] if kind == "adapter" else ["model.safetensors"]
                )
                for name in [*names, "tokenizer.json"]:
                    writer.write(f"model/{name}", f"{name} {seed}".encode())
                lines = "".join(json.dumps(record) + "\n" for record in records)
                writer.write("metrics.jsonl", lines.encode(), volatile=True)
                writer.write("train.log", b"step 1\n", volatile=True)
                for name, content in (files or {}).items():
                    writer.write(name, content.encode(), volatile=True)
            else:
                writer.write("merge.json", json.dumps(MERGED).encode(), volatile=True)
                writer.write("model/model.safetensors" if stage == "merge" else "rows", stage.encode())
            artifacts[stage] = writer.commit(facts=stated, volatile={"seconds": 61.5})
    return artifacts


class Page(HTMLParser):
    """The text of a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.text = ""
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data

    def has(self, *words: str) -> None:
        text = " ".join(self.text.split())
        for word in words:
            assert word in text, word


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_the_page_says_what_happened(store: Store, tmp_path: Path) -> None:
    artifacts = make_artifacts(store, metrics(falling(), {20: 1.4, 40: 0.5}))
    page = Page(write_report(tmp_path, run_config(), artifacts))
    page.has("tiny", "LoRA adapter", "The loss fell from", "Held-out loss at the end: 0.5.")
    page.has("505", "60,000 tokens", "25.0 %", "93.8 % of 512 tokens filled", "not json", "too long", "28,800")
    page.has("float32", "logits 2e-6 off base + adapter, 1e-4 allowed")
    page.has("3.00 GiB", "1 min 2 s", "out/merged", "1,234,567 bytes", "sft run ./out/sft-run.yaml")
    for artifact in artifacts.values():
        page.has(artifact.key, artifact.digest)


def test_the_page_is_complete_in_itself(store: Store, tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, run_config(), make_artifacts(store, metrics(falling(), {40: 0.5}))))
    assert page.links == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", page.source)
    assert page.tags.count("svg") == 5


def test_the_configuration_on_the_page_is_the_run(store: Store, tmp_path: Path) -> None:
    run = run_config(val_set_size=0.1, publish="s3://bucket/model")
    page = Page(write_report(tmp_path, run, make_artifacts(store, metrics(falling(), {}))))
    text = page.text[page.text.index("base_model: ") : page.text.index("Lineage")]
    assert RunConfig.model_validate(yaml.safe_load(text)) == run


def test_text_of_the_user_is_text(store: Store, tmp_path: Path) -> None:
    run = run_config(base_model="<script>alert(1)</script>", output_dir="a&b")
    page = Page(write_report(tmp_path, run, make_artifacts(store, metrics(falling(), {}))))
    assert "script" not in page.tags
    page.has("<script>alert(1)</script>", "sft run 'a&b/sft-run.yaml'")


def test_secrets_in_addresses_are_not_on_the_page(store: Store, tmp_path: Path) -> None:
    data = {"path": "https://me:planted@host/a.jsonl?X-Amz-Signature=planted", "type": "alpaca"}
    run = run_config(base_model="s3://me:planted@bucket/base", datasets=[data], publish="s3://me:planted@bucket/out")
    page = write_report(tmp_path, run, make_artifacts(store, metrics(falling(), {}))).read_text()
    assert "host/a.jsonl" in page
    assert "planted" not in page


def test_a_curve_passes_through_its_values(store: Store, tmp_path: Path) -> None:
    """Read the drawn path back through the drawn axis labels: they must give the losses that were logged."""
    losses = falling()
    page = write_report(tmp_path, run_config(), make_artifacts(store, metrics(losses, {})))
    svg = re.search(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    assert svg
    tree = ElementTree.fromstring(svg.group())  # noqa: S314 - our own page
    texts = [(float(t.attrib["x"]), float(t.attrib["y"]) - 4, t.text or "") for t in tree.iter("text")]
    labels = [(y, float(text)) for x, y, text in texts if x < 60 and text != "step"]
    (y0, v0), (y1, v1) = labels[0], labels[-1]
    path = next(tree.iter("path")).attrib["d"]
    drawn = [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]
    assert len(drawn) == STEPS
    for (_, y), loss in zip(drawn, losses, strict=True):
        assert v0 + (y - y0) * (v1 - v0) / (y1 - y0) == pytest.approx(loss, abs=0.02)


@pytest.mark.parametrize(
    ("losses", "held_out", "tone", "said"),
    [
        (falling(), {}, "good", "fell from"),
        (falling(), {10: 1.0, 40: 0.4}, "good", "Held-out loss at the end: 0.4."),
        (falling(), {10: 1.0, 20: 0.5, 40: 0.9}, "good", "lowest at step 20 (0.5) and has risen to 0.9"),
        (falling(), {10: 1.0, 40: 2.0}, "bad", "began to memorise"),
        ([2.0] * 40, {}, "open", "hardly changed"),
        ([2.0 + 0.04 * step for step in range(40)], {}, "bad", "rose from"),
        ([2.0, 1.0, None, 0.5], {}, "bad", "not a finite number at step 3"),
        ([2.0], {}, "open", "Too few steps"),
        ([], {}, "open", "Too few steps"),
    ],
)
def test_the_verdict_is_honest(losses: list[Any], held_out: dict[int, float], tone: str, said: str) -> None:
    verdict = judge(metrics(losses, held_out))
    assert verdict.tone == tone
    assert said in f"{verdict.headline} {verdict.detail}"


def test_one_noisy_last_step_does_not_turn_the_verdict() -> None:
    assert judge(metrics([*falling()[:-1], 4.4], {})).headline.startswith("The loss fell")


@pytest.mark.parametrize("losses", [[], [2.0], [None, None], [2.0, None, 1.0], [0.0, 0.0], [-1.0, 5.0]])
def test_any_metrics_make_a_page(store: Store, tmp_path: Path, losses: list[float | None]) -> None:
    Page(write_report(tmp_path, run_config(), make_artifacts(store, metrics(losses, {}))))


def test_a_value_that_is_no_number_breaks_the_line_and_is_marked() -> None:
    chart = draw("Loss", [Series("training", [(1, 2.0), (2, 1.5), (3, math.nan), (4, 1.0), (5, 0.5)])])
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2
    assert len(chart.broken) == 1


finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=3000), st.integers(10, 600))
def test_thinning_keeps_order_extremes_and_few_points(values: list[float], most: int) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    kept = thin(points, most)
    assert len(kept) <= max(most + 2, 0)
    assert kept == sorted(set(kept) & set(points))
    assert {min(values), max(values)} <= {value for _, value in kept}


@given(finite, finite, st.integers(1, 8))
def test_ticks_enclose_the_values_and_are_few(one: float, other: float, intervals: int) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high, intervals)
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= intervals + 3
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (2e-5, "2e-5"),
        (1.25e-4, "1.25e-4"),
        (999.95, "1000"),
        (12345.6, "12,346"),
        (math.inf, "infinite"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("module", [page, curves])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def found(row: str, status: str) -> dict[str, Any]:
    remedy = "" if status == "healthy" else "Do this."
    return {
        "row": row,
        "status": status,
        "sign": "x",
        "step": 3,
        "value": 1.0,
        "expected": "low",
        "text": "Seen <b>.",
        "remedy": remedy,
    }


@pytest.mark.parametrize(
    ("statuses", "tone", "said"),
    [
        (["healthy", "healthy"], "good", "The loss fell"),
        (["watch", "healthy"], "open", "unusual: train loss"),
        (["watch", "sick"], "bad", "ill: eval loss"),
    ],
)
def test_what_the_monitor_found_turns_the_verdict(
    store: Store, tmp_path: Path, statuses: list[str], tone: str, said: str
) -> None:
    rows = [found(name, status) for name, status in zip(["train_loss", "eval_loss"], statuses, strict=True)]
    files = {"health.json": json.dumps({"status": "x", "rows": rows})}
    page = Page(write_report(tmp_path, run_config(), make_artifacts(store, metrics(falling(), {}), files=files)))
    assert f'verdict {tone}"' in page.source
    assert said in page.text
    assert page.text.count("Seen <b>.") >= 2  # a text, not a tag
    assert ("Do this." in page.text) is (tone != "good")


def test_samples_before_and_after_stand_side_by_side(store: Store, tmp_path: Path) -> None:
    answers = [(0, "base says"), (20, "half way"), (40, "now says")]
    lines = [
        {"step": step, "dataset": 0, "row": 7, "prompt": "Where is <X>?", "expected": "There.", "text": text}
        for step, text in answers
    ]
    files = {"samples.jsonl": "".join(json.dumps(line) + "\n" for line in lines)}
    page = Page(write_report(tmp_path, run_config(), make_artifacts(store, metrics(falling(), {}), files=files)))
    assert all(text in page.text for text in ("Where is <X>?", "There.", "base says", "now says"))
    assert "half way" not in page.text
