"""What a chat template, which comes with foreign models, may use: time of the processor, and room for long texts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jinja2.sandbox
from jinja2.exceptions import SecurityError

from stages.errors import ConfigError, Problem

SECONDS = 5.0  # of the processor, for one conversation; real templates take thousandths
LONGEST_REPEAT = 1 << 24  # characters or elements


def _too_slow(number: int, frame: object) -> None:
    rule = f"rendering one conversation takes more than {SECONDS:g} seconds of the processor; it may never end"
    raise ConfigError([Problem("configuration", "chat_template", "", rule, "Mend the template, or use another.")])


@contextmanager
def limited() -> Iterator[None]:
    """Stop what is inside after `SECONDS`; only the main thread of a process has signals, others are not stopped.

    Raises:
        ConfigError: it was stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class LimitedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, in which one product cannot fill the memory, nor one power the processor's time."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute a product or a power, if its result is of a size that a template can mean.

        Raises:
            SecurityError: it is not.
        """
        if operator == "**" and _is_large(left, right):
            raise SecurityError("a power is too large")
        for text, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(text, str | bytes | list | tuple):
                _check_repeat(text, times)
        return super().call_binop(context, operator, left, right)


def _check_repeat(text: Any, times: int) -> None:
    if len(text) * times > LONGEST_REPEAT:
        raise SecurityError(f"a text or list of {len(text)} is repeated {times} times")


def _is_large(base: Any, exponent: Any) -> bool:
    return isinstance(exponent, int | float) and abs(exponent) > 64 and isinstance(base, int) and abs(base) > 1
