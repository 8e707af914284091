"""`sft init`: asks what is not given, and writes a commented file to start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast, get_args

import click

from configs.errors import ConfigError, Problem
from configs.load import load_run
from configs.starting_file import Answers, Method, dataset_keys, starting_file, usual_method
from flows.command import say


def init(
    path: Path,
    *,
    model: str | None,
    data: str | None,
    kind: str | None,
    adapter: Method | None,
    gpus: int | None,
    memory: int | None,
    force: bool,
) -> None:
    """Write a file made for these answers; what is None is asked for at a terminal, and else as is usual.

    Raises:
        ConfigError: the file is there already, or the model or the data is not given.
    """
    if path.exists() and not force:
        raise ConfigError([Problem(str(path), "", "", "this file is there already", "Name another, or use --force.")])
    model = model or _ask("model", "Model (Hub id or folder)")
    data = data or _ask("data", "Data (Hub id, or a file or folder)")
    gpus = gpus if gpus is not None else int(_ask("gpus", "GPUs (0: train on the CPU)", "1"))
    memory = memory if memory is not None or not gpus else int(_ask("memory", "Memory of one GPU, in GB", "24"))
    usual = usual_method(model, gpus, memory or 0)
    method = adapter or cast("Method", _ask("adapter", "Train", usual, choices=get_args(Method)))
    dataset = {"type": kind} if kind else dataset_keys(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(starting_file(Answers(model, data, dataset, method, gpus, memory or 0)), encoding="utf-8")
    load_run(path)
    say(f"{path} is written. See what it would do: sft plan {path}")


def _ask(option: str, question: str, usual: str | None = None, choices: tuple[str, ...] | None = None) -> str:
    """Return the answer of a person, or what is usual where nobody sits at a terminal."""
    if sys.stdin.isatty():
        kind = click.Choice(choices) if choices else int if usual and usual.isdecimal() else str
        return str(click.prompt(question, default=usual, type=kind, err=True))
    if usual is None:
        rule = "it is not given, and there is no terminal to ask at"
        raise ConfigError([Problem("command line", f"--{option}", "", rule, f"Give --{option} VALUE.")])
    return usual
