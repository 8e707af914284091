"""Experiment trackers: which of them a run asks for, and what they need. No torch here.

A tracker changes nothing of what is trained, so nothing of it is in the key of a training; a run that is reused from
the store tells a tracker nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from configs.schema import RunConfig
from stages.errors import Problem

Tracker = Literal["wandb", "tensorboard", "mlflow", "comet", "trackio", "swanlab"]

PACKAGES: dict[Tracker, str] = {
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "comet": "comet_ml",
    "trackio": "trackio",
    "swanlab": "swanlab",
}
"""Tracker -> the package that it is imported from."""

IMPLIED_BY: dict[Tracker, str] = {
    "wandb": "wandb_project",
    "mlflow": "mlflow_experiment_name",
    "comet": "comet_project_name",
    "trackio": "trackio_project_name",
    "swanlab": "swanlab_project",
}
"""Tracker -> the key that asks for it even without `use_...: true`."""

VARIABLES: dict[str, str] = {
    "wandb_project": "WANDB_PROJECT",
    "wandb_entity": "WANDB_ENTITY",
    "wandb_name": "WANDB_NAME",
    "wandb_run_id": "WANDB_RUN_ID",
    "wandb_mode": "WANDB_MODE",
    "wandb_watch": "WANDB_WATCH",
    "wandb_log_model": "WANDB_LOG_MODEL",
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "mlflow_experiment_name": "MLFLOW_EXPERIMENT_NAME",
    "mlflow_run_name": "MLFLOW_RUN_NAME",
    "hf_mlflow_log_artifacts": "HF_MLFLOW_LOG_ARTIFACTS",
    "comet_workspace": "COMET_WORKSPACE",
    "comet_project_name": "COMET_PROJECT_NAME",
    "comet_experiment_key": "COMET_EXPERIMENT_KEY",
    "comet_mode": "COMET_MODE",
    "comet_online": "COMET_START_ONLINE",
    "swanlab_project": "SWANLAB_PROJECT",
    "swanlab_mode": "SWANLAB_MODE",
    "swanlab_experiment_name": "SWANLAB_EXP_NAME",
    "swanlab_description": "SWANLAB_DESCRIPTION",
}
"""Key -> the environment variable from which the tracker's library reads it."""

WITHOUT_LOGIN = ("offline", "disabled", "dryrun")


def asked(run: RunConfig) -> list[Tracker]:
    """Return the trackers that a run asks for; `use_...: false` turns one off whatever else is said of it."""
    return [tracker for tracker in PACKAGES if _is_asked(run, tracker)]


def _is_asked(run: RunConfig, tracker: Tracker) -> bool:
    said: bool | None = getattr(run, f"use_{tracker}")
    implied = tracker in IMPLIED_BY and bool(getattr(run, IMPLIED_BY[tracker]))
    return implied if said is None else said


def variables(run: RunConfig) -> dict[str, str]:
    """Return the environment variables that the trackers' keys stand for."""
    given = {name: getattr(run, key) for key, name in VARIABLES.items()}
    return {name: str(value) for name, value in given.items() if value not in (None, "")}


def login_problems(run: RunConfig, environment: Mapping[str, str] = os.environ) -> list[Problem]:
    """Return what keeps W&B from being reached: it would fail at the first step, with the GPUs already waiting."""
    if "wandb" not in asked(run) or (run.wandb_mode or environment.get("WANDB_MODE")) in WITHOUT_LOGIN:
        return []
    home = Path(environment.get("HOME", "~")).expanduser()
    files = [Path(environment.get("NETRC") or home / ".netrc"), home / "_netrc"]
    known = any(environment.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if known or any(path.is_file() for path in files):
        return []
    rule = "it needs a login at Weights & Biases, which this machine has not"
    remedy = "Set WANDB_API_KEY, run `wandb login`, or set wandb_mode: offline."
    return [Problem("configuration", "wandb_project", str(run.wandb_project or ""), rule, remedy)]
