"""publish: what lies at the target is the merged model, byte for byte, and a receipt that is never wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from configs import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.errors import ConfigError, StageError, TransientError
from stages.publish import stage as publish
from stages.publish.target import FolderTarget, explain, open_target
from stages.remote.filesystem import open_filesystem
from stages.stage import Context, StageResult, run_stage
from tests.crash.proxy import faulty
from tests.published import upstream_of
from tests.store_servers import gcs_server

MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 4000,
    "model-00002-of-00002.safetensors": b"second",
    "additional_chat_templates/tool.jinja": b"{{ messages }}",
}
SMALLER = {"config.json": b"{}", "model.safetensors": b"one file now"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", FileDigests(tmp_path / "digests.sqlite"))


def run_to(where: str, **keys: Any) -> RunConfig:
    values = {
        "base_model": "somewhere/base",
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "publish": where,
    }
    return RunConfig.model_validate(values | keys)


def merged(store: Store, files: dict[str, bytes] = MODEL) -> Artifact:
    inputs = {"names": sorted(files), "sizes": [len(files[name]) for name in sorted(files)]}
    with store.writer("merge", inputs, {"train": "f" * 64}) as writer:
        for name, content in files.items():
            writer.write(f"model/{name}", content)
        writer.write("merge.log", b"not a part of the model", volatile=True)
        return writer.commit(facts={})


def publish_to(where: str, store: Store, model: Artifact) -> StageResult:
    context = Context(run_to(where), FileDigests(store.root / "digests.sqlite"))
    return run_stage(publish.STAGE, context, upstream_of(store, model), store)


def in_folder(model: Artifact) -> dict[str, Path]:
    folder = model.path("model")
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_the_model_and_a_true_receipt(store: Store, tmp_path: Path) -> None:
    model, target = merged(store), tmp_path / "deep" / "target"
    result = publish_to(str(target), store, model)

    there = files_in(target)
    receipt = json.loads(there.pop("sft-receipt.json"))
    assert there.pop("README.md").startswith(b"---")
    assert there == MODEL
    assert receipt["to"] == str(target)
    assert receipt["model"] == model.digest
    assert receipt["artifacts"] == {"merge": model.key, "train": "f" * 64}
    listed = {entry["path"]: (entry["size"], entry["sha256"]) for entry in receipt["files"]}
    assert listed == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in MODEL.items()}
    assert result.artifact.path("receipt.json").read_bytes() == (target / "sft-receipt.json").read_bytes()
    assert result.artifact.facts["bytes"] == sum(map(len, MODEL.values()))
    assert publish_to(str(target), store, model).status == "reused"


def test_who_edits_the_published_file_does_not_edit_the_artifact(store: Store, tmp_path: Path) -> None:
    model = merged(store)
    publish_to(str(tmp_path / "target"), store, model)
    with (tmp_path / "target" / "config.json").open("r+b") as file:
        file.write(b"!!!!")
    assert model.path("model/config.json").read_bytes() == MODEL["config.json"]


@pytest.mark.parametrize("damage", ["folder", "file", "size", "receipt", "other model"])
def test_a_lost_publication_is_made_again(store: Store, tmp_path: Path, damage: str) -> None:
    model, target = merged(store), tmp_path / "target"
    publish_to(str(target), store, model)
    expected = files_in(target)
    match damage:
        case "folder":
            target.rename(tmp_path / "moved away")
        case "file":
            (target / "model-00002-of-00002.safetensors").unlink()
        case "size":
            (target / "config.json").write_bytes(b"")
        case "receipt":
            (target / "sft-receipt.json").unlink()
        case "other model":  # of the same size, as the same model trained again is
            other = merged(store, {**MODEL, "extra": b"."})
            publish_to(str(target), store, other)
    again = publish_to(str(target), store, model)
    assert again.status == "ran"
    assert files_in(target) == expected


def test_a_new_model_takes_the_place_of_the_old_and_of_nothing_else(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "target"
    publish_to(str(target), store, merged(store))
    (target / "notes.txt").write_text("by hand")
    (target / "model-00002-of-00002.safetensors").write_bytes(b"chang!")  # same size, other bytes: not ours any more
    publish_to(str(target), store, merged(store, SMALLER))

    there = files_in(target)
    kept = {"notes.txt", "model-00002-of-00002.safetensors"}
    assert set(there) == {*SMALLER, "README.md", "sft-receipt.json", *kept}
    assert there["config.json"] == SMALLER["config.json"]


def test_a_card_that_somebody_edited_is_kept_and_one_of_ours_is_replaced(store: Store, tmp_path: Path) -> None:
    target, other = tmp_path / "target", merged(store, SMALLER)
    publish_to(str(target), store, merged(store))
    first = (target / "README.md").read_text()
    publish_to(str(target), store, other)
    second = (target / "README.md").read_text()
    assert second != first  # of another model
    (target / "README.md").write_text("what I say of it")
    assert publish_to(str(target), store, other).status == "reused"  # the model is there
    publish_to(str(target), store, merged(store))
    assert (target / "README.md").read_text() == "what I say of it"
    (target / "README.md").unlink()
    publish_to(str(target), store, other)
    assert (target / "README.md").read_text() == second


def test_a_receipt_cannot_reach_outside_its_folder(store: Store, tmp_path: Path) -> None:
    target, victim = tmp_path / "target", tmp_path / "victim"
    victim.write_bytes(b"mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    target.mkdir()
    listed = [{"path": path, "size": 4, "sha256": digest} for path in ("../victim", str(victim))]
    (target / "sft-receipt.json").write_text(json.dumps({"files": listed}))
    publish_to(str(target), store, merged(store))
    assert victim.read_bytes() == b"mine"


class Broken(FolderTarget):
    """A real folder whose n-th change never happens: the machine is gone at that moment."""

    def __init__(self, root: Path, changes: int) -> None:
        super().__init__(root)
        self.changes = changes

    def _change(self) -> None:
        self.changes -= 1
        if self.changes < 0:
            raise KeyboardInterrupt

    def stage(self, *arguments: Any) -> str | None:
        self._change()
        return super().stage(*arguments)

    def place(self, *arguments: Any) -> None:
        self._change()
        super().place(*arguments)

    def write(self, *arguments: Any) -> None:
        self._change()
        super().write(*arguments)

    def remove(self, *arguments: Any) -> None:
        self._change()
        super().remove(*arguments)


def test_broken_off_anywhere_the_receipt_is_true_and_the_next_try_is_whole(store: Store, tmp_path: Path) -> None:
    old, new = merged(store), merged(store, SMALLER)
    context = Context(run_to("unused"), FileDigests(tmp_path / "digests"))
    files = [entry.model_copy(update={"path": entry.path[6:]}) for entry in new.manifest.files if "/" in entry.path]
    receipt = publish.make_receipt("unused", new, files)
    for changes in range(30):
        target = tmp_path / f"target{changes}"
        publish_to(str(target), store, old)
        transfer = publish.Transfer(Broken(target, changes), in_folder(new), context, total=1)
        try:
            transfer.publish(files, receipt)
        except KeyboardInterrupt:
            if (target / "sft-receipt.json").exists():
                claimed = json.loads((target / "sft-receipt.json").read_bytes())
                assert all(
                    hashlib.sha256((target / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
                    for entry in claimed["files"]
                ), changes
            publish.Transfer(FolderTarget(target), in_folder(new), context, total=1).publish(files, receipt)
            finished = False
        else:
            finished = True
        there = files_in(target)
        assert there.pop("README.md").startswith(b"---")  # of the model before; this one comes without a card
        assert there == {**SMALLER, "sft-receipt.json": receipt}, changes
        if finished:
            break
    assert changes > 6  # of the old receipt, the files, the stale files, the new receipt


class Liar(FolderTarget):
    """A disk that stores a wrong byte."""

    def stage(self, source: Path, name: str, moved: Any) -> str | None:
        wrong = source.with_name("wrong")
        wrong.write_bytes(b"?" + source.read_bytes()[1:])
        return super().stage(wrong, name, moved)


def test_a_byte_that_changed_on_its_way_is_seen(store: Store, tmp_path: Path) -> None:
    model, target = merged(store), tmp_path / "target"
    context = Context(run_to("unused"), FileDigests(tmp_path / "digests"))
    files = [entry.model_copy(update={"path": entry.path[6:]}) for entry in model.manifest.files if "/" in entry.path]
    with pytest.raises(TransientError, match="other bytes"):
        publish.Transfer(Liar(target), in_folder(model), context, total=1).publish(files, b"{}")
    assert files_in(target) == {}


def test_two_publications_at_once_leave_one_whole_model(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "target"
    threads = [
        threading.Thread(target=publish_to, args=(str(target), store, merged(store, files)))
        for files in (MODEL, SMALLER)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = files_in(target)
    listed = json.loads(there.pop("sft-receipt.json"))["files"]
    del there["README.md"]
    assert {entry["path"]: entry["sha256"] for entry in listed} == {
        name: hashlib.sha256(data).hexdigest() for name, data in there.items()
    }


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("memory://models", "not a place that can keep a model"),
        ("s4://bucket/model", "not a place that can keep a model"),
        ("https://example.org/model", "not a place that can keep a model"),
        ("sftp://me:secret@host/model", "password"),
    ],
)
def test_impossible_targets_are_refused_before_anything_is_made(where: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        publish.check_target(run_to(where))
    assert "secret" not in str(caught.value)


def test_the_base_model_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base model"):
        publish.check_target(run_to(str(tmp_path), base_model=str(tmp_path)))


def test_a_file_in_the_way_is_a_wrong_configuration(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="file"):
            publish_to(str(where), store, merged(store))


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (PermissionError(13, "denied"), ConfigError),
        (FileNotFoundError(2, "no such bucket"), ConfigError),
        (OSError(errno.EINVAL, "invalid bucket name"), ConfigError),
        (NoCredentialsError(), ConfigError),
        (OSError(errno.ENOSPC, "disk full"), StageError),
        (ConnectionResetError(104, "reset"), TransientError),
        (TimeoutError("slow"), TransientError),
        (OSError(errno.EBUSY, "slow down"), TransientError),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), TransientError),
        (ClientError({"Error": {"Code": "500"}}, "PutObject"), TransientError),
        (ZeroDivisionError("a bug"), ZeroDivisionError),
    ],
)
def test_only_what_can_pass_is_tried_again(raised: Exception, becomes: type[Exception]) -> None:
    assert type(explain("s3://bucket/model", raised)) is becomes


# --- a real S3 server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    environment = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"models-{os.urandom(4).hex()}"
    client.create_bucket(Bucket=name)
    return boto3.resource("s3").Bucket(name)


def objects_in(bucket: Any, prefix: str) -> dict[str, bytes]:
    return {item.key.removeprefix(prefix): item.get()["Body"].read() for item in bucket.objects.filter(Prefix=prefix)}


def test_s3_holds_the_model_and_is_repaired_and_replaced(store: Store, bucket: Any) -> None:
    where, model = f"s3://{bucket.name}/team/model", merged(store)
    publish_to(where, store, model)
    expected = objects_in(bucket, "team/model/")
    receipt = json.loads(expected["sft-receipt.json"])
    assert {name: expected[name] for name in expected.keys() - {"README.md", "sft-receipt.json"}} == MODEL
    assert receipt["to"] == where
    assert publish_to(where, store, model).status == "reused"

    bucket.Object("team/model/config.json").delete()
    assert publish_to(where, store, model).status == "ran"
    assert objects_in(bucket, "team/model/") == expected

    bucket.put_object(Key="team/model/notes.txt", Body=b"by hand")
    publish_to(where, store, merged(store, SMALLER))
    assert set(objects_in(bucket, "team/model/")) == {*SMALLER, "README.md", "sft-receipt.json", "notes.txt"}


def test_gcs_holds_the_model_and_only_what_is_missing_is_sent_again(store: Store, tmp_path: Path) -> None:
    with gcs_server() as endpoint, faulty(endpoint) as proxy:
        options = {"endpoint_url": proxy.endpoint, "anonymous": True, "project": "test"}
        filesystem, _ = open_filesystem("gs://models", options)
        filesystem.mkdir("models")
        where, model = "gs://models/team/model", merged(store)
        context = Context(
            run_to(where, publish={"to": where, "storage_options": options}), FileDigests(tmp_path / "digests")
        )
        uploads: list[str] = []

        def second_upload_is_lost(number: int, method: str, path: str) -> str | None:
            if method in ("POST", "PUT") and "upload" in path:
                uploads.append(path)
                return "503" if len(uploads) == 2 else None
            return None

        proxy.choose = second_upload_is_lost
        assert run_stage(publish.STAGE, context, upstream_of(store, model), store).status == "ran"
        there = {name: filesystem.cat_file(f"models/team/model/{name}") for name in (*MODEL, "sft-receipt.json")}
        assert {name: there[name] for name in MODEL} == MODEL
        assert run_stage(publish.STAGE, context, upstream_of(store, model), store).status == "reused"
        filesystem.rm_file("models/team/model/config.json")
        uploads.clear()
        assert run_stage(publish.STAGE, context, upstream_of(store, model), store).status == "ran"
        assert not [path for path in uploads if "safetensors" in path]


def test_s3_errors_say_what_to_do(store: Store, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="bucket exists"):
        publish_to("s3://no-such-bucket-here/model", store, merged(store))
    with pytest.raises(ConfigError, match="Check that the folder or bucket exists"):
        publish_to("s3://Not_A_Bucket/model", store, merged(store))


def test_bytes_that_s3_stored_wrong_are_seen(store: Store, bucket: Any) -> None:
    model = merged(store)
    target = open_target(f"s3://{bucket.name}/model")
    place = target.place

    def place_and_tamper(source: Path, name: str, moved: Any) -> None:
        place(source, name, moved)
        bucket.put_object(Key=f"model/{name}", Body=source.read_bytes()[:-1] + b"?")

    target.place = place_and_tamper  # type: ignore[method-assign]
    context = Context(run_to("unused"), FileDigests(store.root / "digests"))
    files = [entry.model_copy(update={"path": entry.path[6:]}) for entry in model.manifest.files if "/" in entry.path]
    with pytest.raises(TransientError, match="other bytes"):
        publish.Transfer(target, in_folder(model), context, total=1).publish(files, b"{}")
    assert "sft-receipt.json" not in objects_in(bucket, "model/")
