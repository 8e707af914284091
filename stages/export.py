"""export: what users of a training tool look for in `output_dir`, from the artifacts, each file whole or not at all.

<output_dir>/adapter_model.safetensors, adapter_config.json, tokenizer files    of an adapter
<output_dir>/model.safetensors, config.json, ...                 of a full model that is published elsewhere
<output_dir>/metrics.jsonl  train.log  report.html  sft-run.yaml
<output_dir>/.sft-export.json        what was put there, so that the next time only a difference is written
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig
from stages.artifacts import Artifact, digest_of
from stages.publish.target import DRAFT, FolderTarget, local_folder
from stages.report.page import REPORT, SETTINGS, settings_of, write_report

RECORD = ".sft-export.json"
MODEL = "model/"
LOGS = ("metrics.jsonl", "train.log", "samples.jsonl", "profiler_trace.json", "snapshot.pickle")


def export(run: RunConfig, artifacts: Mapping[str, Artifact]) -> None:
    """Bring `output_dir` up to the artifacts, which are by stage name; without a training there is nothing to bring.

    A file that an earlier run left there and this one does not have is removed, unless it was changed by hand.
    """
    if "train" not in artifacts:
        return
    folder = Path(run.output_dir).expanduser()
    with FolderTarget(folder).held():
        exported = _Folder(folder)
        for name, (source, sha256) in _files(run, artifacts).items():
            exported.copy(name, source, sha256)
        _write_report(exported, run, artifacts)
        exported.finish(kept=_published_files(run, artifacts, folder))


def _files(run: RunConfig, artifacts: Mapping[str, Artifact]) -> dict[str, tuple[Path, str]]:
    """Return name in `output_dir` -> (file, digest)."""
    published_there = "publish" in artifacts and _same_folder(run.publish_to, run.output_dir)
    train = artifacts["train"]
    with_model = train.facts["kind"] == "adapter" or not published_there
    return {
        entry.path.removeprefix(MODEL): (train.path(entry.path), entry.sha256)
        for entry in train.manifest.files
        if entry.path in LOGS or (with_model and entry.path.startswith(MODEL))
    }


def _write_report(exported: _Folder, run: RunConfig, artifacts: Mapping[str, Artifact]) -> None:
    """Write the report and the settings that it names, if anything in them differs from the last time."""
    made_of = digest_of(
        {
            "run": run.model_dump(mode="json"),
            "artifacts": [[name, artifact.manifest.model_dump(mode="json")] for name, artifact in artifacts.items()],
        }
    )
    if exported.holds(REPORT, made_of) and exported.holds(SETTINGS, made_of):
        return
    exported.put(write_report(exported.path, run, artifacts).name, made_of)
    exported.write(SETTINGS, settings_of(run), made_of)


def _published_files(run: RunConfig, artifacts: Mapping[str, Artifact], folder: Path) -> frozenset[str]:
    """Return the names in `output_dir` that belong to a publication there."""
    if "publish" not in artifacts or not _same_folder(run.publish_to, str(folder)):
        return frozenset()
    return frozenset(entry.path.removeprefix(MODEL) for entry in artifacts["merge"].manifest.files)


def _same_folder(where: str, folder: str) -> bool:
    place = local_folder(where)
    return place is not None and place.resolve() == Path(folder).expanduser().resolve()


class _Folder:
    """`output_dir` and the record of what was put there: name -> what it was made of, and its size and time then."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._before = _read_record(folder / RECORD)
        self._now: dict[str, dict[str, Any]] = {}

    def holds(self, name: str, made_of: str) -> bool:
        """Return whether a file is there as it was put there, made of the same; then it counts as put."""
        entry = self._before.get(name)
        if entry is None or entry["made_of"] != made_of or not self._untouched(name, entry):
            return False
        self._now[name] = entry
        return True

    def copy(self, name: str, source: Path, sha256: str) -> None:
        """Put a copy of a file there, if it is not there yet."""
        if not self.holds(name, sha256):
            draft = self._draft(name)
            shutil.copyfile(source, draft)
            draft.replace(self.path / name)
            self.put(name, sha256)

    def write(self, name: str, text: str, made_of: str) -> None:
        """Put a text there."""
        draft = self._draft(name)
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.path / name)
        self.put(name, made_of)

    def put(self, name: str, made_of: str) -> None:
        """Note that a file is there, as it is now."""
        self._now[name] = {"made_of": made_of, **_stamp(self.path / name)}

    def finish(self, *, kept: frozenset[str]) -> None:
        """Remove what only an earlier run had put there, but for `kept`; write the record if it changed."""
        for name, entry in self._before.items():
            if name not in self._now and name not in kept and self._untouched(name, entry):
                (self.path / name).unlink()
        if self._now != self._before:
            draft = self._draft(RECORD)
            draft.write_bytes(orjson.dumps(self._now, option=orjson.OPT_INDENT_2))
            draft.replace(self.path / RECORD)

    def _draft(self, name: str) -> Path:
        final = self.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        return final.with_name(DRAFT + final.name)

    def _untouched(self, name: str, entry: dict[str, Any]) -> bool:
        path = self.path / name
        return path.is_file() and {"made_of": entry["made_of"], **_stamp(path)} == entry


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the record says; nothing of a missing or foreign one, and no name that leaves the folder."""
    try:
        record = orjson.loads(path.read_bytes())
        return {
            name: {"made_of": entry["made_of"], "size": entry["size"], "mtime_ns": entry["mtime_ns"]}
            for name, entry in record.items()
            if not Path(name).is_absolute() and ".." not in Path(name).parts
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
