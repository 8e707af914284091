"""The manual: it builds without a warning, its commands exist, its YAML is valid."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from configs.load import load_run
from flows.cli import cli
from tests.project import Project

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "infra" / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    found = []
    for indent, name, text in BLOCK.findall(page.read_text()):
        if name == language:
            found.append("\n".join(line.removeprefix(indent) for line in text.splitlines()))
    return found


def commands(page: Path) -> list[list[str]]:
    lines = [line for text in blocks(page, "sh") for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("sft ")]
    inline = re.findall(r"`(sft [a-z]+ [^`]+)`", page.read_text())
    return words + [shlex.split(text) for text in inline if "|" not in text and "..." not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    for _, name, *words in commands(page):
        found: click.Command = cli.commands[name]
        if isinstance(found, click.Group):
            found = found.commands[words.pop(0)]
        known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
        keys = "words" in {parameter.name for parameter in found.params}
        for word in words:
            option = word.partition("=")[0]
            if option.startswith("--") and not keys:
                assert option in known, f"{page.name}: sft {name} has no {option}"


@pytest.mark.parametrize("name", ["operations", "clusters", "profiling", "trackers", "known-issues"])
def test_the_yaml_of_a_page_is_valid_in_a_run(name: str, tmp_path: Path) -> None:
    project = Project(tmp_path)
    for text in blocks(ROOT / "infra" / "docs" / f"{name}.md", "yaml"):
        changes: dict[str, Any] = yaml.safe_load(text)
        project.configure(**changes)
        load_run(tmp_path / "run.yaml")


def test_the_manual_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "infra" / "mkdocs.yml")]
    done = subprocess.run([*command, "--site-dir", str(tmp_path / "site")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "operations" / "index.html").exists()
