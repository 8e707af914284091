"""How a training ended: what its processes leave behind when they fail, and the error that follows from it.

exit code of a process    meaning                                    error
0                         done, and `done.json` says so              none
3                         the configuration is wrong                 ConfigError, never retried
4                         an error with a sentence for the user      StageError
75                        lost its connection to another process     TransientError
143                       stopped by SIGTERM, checkpoint written     TransientError
-9, 137                   killed, most often for want of memory      TransientError
anything else             a bug or a broken machine                  StageError with the end of the log
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import orjson

from stages.errors import ConfigError, Problem, SftError, StageError, TransientError
from stages.train.job import WorkFolder

WRONG_CONFIGURATION = 3
FAILED = 4
LOST = 75
STOPPED = 143
KILLED = (-9, 137)
NO_HOST = 255
"""Exit code of ssh when its host does not answer any more, and of any engine that knows a machine to be gone."""
TAIL_LINES = 50

AGENT = "SFT_FLOW_AGENT"
"""Environment variable with the process id of torchrun, for its processes to die with it."""


def write_failure(path: Path, error: SftError) -> int:
    """Write the error that ends a training process, and return its exit code."""
    problems = [asdict(problem) for problem in error.problems] if isinstance(error, ConfigError) else []
    path.write_bytes(orjson.dumps({"text": str(error), "problems": problems}))
    if isinstance(error, TransientError):
        return LOST
    return WRONG_CONFIGURATION if problems else FAILED


def error_of(work: WorkFolder, agent_code: int) -> SftError:
    """Return the error that tells why a training ended without its end marker."""
    codes = _rank_codes(work)
    for rank, code in codes:
        if code in (WRONG_CONFIGURATION, FAILED) and work.failure(rank).exists():
            return _written_failure(work.failure(rank))
    if any(code == STOPPED for _, code in codes) or agent_code == STOPPED:
        return TransientError("training was stopped by SIGTERM; it continues from its last checkpoint when run again")
    killed = [rank for rank, code in codes if code in KILLED]
    if killed or agent_code in KILLED:
        who = f"training process {killed[0]}" if killed else "the launcher of the training"
        return TransientError(
            f"{who} was killed (SIGKILL), perhaps because memory ran out. If it happens again, lower micro_batch_size "
            "and raise gradient_accumulation_steps by the same factor, or set gradient_checkpointing: true. "
            "Training continues from its last checkpoint."
        )
    for rank, code in codes:
        if code == LOST and work.failure(rank).exists():
            return TransientError(orjson.loads(work.failure(rank).read_bytes())["text"])
    if agent_code in (LOST, NO_HOST):
        return TransientError(
            "another node of the training is gone; it continues from its last checkpoint when run again"
        )
    rank, code = codes[0] if codes else (0, agent_code)
    log = work.rank_log(rank) if work.rank_log(rank).exists() else work.log
    return StageError(f"training process {rank} ended with exit code {code}. The end of {log}:\n{_tail(log)}")


def is_lost(work: WorkFolder, agent_code: int) -> bool:
    """Return whether a training ended because a process or its machine is gone, so that a new start may go on."""
    codes = [code for _, code in _rank_codes(work)]
    if agent_code == NO_HOST:  # who then stops the others may do it with SIGTERM
        return not any(code in (WRONG_CONFIGURATION, FAILED) for code in codes)
    return all(code in (*KILLED, LOST) for code in codes) if codes else agent_code in (*KILLED, LOST)


def _rank_codes(work: WorkFolder) -> list[tuple[int, int]]:
    """Return (rank, exit code) of the failed processes, the first to fail first; none if no agent told anything."""
    failures = []
    for report in work.root.glob("agent-*.json"):
        with suppress(OSError, ValueError, KeyError):
            failures += orjson.loads(report.read_bytes())["failures"]
    failures.sort(key=lambda failure: failure["time"])
    return [(failure["rank"], failure["exit_code"]) for failure in failures]


def _written_failure(path: Path) -> SftError:
    record = orjson.loads(path.read_bytes())
    if record["problems"]:
        return ConfigError(Problem(**problem) for problem in record["problems"])
    return StageError(record["text"])


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(there is no log)"
    return "\n".join(lines[-TAIL_LINES:])
