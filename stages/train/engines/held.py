"""Runs a command until it ends or standard input does: what a closed remote shell leaves is ended here.

python -m stages.train.engines.held COMMAND ...
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from stages.lifeline import bound
from stages.train.engines.local import end_tree

GRACE_SECONDS = 20.0


def main() -> int:
    """Run the command and return its exit code, 137 if it was killed."""
    child = subprocess.Popen(bound(sys.argv[1:]), stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        end_tree(child, GRACE_SECONDS)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main()
    os._exit(code)  # the thread may be reading, and the interpreter does not end while it holds standard input
