"""What cannot be trained, and why: rules that need neither torch nor a GPU and answer before anything runs."""

from __future__ import annotations

from importlib.util import find_spec

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem

PACKAGES = {"bitsandbytes": "quantization", "deepspeed": "deepspeed"}
"""Optional package -> the extra of sft-flow that brings it."""


def check(run: RunConfig) -> None:
    """Refuse a configuration that cannot be trained.

    Raises:
        ConfigError: with everything that is wrong.
    """
    found = problems(run)
    if found:
        raise ConfigError(found)


def problems(run: RunConfig) -> list[Problem]:
    """Return why a configuration cannot be trained; nothing if it can."""
    return [*_missing_packages(run)]


def needed_packages(run: RunConfig) -> list[str]:
    """Return the optional packages whose behaviour is in the trained weights."""
    return ["bitsandbytes"] if _uses_bitsandbytes(run) else []


def _uses_bitsandbytes(run: RunConfig) -> bool:
    return run.load_in_4bit or run.load_in_8bit


def _missing_packages(run: RunConfig) -> list[Problem]:
    return [
        _problem(
            key, value, f"it needs the package {package}, which is not installed", f"{_install(PACKAGES[package])}."
        )
        for package, key, value in _wanted(run)
        if find_spec(package) is None
    ]


def _wanted(run: RunConfig) -> list[tuple[str, str, str]]:
    """Return (package, key, value) of what asks for an optional package."""
    return [("bitsandbytes", key, "true") for key in ("load_in_4bit", "load_in_8bit") if getattr(run, key)]


def _install(extra: str) -> str:
    return f"Install it: pip install 'sft-flow[{extra}]'"


def _problem(key: str, value: str, rule: str, remedy: str) -> Problem:
    return Problem("configuration", key, value, rule, remedy)
