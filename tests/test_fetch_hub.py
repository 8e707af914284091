"""Fetching from a Hub: a small one of our own on a loopback port, asked by the real client in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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

folder = Path(sys.argv[1])
digests = FileDigests(folder / "digests.sqlite")
base = {"base_model": "b", "learning_rate": 1e-4, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
for line in sys.stdin:
    run = RunConfig(**base, datasets=[{"type": "alpaca", **json.loads(line)}])
    try:
        result = run_stage(STAGE, Context(run, digests), {}, Store(folder / "store", digests))
    except SftError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)
        continue
    facts = result.artifact.facts["datasets"][0]
    shards = [pq.read_table(result.artifact.path(shard["file"])) for shard in facts["shards"]]
    rows = [row.decode() for shard in shards for row in shard["row"].to_pylist()]
    source = result.artifact.manifest.inputs["datasets"][0]["source"]
    answer = {"status": result.status, "key": result.artifact.key, "source": source, "rows": rows}
    print(json.dumps({**answer, "imported": "datasets" in sys.modules}), flush=True)
"""


class Client:
    """A process in which the Hub's client has the address of our endpoint from its start."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf")}
        self._errors = (folder / "errors.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", FETCH, str(folder)],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)
        self._errors.close()

    def fetch(self, **dataset: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataset) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        self._errors.seek(0)
        assert line, self._errors.read()
        answer: dict[str, Any] = json.loads(line)
        return answer


def write(hub: Hub, name: str, content: str) -> None:
    path = hub.folder / "datasets" / "team" / "chats" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as hub:
        write(hub, "train.jsonl", '{"n": 1}\n{"n":  2}\n{"n": 3}\n')
        write(hub, "test.jsonl", '{"n": 4}\n')
        write(hub, "extra/more.csv", "n\n5\n")
        yield hub


def test_a_data_set_is_pinned_to_the_commit_that_its_revision_means(hub: Hub, tmp_path: Path) -> None:
    commit = hub.commit("datasets", "team/chats")
    with Client(hub, tmp_path) as client:
        first = client.fetch(path="team/chats")
        assert first["rows"] == ['{"n": 1}', '{"n":  2}', '{"n": 3}']
        assert first["source"] == {"hub": "team/chats", "commit": commit}
        assert first["imported"]

        write(hub, "train.jsonl", '{"n": 1}\n')
        changed = client.fetch(path="team/chats")
        assert (changed["status"], changed["rows"]) == ("ran", ['{"n": 1}'])
        assert changed["key"] != first["key"]

        hub.requests.clear()
        pinned = client.fetch(path="team/chats", revision=commit)
        assert (pinned["status"], pinned["key"]) == ("reused", first["key"])
        assert hub.requests == []  # a commit cannot move: nobody is asked
        assert client.fetch(path="team/chats", revision=commit, split="train[1:]")["rows"] == first["rows"][1:]

    hub.requests.clear()
    with Client(hub, tmp_path) as client:
        again = client.fetch(path="team/chats")
        assert (again["status"], again["key"]) == ("reused", changed["key"])
        assert not any("resolve" in request or "tree" in request for request in hub.requests)
        assert not again["imported"]  # what is there already costs no import of `datasets`


def test_splits_files_and_what_the_configuration_got_wrong(hub: Hub, tmp_path: Path) -> None:
    with Client(hub, tmp_path) as client:
        assert client.fetch(path="team/chats", split="test+train[1:2]")["rows"] == ['{"n": 4}', '{"n":  2}']
        assert client.fetch(path="team/chats", data_files="extra/*.csv")["rows"] == ['{"n":"5"}']
        unknown = "datasets.0.path = team/chat: there is no such file or folder here, and no such data set on the Hub"
        wrong = {
            unknown: {"path": "team/chat"},
            "datasets.0.revision = v2": {"path": "team/chats", "revision": "v2"},
            "no split validation; known: test, train": {"path": "team/chats", "split": "validation"},
            "datasets.0.data_files = none.jsonl": {"path": "team/chats", "data_files": "none.jsonl"},
            "datasets.0.name = other": {"path": "team/chats", "name": "other"},
        }
        for expected, dataset in wrong.items():
            answer = client.fetch(**dataset)
            assert (answer["error"], expected in answer["text"]) == ("ConfigError", True), answer
        hub.broken = True
        assert client.fetch(path="team/chats")["error"] == "TransientError"  # may be tried again
