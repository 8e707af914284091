"""`sft init`: asks what is not given, and writes a commented file to start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast, get_args

import click

from configs.errors import ConfigError, Problem
from configs.load import load_run
from configs.starting_file import USUAL_SEQUENCE, Answers, Method, starting_file, usual_method
from flows.command import say
from stages.estimate.gpus import gpus_named
from stages.estimate.shapes import model_shape
from stages.inspection.sample import read_sample, tried, yaml_of


def init(
    path: Path,
    *,
    model: str | None,
    data: str | None,
    kind: str | None,
    adapter: Method | None,
    gpu: str | None,
    force: bool,
) -> None:
    """Write a file made for these answers; what is None is asked for at a terminal, and else as is usual.

    Raises:
        ConfigError: the file is there already, the model or the data is not given, or the GPU is not known.
        DataError: the data holds no rows.
    """
    if path.exists() and not force:
        raise ConfigError([Problem(str(path), "", "", "this file is there already", "Name another, or use --force.")])
    model = model or _ask("model", "Model (Hub id or folder)")
    data = data or _ask("data", "Data (Hub id, or a file or folder)")
    gpus, memory = _hardware(gpu or _ask("gpu", "GPU (rtx4090, 8xh100, ...; cpu: none)", "rtx4090"))
    usual = usual_method(model, gpus, memory)
    method = adapter or cast("Method", _ask("adapter", "Train", usual, choices=get_args(Method)))
    dataset = {"type": kind} if kind else _dataset(data)
    answers = Answers(model, data, dataset, method, gpus, memory, _sequence_len(model))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(starting_file(answers), encoding="utf-8")
    load_run(path)
    say(f"{path} is written. See what it would do: sft plan {path}")


def _dataset(data: str) -> dict[str, Any]:
    """Return the keys that read a data set: those that fit its first rows where it is here, else those of chats."""
    if Path(data).exists():
        sample = read_sample(data)
        fits = [outcome.advice for outcome in tried(sample) if outcome.usable]
        if fits:
            return {key: value for key, value in yaml_of(sample, fits[0]).items() if key != "path"}
    return {"type": "chat_template"}


def _sequence_len(model: str) -> int:
    """Return the usual length of a sequence; less for a model that is here and was trained on shorter ones."""
    if not (Path(model) / "config.json").is_file():
        return USUAL_SEQUENCE
    return min(USUAL_SEQUENCE, model_shape(Path(model)).max_positions or USUAL_SEQUENCE)


def _hardware(name: str) -> tuple[int, int]:
    """Return how many GPUs a name tells, and the memory of one in GB."""
    if name.lower() == "cpu":
        return 0, 0
    kind, count = gpus_named(name)
    return count or 1, round(kind.bytes / 1e9)


def _ask(option: str, question: str, usual: str | None = None, choices: tuple[str, ...] | None = None) -> str:
    """Return the answer of a person, or what is usual where nobody sits at a terminal."""
    if sys.stdin.isatty():
        return str(click.prompt(question, default=usual, type=click.Choice(choices) if choices else str, err=True))
    if usual is None:
        rule = "it is not given, and there is no terminal to ask at"
        raise ConfigError([Problem("command line", f"--{option}", "", rule, f"Give --{option} VALUE.")])
    return usual
