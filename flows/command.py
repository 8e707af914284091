"""What every command has in common: errors as sentences, exit codes, one JSON document."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape

from configs.errors import ConfigError, Problem, SftError
from configs.load import LoadedRun, load_run
from configs.overrides import read_words
from configs.secrets import redacted
from flows.server import server_is_configured
from tasks.blocks import names_blocks, with_blocks

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def say(text: str) -> None:
    """Print a line for a person, on standard error: standard output is for results."""
    Console(stderr=True).print(text, soft_wrap=True, highlight=False)


def write_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    sys.stdout.buffer.write(orjson.dumps(document, option=options, default=str))
    sys.stdout.flush()


def command(group: click.Group, **attributes: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that adds a command whose errors are sentences (`--traceback` shows where they come from)."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, traceback: bool, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  (every error becomes a sentence and an exit code)
                sys.exit(_report(error, as_json=bool(kwargs.get("as_json")), with_traceback=traceback))
            except KeyboardInterrupt:
                say("interrupted; the next run continues from here")
                sys.exit(INTERRUPTED)
            except BaseException as error:
                if type(error).__name__ != "TerminationSignal":  # Prefect's, which need not be imported here
                    raise
                say("terminated; the next run continues from here")
                sys.exit(TERMINATED)

        option = click.option("--traceback", is_flag=True, help="Show where an error comes from.")
        return group.command(**attributes)(option(guarded))

    return decorate


def config_command(group: click.Group, **attributes: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator as `command` for what takes a CONFIG: the function receives it as a `GivenConfig`, first.

    Words that are not options of the command are the file and overrides of its keys, in any spelling and order.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG [KEY=VALUE | --KEY VALUE]...")
        @click.option("--lenient", is_flag=True, help="Unknown keys have no effect, and do not stop the command.")
        @click.option("--strict", is_flag=True, help="Warnings stop the command too.")
        @functools.wraps(function)
        def given(*args: Any, words: tuple[str, ...], lenient: bool, strict: bool, **kwargs: Any) -> None:
            function(_given(words, lenient=lenient, strict=strict), *args, **kwargs)

        return command(group, context_settings={"ignore_unknown_options": True}, **attributes)(given)

    return decorate


@dataclass(frozen=True)
class GivenConfig:
    """A configuration as it is given on the command line."""

    path: Path
    overrides: tuple[str, ...]
    lenient: bool
    strict: bool

    def read(self) -> LoadedRun:
        """Return the run.

        Raises:
            ConfigError: with every problem of the file and the overrides.
        """
        return _with_blocks(load_run(self.path, self.overrides, lenient=self.lenient))

    def load(self) -> LoadedRun:
        """Read the run, and say what is accepted but not as it might be meant."""
        loaded = self.read()
        for notice in loaded.notices:
            say(f"[dim]{escape(str(notice))}[/dim]")
        return loaded


def _with_blocks(loaded: LoadedRun) -> LoadedRun:
    """Return the run with what its Prefect blocks hold; imports Prefect only for that."""
    if not names_blocks(loaded.run):
        return loaded
    if not server_is_configured():
        rule = "storage options of this run name a Prefect block, and no server is configured that could hold it"
        raise ConfigError([Problem(str(loaded.path), "", "", rule, "Set PREFECT_API_URL.")])
    return replace(loaded, run=with_blocks(loaded.run))


def _given(words: Sequence[str], *, lenient: bool, strict: bool) -> GivenConfig:
    context = click.get_current_context()
    read = read_words(words, [name for option in context.command.params for name in option.opts if name[:2] == "--"])
    if read.problems:
        raise ConfigError(read.problems)
    if read.config is None:
        raise click.MissingParameter(ctx=context, param_hint="CONFIG", param_type="argument")
    return GivenConfig(Path(read.config), read.overrides, lenient, strict)


def _report(error: Exception, *, as_json: bool, with_traceback: bool) -> int:
    """Say what went wrong and return the exit code."""
    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        raise error
    if with_traceback:
        sys.stderr.write(redacted("".join(traceback.format_exception(error))))
    problems, keys = (error.problems, error.keys) if isinstance(error, ConfigError) else ((), ())
    expected = isinstance(error, SftError)
    text = redacted(str(error) if expected else f"unexpected {type(error).__name__}: {error} (--traceback shows where)")
    if as_json:
        judged = {"valid": False, "keys": [vars(use) for use in keys]} if keys else {}
        write_json({"error": text, "problems": [vars(problem) for problem in problems], **judged})
    for line in text.splitlines():
        say(f"[red]error[/red] {escape(line)}")
    return error.exit_code if isinstance(error, SftError) else 1
