"""The store: whatever happens to a writer, a reader sees a whole artifact or none."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from stages.artifacts import Artifact, FileDigests, Store, canonical_json, digest_of, sha256_file
from stages.artifacts.collect import collect, removable
from stages.artifacts.place import TEMPORARY
from stages.errors import StoreError

INPUTS = {"stage": "pack", "version": 1, "sequence_len": 8}
KEY = digest_of(INPUTS)
SHARDS = {"a.bin": b"first shard", "part/b.bin": b"second shard" * 100}


EXPECTED_NAMES = {"a.bin", "b.bin", "log.txt", "manifest.json", ".used"}


def write_artifact(store: Store, shards: dict[str, bytes] = SHARDS, inputs: dict[str, object] = INPUTS) -> Artifact:
    with store.lock("pack", digest_of(inputs)), store.writer("pack", inputs, {}) as writer:
        for name, content in shards.items():
            if writer.finished(name) is None:
                with writer.create(name) as draft:
                    draft.path.write_bytes(content)
                    draft.notes["bytes"] = len(content)
        writer.write("log.txt", str(time.time()).encode(), volatile=True)
        return writer.commit(facts={"shards": len(shards)})


def test_an_artifact_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = write_artifact(Store(tmp_path))
    found = Store(tmp_path).find("pack", KEY)
    assert found is not None
    assert found.digest == written.digest
    assert found.facts == {"shards": 2}
    assert {name: found.path(name).read_bytes() for name in SHARDS} == SHARDS
    assert found.damaged(sha256_file) == []


def test_the_key_is_the_sha256_of_sorted_json() -> None:
    assert canonical_json({"b": 1, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'.encode()
    assert digest_of({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def _killed_at(point: int, root: Path) -> bool:
    """Write the artifact in a child process that is killed at its n-th file-system operation; True if it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}:
                seen += 1
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        write_artifact(Store(root))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_writer_killed_at_any_operation_leaves_all_or_nothing(tmp_path: Path) -> None:
    reference = write_artifact(Store(tmp_path / "reference"))
    points = 0
    for point in range(1, 500):
        root = tmp_path / "store"
        shutil.rmtree(root, ignore_errors=True)
        if not _killed_at(point, root):
            break
        points += 1
        after_kill = Store(root).find("pack", KEY)
        assert after_kill is None or after_kill.damaged(sha256_file) == []
        again = write_artifact(Store(root)) if after_kill is None else after_kill
        assert again.digest == reference.digest
        assert not list((root / "pack").rglob(f"{TEMPORARY}*")), f"left behind after a kill at operation {point}"
        Store(root).note_run("out", [again])
        collect(Store(root), removable(Store(root), days=0))
        assert {path.name for path in again.folder.rglob("*") if path.is_file()} == EXPECTED_NAMES
        assert not list((root / ".work").rglob("*.bin")), f"not collected after a kill at operation {point}"
    assert points > 20


def test_finished_shards_are_not_written_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writer("pack", INPUTS, {}) as writer, writer.create("a.bin") as draft:
        draft.path.write_bytes(SHARDS["a.bin"])
        draft.notes["bytes"] = 11
    with store.writer("pack", INPUTS, {}) as writer:
        assert writer.finished("a.bin") == {"bytes": 11}
        assert writer.finished("part/b.bin") is None
    (writer.work / ".parts" / "a.bin").write_bytes(b"First shard")
    with store.writer("pack", INPUTS, {}) as writer:
        assert writer.finished("a.bin") is None


@pytest.mark.parametrize("harm", ["missing", "short", "flipped"])
def test_damage_is_found(tmp_path: Path, harm: str) -> None:
    artifact = write_artifact(Store(tmp_path))
    path = artifact.path("a.bin")
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"first shar" if harm == "short" else b"first_shard")
    assert (Store(tmp_path).find("pack", KEY) is None) == (harm != "flipped")
    assert Store(tmp_path, FileDigests(tmp_path / "memory.sqlite")).find("pack", KEY) is None
    [sentence] = artifact.damaged(sha256_file)
    assert str(path) in sentence
    assert write_artifact(Store(tmp_path)).damaged(sha256_file) == []


def test_two_contents_for_one_key_are_reported_and_the_first_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writer("pack", INPUTS, {}) as slow:
        write_artifact(store)
        slow.write("a.bin", b"something else")
        with pytest.raises(StoreError, match="two runs made different content for one key"):
            slow.commit(facts={"shards": 2})


def test_equal_content_from_two_writers_is_one_artifact(tmp_path: Path) -> None:
    first = write_artifact(Store(tmp_path))
    (first.folder / "manifest.json").unlink()
    assert write_artifact(Store(tmp_path)).digest == first.digest


def test_volatile_files_do_not_change_the_digest(tmp_path: Path) -> None:
    one, two = write_artifact(Store(tmp_path / "one")), write_artifact(Store(tmp_path / "two"))
    assert one.path("log.txt").read_bytes() != two.path("log.txt").read_bytes()
    assert one.digest == two.digest


def test_a_copied_tree_is_a_valid_store(tmp_path: Path) -> None:
    original = write_artifact(Store(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    found = Store(tmp_path / "there").find("pack", KEY)
    assert found is not None
    assert found.digest == original.digest
    assert str(tmp_path) not in (found.folder / "manifest.json").read_text()


def test_a_lock_waits_for_a_living_holder_and_not_for_a_dead_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        with store.lock("pack", KEY):
            os.write(write, b"x")
            time.sleep(60)
    os.read(read, 1)
    os.kill(holder, signal.SIGKILL)
    started = time.monotonic()
    with store.lock("pack", KEY):
        assert time.monotonic() - started < 5
    os.waitpid(holder, 0)


def test_collection_keeps_what_runs_hold_and_what_was_used_lately(tmp_path: Path) -> None:
    store = Store(tmp_path)
    held = write_artifact(store)
    other = write_artifact(store, inputs={**INPUTS, "sequence_len": 16})
    store.note_run("out", [held])
    assert removable(store, days=1) == []
    assert [item.address for item in removable(store, days=0)] == [str(other.folder)]
    collect(store, removable(store, days=0))
    assert store.find("pack", KEY) is not None
    assert store.find("pack", other.key) is None
    released = frozenset({"out"})
    collect(store, removable(store, days=0, forget=released), released)
    assert store.find("pack", KEY) is None


def test_collection_leaves_what_is_being_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock("pack", KEY), store.writer("pack", INPUTS, {}) as writer:
        writer.write("a.bin", b"x")
        assert removable(store, days=0) == []
    assert [item.why for item in removable(store, days=0)] == ["left for a next try"]


def test_file_digests_are_remembered_but_never_stale(tmp_path: Path) -> None:
    digests, path = FileDigests(tmp_path / "memory.sqlite"), tmp_path / "data.jsonl"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    assert digests.sha256(path) == sha256_file(path)
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert digests.sha256(path) == sha256_file(path)
