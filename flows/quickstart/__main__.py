"""Fine-tune a small model from random weights, and see what it has learned: `python -m flows.quickstart`."""

from __future__ import annotations

import shutil
import sys
import time
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from configs.errors import SftError
from configs.load import load_run
from flows.quickstart import prepared
from flows.quickstart.outcome import Outcome, outcome_of
from flows.quickstart.processes import exit_code_of

FOLDER = Path("quickstart")
LONGEST_SHOWN = 40  # characters of an answer; random weights do not know when to stop


def main() -> int:
    """Prepare, run, evaluate, show; return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    config = _from_here(Path(str(files("configs"))) / "quickstart.yaml")
    try:
        identity = prepared.identity(FOLDER) or _prepare(console)
        console.print(f"[bold]sft run {config}[/bold]")
        code = exit_code_of([sys.executable, "-m", "flows.cli", "run", str(config)])
        if code:
            return code
        outcome = outcome_of(load_run(config, ()).run, FOLDER, identity)
    except SftError as error:
        Console(stderr=True).print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
        return error.exit_code
    outcome.write(FOLDER / "result.json")
    _show(console, outcome, time.monotonic() - started)
    _show_what_next(console, outcome, config)
    return 0


def _from_here(path: Path) -> Path:
    """Return a path as one would type it: relative if it lies below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _prepare(console: Console) -> str:
    console.print(f"making a base model with random weights, and chats to train it on, in {FOLDER}/")
    return prepared.make(FOLDER)


def _show(console: Console, outcome: Outcome, seconds: float) -> None:
    for sample in outcome.samples:
        verdict = "right" if sample.after == sample.expected else f"expected: {sample.expected}"
        console.print(f"\n[bold]{escape(sample.question)}[/bold]")
        console.print(f"  before   {escape(_printable(sample.before))}")
        console.print(f"  after    {escape(_printable(sample.after))}   [dim]({verdict})[/dim]")
    share = 100 / outcome.questions
    console.print(f"\nloss                   {outcome.first_loss:.2f} -> {outcome.last_loss:.3f}")
    console.print(
        f"held-out exact match   {outcome.before * share:.1f} % -> {outcome.after * share:.1f} %"
        f"   [dim]({outcome.questions} questions; no answer to them is in the training data)[/dim]"
    )
    console.print(f"time                   {seconds:.0f} seconds")


def _printable(text: str) -> str:
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"


def _show_what_next(console: Console, outcome: Outcome, config: Path) -> None:
    sft = "sft" if shutil.which("sft") else _from_here(Path(sys.executable).with_name("sft"))
    console.print(f"\nthe model              {outcome.model}")
    console.print(f"the report             {outcome.report}")
    console.print("what to try next")
    for command, effect in (
        (f"plan {config} learning_rate=0.002", "what would run again, and why"),
        (f"run {config} learning_rate=0.002", "does it: only train, merge and publish"),
        (f"inspect {config}", "which tokens of the chats are trained"),
    ):
        console.print(f"  {sft} {command}   [dim]{effect}[/dim]")
    console.print(f"  your own run: copy {config}; set base_model, datasets and output_dir")


if __name__ == "__main__":
    sys.exit(main())
