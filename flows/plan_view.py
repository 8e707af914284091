"""A plan, and findings, as a page for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stages.pack.parts import told
from stages.tokenize.view import check_lines

CHANGES_SHOWN = 8
DATASETS_SHOWN = 8
GIB = 2**30
WIDTH = 100
"""Text is broken at this width at most; lines are easier to read."""

SEEN = 0.001
"""Smallest share of waiting that is worth a line."""

COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def show_plan(document: dict[str, Any]) -> None:
    """Print the plan: stages, data, model, training, memory, findings, and what it comes to."""
    console = page()
    for block in (_stages(document), _figures(document)):
        _print(console, block)
        console.print()
    show_findings(document)
    _print(console, Text(_sum(document)))


def show_findings(document: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Print problems and warnings: place and key, then what is expected and what to do.

    Where nobody looks at a terminal, a sentence is one line: it can be searched for.
    """
    console = page(to_stderr=to_stderr)
    for level, name in (("error", "problems"), ("warning", "warnings")):
        for finding in document[name]:
            value = f" = {finding['value']}" if finding["value"] else ""
            head = f"[{COLOURS[level]}]{level}[/] {escape(finding['place'])}: {escape(finding['key'] + value)}"
            text = Text(f"{finding['rule']}. {finding['remedy']}")
            console.print(head, soft_wrap=True)
            if console.is_terminal:
                _print(console, Padding(text, (0, 0, 0, 2)))
            else:
                console.print(Text("  ") + text, soft_wrap=True)
            console.print()


