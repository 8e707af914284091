"""export: what lies in output_dir is the run's, whole, and is not written again when nothing changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs import RunConfig
from stages.artifacts import Store
from stages.export import export
from tests.test_report import ADAPTER, FULL, falling, make_artifacts, metrics, run_config

RECORDS = metrics(falling(), {40: 0.5})
OURS = {"metrics.jsonl", "train.log", "report.html", "sft-run.yaml", ".sft-export.json"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def inodes_in(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_an_adapter_its_logs_and_its_report(store: Store, tmp_path: Path) -> None:
    artifacts = make_artifacts(store, RECORDS)
    run = run_config(output_dir=str(tmp_path / "out"))
    export(run, artifacts)
    assert names_in(tmp_path / "out") == OURS | {*ADAPTER}
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == artifacts["train"].path(f"model/{name}").read_bytes()
    settings = yaml.safe_load((tmp_path / "out" / "sft-run.yaml").read_text())
    assert RunConfig.model_validate(settings) == run


def test_nothing_is_written_when_nothing_changed(store: Store, tmp_path: Path) -> None:
    artifacts, run = make_artifacts(store, RECORDS), run_config(output_dir=str(tmp_path / "out"))
    export(run, artifacts)
    before = inodes_in(tmp_path / "out")
    export(run, artifacts)
    assert inodes_in(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["gone", "other size", "same size", "new model"])
def test_what_differs_is_written_again(store: Store, tmp_path: Path, damage: str) -> None:
    artifacts, run = make_artifacts(store, RECORDS), run_config(output_dir=str(tmp_path / "out"))
    export(run, artifacts)
    file = tmp_path / "out" / "adapter_model.safetensors"
    untouched = file.with_name("adapter_config.json").stat().st_ino
    match damage:
        case "gone":
            file.unlink()
        case "other size":
            file.write_bytes(b"")
        case "same size":
            file.write_bytes(bytes(file.stat().st_size))
        case "new model":
            artifacts = make_artifacts(store, RECORDS, seed=1)
    export(run, artifacts)
    assert file.read_bytes() == artifacts["train"].path("model/adapter_model.safetensors").read_bytes()
    assert (file.with_name("adapter_config.json").stat().st_ino == untouched) is (damage != "new model")


def test_who_edits_an_exported_file_does_not_edit_the_artifact(store: Store, tmp_path: Path) -> None:
    artifacts = make_artifacts(store, RECORDS)
    export(run_config(output_dir=str(tmp_path / "out")), artifacts)
    with (tmp_path / "out" / "adapter_config.json").open("r+b") as file:
        file.write(b"!")
    assert artifacts["train"].path("model/adapter_config.json").read_bytes().startswith(b"adapter")


def test_a_full_model_is_there_once(store: Store, tmp_path: Path) -> None:
    artifacts = make_artifacts(store, RECORDS, kind="model")
    here = run_config(adapter=None, output_dir=str(tmp_path / "here"))  # publish puts the model itself there
    export(here, artifacts)
    assert names_in(tmp_path / "here") == OURS
    elsewhere = run_config(adapter=None, output_dir=str(tmp_path / "there"), publish="s3://bucket/model")
    export(elsewhere, artifacts)
    assert names_in(tmp_path / "there") == OURS | {*FULL}


def test_without_publishing_a_full_model_is_exported_and_then_left_to_the_publication(
    store: Store, tmp_path: Path
) -> None:
    artifacts = make_artifacts(store, RECORDS, kind="model")
    run = run_config(adapter=None, output_dir=str(tmp_path / "out"))
    export(run, {name: artifact for name, artifact in artifacts.items() if name not in ("merge", "publish")})
    assert "model.safetensors" in names_in(tmp_path / "out")
    export(run, artifacts)
    assert "model.safetensors" in names_in(tmp_path / "out")


def test_what_an_earlier_run_left_goes_and_what_others_left_stays(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run_config(output_dir=str(out)), make_artifacts(store, RECORDS))
    (out / "notes.txt").write_text("by hand")
    (out / "adapter_config.json").write_text("changed by hand")
    full = make_artifacts(Store(tmp_path / "second"), RECORDS, kind="model")
    export(run_config(adapter=None, output_dir=str(out)), full)
    assert names_in(out) == OURS | {"notes.txt", "adapter_config.json"}


def test_without_training_there_is_nothing_to_export(store: Store, tmp_path: Path) -> None:
    artifacts = make_artifacts(store, RECORDS)
    export(run_config(output_dir=str(tmp_path / "out")), {"fetch": artifacts["fetch"]})
    assert not (tmp_path / "out").exists()


def test_a_foreign_record_is_no_order_to_remove(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    status = victim.stat()
    (tmp_path / "out").mkdir()
    entry = f'{{"made_of": "", "size": {status.st_size}, "mtime_ns": {status.st_mtime_ns}}}'
    (tmp_path / "out" / ".sft-export.json").write_text(f'{{"../victim": {entry}, "{victim}": {entry}}}')
    export(run_config(output_dir=str(tmp_path / "out")), make_artifacts(store, RECORDS))
    assert victim.read_text() == "mine"
