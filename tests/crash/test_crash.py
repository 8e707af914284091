"""The short form of the crash laboratory; `make crash` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_wrong_after_kills_and_faults() -> None:
    done = subprocess.run(  # a process of its own: it forks, which must not meet the threads of other tests
        [sys.executable, "-m", "tests.crash", "--short", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.stdout, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(row["kills"] for row in found["rows"]) >= 20
    assert sum(row["faults"] for row in found["rows"]) >= 5
