"""A worker process: `python -m stages.tokenize.worker`.

It reads one line of JSON with the `Setup`, then a line for each `Job`, and answers each job with lines of JSON:
`{"rows", "tokens"}` while it goes, `{"outcome"}` or `{"problems"}` (of the configuration) at the end. When its standard
input closes, its parent is gone or done, and the process ends at once, even in the middle of a shard.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading

import orjson

from configs.errors import ConfigError
from stages.tokenize.shard import Job, Setup, ShardTokenizer


def main() -> None:
    """Work until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    setup, tokenizer = Setup.model_validate_json(lines.get()), None
    while True:
        job = Job.model_validate_json(lines.get())
        try:
            tokenizer = tokenizer or ShardTokenizer(setup)  # here, because a module of the user may not be importable
            outcome = tokenizer.tokenize(job, lambda rows, tokens: _answer({"rows": rows, "tokens": tokens}))
        except ConfigError as error:
            _answer({"problems": [vars(problem) for problem in error.problems]})
            continue
        _answer({"outcome": outcome.model_dump()})


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def _answer(value: dict[str, object]) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
