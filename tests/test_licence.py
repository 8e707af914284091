"""The licence of a base model or data set: what its own card says, asked for once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.base_model import ModelSource
from stages.publish.licence import Licence, licence_of_model
from tests.hub_endpoint import serving

OTHER = "---\nlicense: other\nlicense_name: llama\nlicense_link: LICENSE\n---\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlicense: mit\n---\n# A model"}, Licence("mit")),
        ({"README.md": OTHER}, Licence("other", "llama", "LICENSE")),
        ({"README.md": "---\nlicense: [mit, apache-2.0]\n---\n"}, Licence("mit, apache-2.0")),
        ({"README.md": "# no metadata", "config.json": '{"license": "gpl"}'}, Licence("gpl")),
        ({"README.md": "---\nlicense: [unclosed\n---\n"}, Licence()),
        ({"README.md": "---\n- a list\n---\n"}, Licence()),
        ({}, Licence()),
    ],
)
def test_the_card_of_a_folder(tmp_path: Path, files: dict[str, str], expected: Licence) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of_model(ModelSource(str(tmp_path), None)) == expected


ASK = """
import json, sys
from stages.publish.licence import licence_on_hub
print(json.dumps([licence_on_hub(repo, commit, kind).id for repo, commit, kind in json.loads(sys.argv[1])]))
"""


def test_the_card_of_a_commit_is_asked_for_once(tmp_path: Path) -> None:
    for kind, licence in (("models", "mit"), ("datasets", "odbl")):
        folder = tmp_path / "hub" / kind / "some" / "thing"
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    with serving(tmp_path / "hub") as hub:
        commits = {kind: hub.commit(kind, "some/thing") for kind in ("models", "datasets")}
        asked = [["some/thing", commits["models"], "model"], ["some/thing", commits["datasets"], "dataset"]]
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
        }

        def ask(questions: list[list[str]]) -> list[str | None]:
            command = [sys.executable, "-c", ASK, json.dumps(questions)]
            found: list[str | None] = json.loads(subprocess.check_output(command, env=environment))
            return found

        assert ask(asked) == ["mit", "odbl"]
        hub.requests.clear()
        assert ask(asked) == ["mit", "odbl"]
        assert not hub.requests
        assert ask([["some/other", "0" * 40, "model"]]) == [None]
