"""`sft inspect` and `sft preprocess --debug`: rows as they are learned from."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
from rich.console import Console

from configs.load import LoadedRun
from configs.schema import RunConfig
from flows.command import say
from stages.artifacts import Artifact
from stages.errors import DataError
from stages.inspection.advice_view import advice_lines
from stages.inspection.page import page
from stages.inspection.rows import masked_rows
from stages.inspection.sample import read_sample, tried
from stages.inspection.terminal import show_masks
from stages.pipeline import stages_until
from stages.stage import open_run, run_stage

TERMINAL_ROWS, PAGE_ROWS = 3, 8


def inspect_run(loaded: LoadedRun, *, jsonl: bool, html: Path | None, rows: int | None) -> None:
    """Show rows of a run: all as JSON lines, a choice as a page, or the first ones in the terminal."""
    fetched, tokens = _tokenized(loaded)
    if jsonl:
        for row in masked_rows(tokens):
            sys.stdout.buffer.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))
    elif html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(loaded.run, fetched, tokens, PAGE_ROWS if rows is None else rows), encoding="utf-8")
        say(f"{html}: open it in a browser")
    else:
        show_rows(loaded.run, fetched, tokens, TERMINAL_ROWS if rows is None else rows)


def inspect_data(path: str, rows: int | None) -> None:
    """Say which type fits a data set, why, what to write, and show rows with it.

    Raises:
        ConfigError: there is no such data set.
        DataError: it holds no rows, or nothing that can be learned from.
    """
    sample = read_sample(path)
    fits = [outcome for outcome in tried(sample) if outcome.usable]
    if not fits:
        raise DataError(
            f"{path}: no type fits its rows. Known are lists of messages, instruction and output, prompt and answer, "
            f"segments, and text; the first row is {sample.rows[0][:200].decode(errors='replace')}"
        )
    console = Console()
    for block in advice_lines(sample, fits, TERMINAL_ROWS if rows is None else rows):
        console.print(block)


def show_rows(run: RunConfig, fetched: Artifact, tokens: Artifact, rows: int, *, to_stderr: bool = False) -> None:
    """Print the first rows of every data set with their masks."""
    console = Console(stderr=to_stderr)
    for block in show_masks(run, fetched, tokens, rows):
        console.print(block)


def _tokenized(loaded: LoadedRun) -> tuple[Artifact, Artifact]:
    """Return the raw and the tokenized rows: from the store, else made here without Prefect."""
    looking = loaded.run.model_copy(update={"max_rejected_ratio": 1.0})  # rejected rows are there to be looked at
    context, store = open_run(looking)
    upstream: dict[str, Artifact] = {}
    for stage in stages_until("tokenize"):
        upstream[stage.name] = run_stage(stage, context, upstream, store).artifact
    return upstream["fetch"], upstream["tokenize"]
