"""Fetching from a Hub: a small one of our own on a loopback port, asked by the real client in its own process."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.hub_endpoint import Hub, serving
from tests.store_servers import gcs_server, s3_server
from tests.web_server import file_server

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

    def __init__(self, hub: Hub, folder: Path, **more: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), **more}
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


def test_a_private_data_set_needs_its_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_ofTheTeam000000000000"
    with Client(hub, tmp_path) as client:
        refused = client.fetch(path="team/chats")
        assert refused["error"] == "ConfigError"
        assert "no such data set on the Hub that this account can read" in refused["text"]
    with Client(hub, tmp_path, HF_TOKEN=hub.token) as client:
        assert len(client.fetch(path="team/chats")["rows"]) == 3


EXAMPLES = re.search(
    r"```yaml\n(datasets:.*?)```", (Path(__file__).parents[1] / "infra/docs/sources.md").read_text(), re.S
)


@pytest.mark.slow
def test_every_example_of_the_page_on_sources_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's buckets and hosts are servers of this machine here; everything else is as it stands there."""
    assert EXAMPLES
    line = b'{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}\n'
    write(hub, "train.jsonl", line.decode())
    write(hub, "test.jsonl", line.decode())
    write(hub, "extra/more.jsonl", line.decode())
    files = {"chats.jsonl": line * 2, "chats/train.jsonl": line * 2, "chats/test.jsonl": line}
    for folder in (tmp_path, tmp_path / "web"):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server() as s3, gcs_server() as gcs, file_server(tmp_path / "web") as web:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs)
        fill_buckets(tmp_path, line)
        with Client(hub, tmp_path) as client:
            for example in yaml.safe_load(EXAMPLES[1].replace("https://example.org", web.endpoint))["datasets"]:
                local = (tmp_path / example["path"]).exists() or (
                    "*" in example["path"] and "://" not in example["path"]
                )
                found = client.fetch(**{**example, "path": str(tmp_path / example["path"])} if local else example)
                assert found.get("rows"), (example, found)


def fill_buckets(folder: Path, line: bytes) -> None:
    import datasets
    import gcsfs

    rows = datasets.Dataset.from_list([json.loads(line)] * 3)
    datasets.disable_progress_bars()
    rows.save_to_disk(folder / "saved")
    bucket = boto3.resource("s3").Bucket("team-data")
    bucket.create()
    bucket.put_object(Key="chats/train.jsonl.gz", Body=gzip.compress(line))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([json.loads(line)]), buffer)
    bucket.put_object(Key="chats/part-0.parquet", Body=buffer.getvalue())
    for path in (folder / "saved").iterdir():
        bucket.put_object(Key=f"saved/{path.name}", Body=path.read_bytes())
    google = gcsfs.GCSFileSystem(token="anon", project="test")
    google.mkdir("team-data")
    google.pipe_file("team-data/chats/train.jsonl", line)
