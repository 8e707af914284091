"""Fetching from a Hub: a small one of our own on a loopback port, asked by the real client in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hub_endpoint import Hub, serving

FETCH = """
import sys, json
from pathlib import Path
import pyarrow.parquet as pq
from configs.schema import RunConfig
from stages.artifacts import FileDigests, Store
from stages.errors import SftError
from stages.fetch import STAGE
from stages.stage import Context, run_stage

folder, dataset = Path(sys.argv[1]), json.loads(sys.argv[2])
config = {"base_model": "b", "datasets": [{"type": "alpaca", **dataset}], "learning_rate": 1e-4}
config |= {"micro_batch_size": 1, "gradient_accumulation_steps": 1}
digests = FileDigests(folder / "digests.sqlite")
try:
    result = run_stage(STAGE, Context(RunConfig(**config), digests), {}, Store(folder / "store", digests))
except SftError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
    sys.exit()
facts = result.artifact.facts["datasets"][0]
shards = [pq.read_table(result.artifact.path(shard["file"])) for shard in facts["shards"]]
rows = [row.decode() for shard in shards for row in shard["row"].to_pylist()]
imported = "datasets" in sys.modules
print(json.dumps({"status": result.status, "key": result.artifact.key, "source": facts["source"], "rows": rows,
                  "imported": imported}))
"""


@dataclass(frozen=True)
class Client:
    hub: Hub
    folder: Path

    def fetch(self, **dataset: Any) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_ETAG_TIMEOUT": "5",
        }
        done = subprocess.run(
            [sys.executable, "-c", FETCH, str(self.folder), json.dumps(dataset)],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def write(self, name: str, content: str) -> None:
        path = self.hub.folder / "datasets" / "team" / "chats" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(tmp_path / "hub") as hub:
        client = Client(hub, tmp_path)
        client.write("train.jsonl", '{"n": 1}\n{"n":  2}\n{"n": 3}\n')
        client.write("test.jsonl", '{"n": 4}\n')
        client.write("extra/more.csv", "n\n5\n")
        yield client


def test_a_data_set_is_pinned_to_the_commit_that_its_revision_means(client: Client) -> None:
    first = client.fetch(path="team/chats")
    commit = client.hub.commit("datasets", "team/chats")
    assert first["rows"] == ['{"n": 1}', '{"n":  2}', '{"n": 3}']
    assert first["source"] == {"hub": "team/chats", "commit": commit}
    assert first["imported"]

    client.hub.requests.clear()
    again = client.fetch(path="team/chats")
    assert (again["status"], again["key"]) == ("reused", first["key"])
    assert [request for request in client.hub.requests if "resolve" in request] == []
    assert not again["imported"]  # what is there already costs no import of `datasets`

    client.write("train.jsonl", '{"n": 1}\n')
    changed = client.fetch(path="team/chats")
    assert (changed["status"], changed["rows"]) == ("ran", ['{"n": 1}'])
    assert changed["key"] != first["key"]

    client.hub.requests.clear()
    pinned = client.fetch(path="team/chats", revision=commit)
    assert (pinned["status"], pinned["key"]) == ("reused", first["key"])
    assert client.hub.requests == []  # a commit cannot move: nobody is asked


def test_splits_and_data_files(client: Client) -> None:
    assert client.fetch(path="team/chats", split="test+train[1:2]")["rows"] == ['{"n": 4}', '{"n":  2}']
    assert client.fetch(path="team/chats", data_files="extra/*.csv")["rows"] == ['{"n":"5"}']


def test_what_the_configuration_got_wrong_is_told_from_what_can_pass(client: Client) -> None:
    unknown = client.fetch(path="team/chat")
    assert unknown["error"] == "ConfigError"
    assert (
        "datasets.0.path = team/chat: there is no such file or folder here, and no such data set on the Hub"
        in (unknown["text"])
    )
    revision = client.fetch(path="team/chats", revision="v2")
    assert (revision["error"], "datasets.0.revision = v2" in revision["text"]) == ("ConfigError", True)
    split = client.fetch(path="team/chats", split="validation")
    assert (split["error"], "no split validation; known: test, train" in split["text"]) == ("ConfigError", True)
    files = client.fetch(path="team/chats", data_files="none.jsonl")
    assert (files["error"], "datasets.0.data_files = none.jsonl" in files["text"]) == ("ConfigError", True)

    client.hub.broken = True
    assert client.fetch(path="team/chats")["error"] == "TransientError"
