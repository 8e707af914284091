"""Experiment trackers at work: what goes to `metrics.jsonl` goes to each of them, too, through the Trainer's callbacks.

A tracker that cannot be reached at the start stops the run before its first step. One that fails later is dropped with
a warning: a training of hours does not end for it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from configs.schema import RunConfig
from stages.errors import StageError
from stages.train.checkpoints import write_whole
from stages.train.job import Job
from stages.train.metrics import MetricsTail
from stages.train.trackers import Tracker, asked, variables

CALLBACKS: dict[Tracker, str] = {
    "wandb": "WandbCallback",
    "tensorboard": "TensorBoardCallback",
    "mlflow": "MLflowCallback",
    "comet": "CometCallback",
    "trackio": "TrackioCallback",
    "swanlab": "SwanLabCallback",
}

logger = logging.getLogger(__name__)


class Tracking(TrainerCallback):  # type: ignore[misc]
    """Hands the records of a training on to trackers."""

    def __init__(self, trackers: dict[Tracker, TrainerCallback], metrics: Path, runs: Path) -> None:
        self._trackers, self._records, self._runs = trackers, MetricsTail(metrics), runs

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Begin, or go on, in each tracker.

        Raises:
            StageError: a tracker cannot be reached.
        """
        self._records.read()  # those of an earlier try
        for name, callback in self._trackers.items():
            try:
                callback.on_train_begin(args, state, control, **kw)
            except Exception as error:
                raise StageError(
                    f"the tracker {name} cannot be started: {type(error).__name__}: {error}. Check its keys and that "
                    f"it can be reached from here, or set use_{name}: false."
                ) from error
        write_whole(self._runs, _run_ids())

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Hand on what was recorded since the last time."""
        for record in self._records.read():
            self._tell("on_log", args, state, control, **{**kw, "logs": scalars(record)})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Tell of a checkpoint."""
        self._tell("on_save", args, state, control, **kw)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Tell of the end."""
        self._tell("on_train_end", args, state, control, **kw)

    def _tell(self, event: str, *what: Any, **more: Any) -> None:
        for name, callback in list(self._trackers.items()):
            try:
                getattr(callback, event)(*what, **more)
            except Exception as error:  # noqa: BLE001  whatever a tracker's library raises, the training goes on
                logger.warning("the tracker %s failed and is told nothing more: %s", name, error)
                del self._trackers[name]


@contextmanager
def tracking(job: Job, metrics: Path, *, is_first: bool, resumed: bool) -> Iterator[list[Tracking]]:
    """Give the first process the callback that tells the trackers of a run, if it has any; in the end, close them.

    A training that is resumed goes on in the run of its tracker that it began.
    """
    names = asked(job.run)
    if not (names and is_first):
        yield []
        return
    os.environ.update(variables(job.run))
    runs = job.work / "trackers.json"
    for name, default in _defaults(job, runs, resumed=resumed).items():
        os.environ.setdefault(name, default)
    trackers = {name: getattr(integration_utils, CALLBACKS[name])() for name in names}
    failed = True
    try:
        yield [Tracking(trackers, metrics, runs)]
        failed = False
    finally:
        _close(failed=failed)


def tracker_arguments(run: RunConfig) -> dict[str, Any]:
    """Return the arguments of TrainingArguments that Trackio is told its project by; others read the environment."""
    if "trackio" not in asked(run):
        return {}
    return {
        "project": run.trackio_project_name or "sft-flow",
        "run_name": run.trackio_run_name,
        "trackio_space_id": run.trackio_space_id,
        "trackio_static_space_id": False,
    }


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by names that every tracker takes.

    >>> scalars({"step": 4, "eval_loss": 1.5, "eval_losses": {"0: a/b.jsonl": 1.5}})
    {'eval_loss': 1.5, 'eval_loss 0_ a/b.jsonl': 1.5}
    """
    flat = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
    for dataset, loss in record.get("eval_losses", {}).items():
        flat["eval_loss " + re.sub(r"[^-\w ./]", "_", dataset)] = loss
    return flat


def _defaults(job: Job, runs: Path, *, resumed: bool) -> dict[str, str]:
    """Return environment variables for what neither the configuration nor the user's environment says."""
    out = Path(job.run.output_dir).expanduser().resolve()
    out.mkdir(parents=True, exist_ok=True)
    begun = orjson.loads(runs.read_bytes()) if resumed and runs.exists() else {}
    folders = {"WANDB_DIR": str(out), "TENSORBOARD_LOGGING_DIR": str(out / "runs" / job.key[:12])}
    return {**folders, "WANDB_RESUME": "allow", "MLFLOW_ALLOW_FILE_STORE": "true", **begun}


def _run_ids() -> dict[str, str]:
    """Return the variables by which W&B and MLflow find the run again that goes on in this process."""
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    ids = {}
    if wandb is not None and wandb.run is not None:
        ids["WANDB_RUN_ID"] = wandb.run.id
    if mlflow is not None and (run := mlflow.active_run()) is not None:
        ids["MLFLOW_RUN_ID"] = run.info.run_id
    return ids


def _close(*, failed: bool) -> None:
    """Let W&B, MLflow and Comet send the rest: this process ends without the interpreter's farewell."""
    wandb, mlflow, comet = (sys.modules.get(name) for name in ("wandb", "mlflow", "comet_ml"))
    if wandb is not None and wandb.run is not None:
        wandb.run.finish(exit_code=int(failed))
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.end_run("FAILED" if failed else "FINISHED")
    if comet is not None and (experiment := comet.get_running_experiment()) is not None:
        experiment.end()
