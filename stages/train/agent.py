"""torchrun, which besides tells its processes its own id, and writes down their exit codes.

python -m stages.train.agent REPORT torchrun-arguments ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError
from torch.distributed.run import main as torchrun

from stages.train.extensions import compiled_operators
from stages.train.outcome import AGENT, LOST, STOPPED


def main() -> int:
    """Run torchrun's own main function and return the exit code."""
    os.environ[AGENT] = str(os.getpid())
    report, arguments = Path(sys.argv[1]), sys.argv[2:]
    try:
        with compiled_operators():
            torchrun(arguments)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        records = [
            {"rank": rank, "exit_code": failure.exitcode, "time": failure.timestamp} for rank, failure in failures
        ]
        report.write_bytes(orjson.dumps({"failures": records}))
        return 1
    except SignalException:
        return STOPPED
    except RendezvousConnectionError as error:  # the first node, where the agents meet, is gone
        sys.stderr.write(f"{error}\n")
        return LOST
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # taking torch apart would take the interpreter another second
