"""What the checks look at, and how they say what they found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.schema import RunConfig
from stages.errors import Problem
from stages.estimate.shapes import ModelShape
from stages.preflight.finding import Finding
from stages.preflight.tokenizer_facts import TokenizerFacts
from stages.train.machine import Machine


@dataclass(frozen=True)
class Scene:
    """A run before it starts.

    Attributes:
        run: the configuration.
        machine: the GPUs that it would train on.
        here: whether that is this machine, so that its packages and folders can be looked at.
        shape: sizes of the base model; None if its configuration could not be read.
        tokenizer: what the tokenizer's files say; None if they could not be read.
        finished: stages whose artifact is there already.
    """

    run: RunConfig
    machine: Machine
    here: bool
    shape: ModelShape | None
    tokenizer: TokenizerFacts | None
    finished: frozenset[str] = frozenset()


def error(check: str, key: str, value: Any, rule: str, remedy: str, **more: Any) -> Finding:
    """Return a finding that stops the run; `more` are further attributes of `Finding`."""
    return Finding("error", check, key, _text(value), rule, remedy, **more)


def warning(check: str, key: str, value: Any, rule: str, remedy: str, **more: Any) -> Finding:
    """Return a finding that is probably not meant so."""
    return Finding("warning", check, key, _text(value), rule, remedy, **more)


def note(check: str, key: str, value: Any, rule: str, remedy: str, **more: Any) -> Finding:
    """Return a finding that is safe here."""
    return Finding("note", check, key, _text(value), rule, remedy, **more)


def refused(check: str, wrong: Problem, **more: Any) -> Finding:
    """Return what another module refuses as a finding that stops the run."""
    return Finding("error", check, wrong.key, wrong.value, wrong.rule, wrong.remedy, **more)


def _text(value: Any) -> str:
    """Return a value as YAML writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
