"""The lock that a killed compilation leaves, which every later training would wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.train.extensions import compiled_operators

OTHER = """
import sys
from stages.train.extensions import compiled_operators
with compiled_operators():
    print("trains", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    lock = tmp_path / "sft-flow" / "torch-extensions" / torch.__version__ / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return lock


def test_a_lock_that_nobody_holds_is_removed_and_operators_stay_in_one_folder(lock: Path) -> None:
    with compiled_operators():
        assert not lock.exists()
        assert Path(os.environ["TORCH_EXTENSIONS_DIR"]) == lock.parent.parent


def test_a_lock_stays_while_another_training_may_hold_it_and_goes_after_that_was_killed(lock: Path) -> None:
    lock.unlink()
    with subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"trains\n"
        lock.touch()
        with compiled_operators():
            assert lock.exists()
        other.kill()
    os.environ.pop("TORCH_EXTENSIONS_DIR")
    with compiled_operators():
        assert not lock.exists()


def test_a_folder_that_the_user_names_is_left_alone(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(lock.parent.parent))
    with compiled_operators():
        assert lock.exists()
