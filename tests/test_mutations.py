"""More than 400 wrong files: each is refused with sentences that name the place and the remedy, and none takes long."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import ConfigError, Problem
from configs.load import load_run
from tests.mutations import GOOD, KINDS, Mutation

SECONDS = 2.0


def refused(path: Path, mutation: Mutation) -> tuple[Problem, ...]:
    path.write_bytes(mutation.content)
    started = time.process_time()
    try:
        load_run(path)
    except ConfigError as error:
        assert time.process_time() - started < SECONDS
        return error.problems
    return ()


def complaint(path: Path, mutation: Mutation) -> str | None:
    """Return what is missing in the answer to a wrong file."""
    problems = refused(path, mutation)
    text = "\n".join(map(str, problems))
    if not problems:
        return "it is taken for good"
    if not all(problem.rule and problem.remedy and problem.place for problem in problems):
        return f"no rule, no remedy or no place: {text}"
    if mutation.key and mutation.key not in {problem.key for problem in problems}:
        return f"{mutation.key} is not named: {text}"
    return None if mutation.says in text else f"{mutation.says!r} is not said: {text}"


def test_the_file_is_good_before_it_is_made_wrong(tmp_path: Path) -> None:
    assert not refused(tmp_path / "run.yaml", Mutation(GOOD.encode()))
    assert not refused(tmp_path / "run.yaml", Mutation(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()))


def test_there_are_more_than_400() -> None:
    assert sum(len(list(kind())) for kind in KINDS.values()) > 400


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_file_is_refused_with_sentences(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.yaml"
    complaints = {m.content[-300:]: complaint(path, m) for m in KINDS[kind]()}
    assert not {content: text for content, text in complaints.items() if text is not None}


@pytest.mark.parametrize("cut", range(0, len(GOOD), 9))
def test_a_file_cut_anywhere_is_good_or_refused(tmp_path: Path, cut: int) -> None:
    refused(tmp_path / "run.yaml", Mutation(GOOD[:cut].encode()))
    refused(tmp_path / "run.yaml", Mutation(GOOD[cut:].encode()))
    for character in "[{\"'\t&*|>%@:-#,]}!?`":
        refused(tmp_path / "run.yaml", Mutation((GOOD[:cut] + character + GOOD[cut:]).encode()))


@pytest.mark.parametrize("kind", ["typos", "contradictions", "broken YAML", "no text", "too much"])
def test_the_command_says_the_same_without_a_traceback(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run.yaml").write_bytes(list(KINDS[kind]())[-1].content)
    words = [sys.executable, "-m", "flows.cli", "validate", "run.yaml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error run.yaml")
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 20_000