def show_keys(document: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Print the class of each key that a file uses; why a key has no effect is said where it is read."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for kind in ("acted on", "replaced by", "without effect"):
        uses = {use["key"]: use["text"] for use in document["keys"] if use["kind"] == kind}
        shown = [f"{key} -> {text}" for key, text in uses.items()] if kind == "replaced by" else list(uses)
        if shown:
            table.add_row(
                Text(f"{len(shown)} keys {kind}" if len(shown) > 1 else f"1 key {kind}", "dim"), ", ".join(shown)
            )
    _print(page(to_stderr=to_stderr), table)


def page(*, to_stderr: bool = False) -> Console:
    """Return where pages are printed, not wider than can be read."""
    width = min(Console(stderr=to_stderr).width, WIDTH)
    return Console(highlight=False, stderr=to_stderr, width=width)


def _print(console: Console, block: RenderableType) -> None:
    """Print without the blanks that fill up lines: they get in the way where text is copied."""
    with console.capture() as captured:
        console.print(block)
    for line in captured.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    >>> duration(5400), duration(42), duration(200_000)
    ('1.5 h', '42 s', '2.3 days')
    """
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def size(amount: float) -> str:
    """Return bytes in GiB or MiB.

    >>> size(3 * 2**30), size(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{amount / GIB:,.1f} GiB" if amount >= GIB else f"{amount / 2**20:.0f} MiB"


def count(number: int) -> str:
    """Return a number of parameters.

    >>> count(8_030_261_248), count(135_000_000), count(4_200)
    ('8.03 B', '135 M', '4,200')
    """
    if number >= 10**9:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.0f} M" if number >= 10**6 else f"{number:,}"


def _stages(document: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "stage", "", "key", "why"):
        table.add_column(name, no_wrap=name != "why")
    for stage in document["stages"]:
        reused = stage["status"] == "reused"
        colour = "cyan" if reused else "yellow"
        mark = Text("=" if reused else "~" if stage["changes"] else "+", colour)
        time = f"; about {duration(stage['seconds'])}" if stage["seconds"] is not None else ""
        why = Text(stage["why"] + time)
        table.add_row(mark, stage["stage"], Text("reused" if reused else "run", colour),
                      Text((stage["key"] or "")[:12], "dim"), why)  # fmt: skip
        for change in stage["changes"][:CHANGES_SHOWN]:
            table.add_row("", "", "", "", Text(f"  {change}", "dim"))
        if len(stage["changes"]) > CHANGES_SHOWN:
            table.add_row("", "", "", "", Text(f"  and {len(stage['changes']) - CHANGES_SHOWN} more", "dim"))
    return table


def _figures(document: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for part in (_data, _packing, _model, _training, _memory, _time):
        for name, line in part(document):
            table.add_row(name, Text(line))
    return table


def _data(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    data = document["data"]
    if "tokens" not in data:
        yield "data", "known when it is tokenized"
        return
    share = data["trained_tokens"] / max(1, data["tokens"])
    yield "data", f"{data['rows_written']:,} rows, {data['tokens']:,} tokens, {share:.0%} trained"
    for name, counts in (
        ("rejected", told(data["rejected"] | data.get("dropped", {}))),
        ("left out", told(data.get("left_out", {}))),
    ):
        if counts:
            yield name, counts
    mixed = data.get("datasets", ())
    if len(mixed) > 1:
        for part in mixed[:DATASETS_SHOWN]:
            yield "mixture", part["line"]
        if len(mixed) > DATASETS_SHOWN:
            yield "", f"and {len(mixed) - DATASETS_SHOWN} more data sets"
    for line in check_lines(dict(list(data.get("checks", {}).items())[:DATASETS_SHOWN])):
        yield "checks", line


def _packing(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    data = document["data"]
    if "train" not in data:
        return
    train, held_out = data["train"], data["eval"]
    text = f"{train['sequences']:,} sequences of {data['sequence_len']:,}, {train['efficiency']:.1%} full"
    text += f"; {held_out['rows']:,} rows held out" if held_out["rows"] else ""
    yield "packing", text + (f"; {data['truncated']:,} rows truncated" if data["truncated"] else "")


def _model(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    model = document["model"]
    if model is None:
        return
    share = model["trained_parameters"] / max(1, model["parameters"])
    about = "about " if model["rough"] else ""
    text = f"{model['family'] or 'unknown family'}, {about}{count(model['parameters'])} parameters; {model['method']}"
    text += f", {count(model['trained_parameters'])} trained ({share:.2%})" if share < 1 else ", all trained"
    precision = document["training"]["precision"]
    yield "model", f"{text}; computed in {precision}" if precision else text


def _training(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    training = document["training"]
    batch = (
        f"{training['sequences_per_step']:,} sequences a step = micro batch {training['micro_batch_size']} "
        f"x accumulation {training['passes_per_step']} x {training['processes']} "
        f"process{'' if training['processes'] == 1 else 'es'}"
    )
    if training["sharding"] != "none":
        batch += f" ({training['sharding'].upper()})"
    yield "batch", f"{batch}; {training['tokens_per_step']:,} tokens" if "tokens" in training else batch
    if "steps" not in training:
        yield "steps", "known when the data is packed"
        return
    text = f"{training['steps']:,} over {training['epochs']:.2f} epochs, {training['warmup_steps']:,} of them warm-up"
    text += f"; {_many(len(training['checkpoints']), 'checkpoint')}, {_many(training['evaluations'], 'evaluation')}"
    yield "steps", text
    if training["waiting"] and training["waiting"]["in_random_order"] >= SEEN:
        share, otherwise = training["waiting"]["share"], training["waiting"]["in_random_order"]
        yield "balance", f"processes wait {share:.1%} of the time, in a random order {otherwise:.1%}"


def _memory(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory = document["memory"]
    if memory is None:
        yield "memory", "not known: the model's configuration could not be read"
        return
    verdict = {True: "fits", False: "does not fit", None: "its memory is not known"}[memory["fits"]]
    room = f" of {size(memory['available'])}" if memory["available"] is not None else ""
    yield "memory", f"about {size(memory['total'])}{room} on each {memory['device']}: {verdict}"
    parts = sorted(memory["parts"].items(), key=lambda part: -part[1])
    yield "", ", ".join(f"{name} {size(needed)}" for name, needed in parts if needed >= memory["total"] / 200)
    for number, change in enumerate(memory["changes"]):
        yield "", f"{'with' if number == 0 else 'then'} {change['set']}: {size(change['total'])}"


def _time(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    timed = [stage for stage in document["stages"] if stage["seconds"] is not None]
    if not timed:
        return
    training = next((stage for stage in timed if stage["stage"] == "train"), None)
    text = f"about {duration(document['seconds'])}"
    unknown = [s["stage"] for s in document["stages"] if s["status"] != "reused" and s["seconds"] is None]
    text += f" without {', '.join(unknown)}" if unknown else ""
    yield "time", f"{text}; training: {training['seconds_from']}" if training else text


def _sum(document: dict[str, Any]) -> str:
    to_run = [stage["stage"] for stage in document["stages"] if stage["status"] != "reused"]
    reused = len(document["stages"]) - len(to_run)
    what = f"{len(to_run)} to run ({', '.join(to_run)})" if to_run else "nothing to run"
    words = {"problems": "problem", "warnings": "warning"}
    found = [_many(len(document[name]), word) for name, word in words.items() if document[name]]
    return ", ".join([f"Plan: {what}", f"{reused} reused", *found]) + "."


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
