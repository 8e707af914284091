"""What the quick start's run came to: the loss, and the held-out questions before and after."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig
from flows.quickstart.data import HELD_OUT_FILE
from flows.quickstart.processes import output_of
from stages.artifacts import Artifact, digest_of
from stages.artifacts.artifact import read_artifact
from stages.errors import StageError
from stages.publish.stage import RECEIPT

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Sample:
    """A held-out question, what was expected, and what was answered before and after."""

    question: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True)
class Outcome:
    """The figures of a finished run.

    Attributes:
        first_loss, last_loss: training loss per trained token, as logged first and last.
        questions: held-out questions asked.
        before, after: of them, those that the base model and the trained model answer exactly right.
        samples: one question of each kind.
        model: folder of the published model.
        report: the report on the run.
    """

    first_loss: float
    last_loss: float
    questions: int
    before: int
    after: int
    samples: tuple[Sample, ...]
    model: str
    report: str

    def write(self, path: Path) -> None:
        """Write the figures as JSON, for programs."""
        path.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def outcome_of(run: RunConfig, folder: Path, prepared: str) -> Outcome:
    """Return the outcome of a finished run; the models are asked only if they or the questions are new.

    Args:
        run: the configuration that was run.
        folder: the quick start's folder.
        prepared: identity of the base model and the data in it.
    """
    model = Path(run.publish_to)
    receipt = orjson.loads((model / RECEIPT).read_bytes())
    trained = _artifact(run, "train", receipt["artifacts"]["train"])
    key = digest_of({"model": receipt["model"], "prepared": prepared})
    before, after = _evaluated(folder, [run.base_model, str(model)], key)
    return Outcome(
        first_loss=trained.facts["first_loss"],
        last_loss=trained.facts["final_loss"],
        questions=len(after),
        before=_right(before),
        after=_right(after),
        samples=_samples(before, after),
        model=str(model),
        report=str(Path(run.output_dir) / "report.html"),
    )


def _artifact(run: RunConfig, stage: str, key: str) -> Artifact:
    artifact = read_artifact(Path(run.artifact_store) / stage / key)
    if artifact is None:
        raise StageError(f"{run.artifact_store}: the artifact {stage}/{key} of this run is gone. Start the run again.")
    return artifact


def _evaluated(folder: Path, models: Sequence[str], key: str) -> list[list[dict[str, Any]]]:
    """Return the answers of each model, from the last evaluation if it was of the same models and questions."""
    path = folder / EVALUATION
    try:
        known: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        known = {}
    if known.get("key") != key:
        command = [sys.executable, "-m", "flows.quickstart.evaluate", str(folder / HELD_OUT_FILE), *models]
        known = {"key": key, "answers": orjson.loads(output_of(command))}
        path.write_bytes(orjson.dumps(known))
    answers: list[list[dict[str, Any]]] = known["answers"]
    return answers


def _right(answers: Sequence[dict[str, Any]]) -> int:
    return sum(entry["answer"] == entry["expected"] for entry in answers)


def _samples(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> tuple[Sample, ...]:
    """Return the first question of each kind that opens a chat: about a gift, an opposite, a list."""
    found: dict[str, Sample] = {}
    for old, new in zip(before, after, strict=True):
        question = old["chat"][0]["content"]
        if len(old["chat"]) == 1:
            found.setdefault(
                question.rpartition(":")[0], Sample(question, old["expected"], old["answer"], new["answer"])
            )
    return tuple(found.values())
