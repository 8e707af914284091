"""Advice about a data set in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml
from rich.console import RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from stages.formats import is_chat
from stages.inspection.sample import SHOWN_WITH, Sample, Tried, dataset_of, marked, yaml_of
from stages.inspection.terminal import CLOSE, LINE_END, OPEN, TRAINED, UNTRAINED
from stages.pack.parts import told

LONGEST = 1500
"""Characters of a row that are shown."""


def advice_lines(sample: Sample, fits: Sequence[Tried], most: int) -> Iterator[RenderableType]:
    """Yield what fits best, why, the YAML, `most` rows with it, and what else would fit."""
    best, *others = fits
    yield Text(f"{_name(best)} fits {best.usable:,} of the first {len(sample.rows):,} rows", "bold")
    for reason in best.advice.reasons:
        yield Text(f"  {reason}")
    if best.rejected:
        yield Text(f"  cannot be used: {told(best.rejected)}; {best.example}", "yellow")
    text = yaml.safe_dump({"datasets": [yaml_of(sample, best.advice)]}, sort_keys=False, allow_unicode=True)
    yield Padding(Syntax(text.rstrip(), "yaml", background_color="default"), (1, 2))
    yield from _rows(sample, best, most)
    for other in others:
        yield Text(f"also possible: {_name(other)} ({other.usable:,} rows): {other.advice.reasons[0]}", UNTRAINED)


def _rows(sample: Sample, best: Tried, most: int) -> Iterator[RenderableType]:
    if best.advice.options["type"] is None:
        yield Text("Rows are shown by `sft inspect run.yaml`, which knows their tokenizer.")
        return
    legend = Text.assemble(
        (f"{OPEN}trained{CLOSE}", TRAINED), " with the end token behind it  ", ("not trained", UNTRAINED)
    )
    if is_chat(dataset_of(sample, best.advice)):
        legend.append(f"  (written in {SHOWN_WITH}; a run writes them in the model's own template)")
    yield legend
    for number, pieces in best.rows[:most]:
        text, left = Text(), LONGEST
        for words, trained in marked(pieces):
            said = words[:left].replace("\n", LINE_END)
            if said:
                text.append(f"{OPEN}{said}{CLOSE}" if trained else said, TRAINED if trained else UNTRAINED)
            left -= len(words[:left])
        yield Panel(text, title=f"row {number}", title_align="left", subtitle=None if left else "the beginning")


def _name(outcome: Tried) -> str:
    kind = outcome.advice.options["type"]
    if kind is None:
        return "no type (tokenized rows)"
    return f"type: {kind}" if isinstance(kind, str) else "a type of your own"
