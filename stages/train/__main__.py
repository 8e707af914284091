"""One training process, started by torchrun: `python -m stages.train JOB`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from stages.errors import SftError
from stages.lifeline import die_with_parent
from stages.train.job import Job, WorkFolder
from stages.train.outcome import AGENT, write_failure
from stages.train.stopping import StopFlag


def main() -> int:
    """Train, and return the exit code that `stages.train.outcome` lists."""
    die_with_parent(int(os.environ[AGENT]))
    stop = StopFlag.on_sigterm()
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    work, rank = WorkFolder(job.work), int(os.environ["RANK"])
    _print_to(work.rank_log(rank))
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it warns when imported, and at each product that it rounds
    from stages.train.worker import train  # torch takes seconds: first the lines above

    try:
        return train(job, stop)
    except SftError as error:
        return write_failure(work.failure(rank), error)


def _print_to(log: Path) -> None:
    """Send what this process and its libraries print to a file, line by line."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # everything is on disk; taking torch apart would take the interpreter another second
