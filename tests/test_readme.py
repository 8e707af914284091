"""The README: its YAML is valid, and every command of `A run of your own` does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.project import Project

README = (Path(__file__).parent.parent / "README.md").read_text()
SMALL = ("base_model=base", "sequence_len=128", "num_epochs=1", "bf16=false", "output_dir=out", "launcher.threads=1")


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    [found] = [text for text in blocks if containing in text]
    return found


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_runs(tmp_path: Path, prefect_api: str) -> None:
    project = Project.create(tmp_path)
    project.environment["PREFECT_API_URL"] = prefect_api
    (tmp_path / "run.yaml").write_text(block("yaml", "base_model"))
    commands = [shlex.split(line, comments=True) for line in block("sh", "sft run").splitlines()]
    assert len(commands) > 8
    for _, *arguments in commands:
        small = SMALL if arguments[1] == "run.yaml" else ()
        done = project.sft(*arguments, *small)
        if "--jsonl" in arguments:
            assert len(done.out.splitlines()) == 60


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for line in block("sh", "make quickstart").splitlines():
        make, target, *_ = shlex.split(line, comments=True)
        assert make == "make"
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_tour_names_what_is_there() -> None:
    root = Path(__file__).parent.parent
    tour = README.split("## Tour of the tree")[1]
    folder = root
    for line in re.findall(r"^    (.+)$", tour, re.MULTILINE):
        if not line.startswith(" "):
            folder = root / line.split()[0]
            assert folder.is_dir(), folder
        else:
            for name in re.findall(r"(?:^|\s)([a-z_]+(?:\.py|/))\s", f"{line} "):
                assert (folder / name).exists(), f"{folder}/{name}"
