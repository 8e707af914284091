"""What a dying parent and an impatient person may do: SIGTERM, several times."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

TIDY = """
import signal, sys, time
from stages.lifeline import sigterm_once

def stop(number, frame):
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
with sigterm_once():
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        time.sleep(2)
        print("tidied", flush=True)
print("never")
"""


def test_a_second_sigterm_does_not_cut_the_tidying_up_short() -> None:
    with subprocess.Popen([sys.executable, "-c", TIDY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert process.stdout.read() == "tidied\n"
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
