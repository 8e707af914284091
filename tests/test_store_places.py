"""The same store in a folder, on S3 and on Google Cloud Storage, with real servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.artifacts import Artifact, FileDigests, Store, digest_of, sha256_file
from stages.artifacts.collect import collect, removable
from stages.artifacts.opening import open_store
from stages.artifacts.verify import repair, verify
from stages.errors import ConfigError, DamagedArtifactError, StoreError
from stages.lifeline import bound
from tests.store_servers import ENVIRONMENT, SECRET, Server, Where, serving

REMOTE = ("s3", "gcs", pytest.param("gcs-loose", marks=pytest.mark.slow))
KINDS = ("folder", *REMOTE)
INPUTS = {"stage": "pack", "version": 1, "sequence_len": 8}
KEY = digest_of(INPUTS)
SHARDS = {"a.bin": b"first shard", "part/b.bin": b"second shard" * 100, "empty.bin": b""}


@dataclass
class Fleet:
    """One store, seen by machines that share nothing else."""

    where: Where | Path
    folder: Path

    def machine(self, name: str = "first", **options: Any) -> Store:
        digests = FileDigests(self.folder / name / "digests.sqlite")
        if isinstance(self.where, Path):
            return Store(self.where, digests)
        return self.where.open(self.folder / name / "cache", digests, **options)

    def write(self, name: str, content: bytes) -> None:
        if isinstance(self.where, Path):
            path = self.where / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        else:
            self.where.write(name, content)

    def remove(self, name: str) -> None:
        if isinstance(self.where, Path):
            (self.where / name).unlink()
        else:
            self.where.remove(name)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with ExitStack() as running:
        kinds = ("s3", "gcs", "gcs-loose")
        yield {kind: running.enter_context(serving(kind, tmp_path_factory.mktemp(kind))) for kind in kinds}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=KINDS)
def fleet(request: pytest.FixtureRequest, servers: dict[str, Server], tmp_path: Path) -> Fleet:
    kind = request.param
    return Fleet(tmp_path / "store" if kind == "folder" else servers[kind].place(), tmp_path)


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest, servers: dict[str, Server], tmp_path: Path) -> Fleet:
    return Fleet(servers[request.param].place(), tmp_path)


@pytest.fixture
def on_s3(servers: dict[str, Server], tmp_path: Path) -> Fleet:
    return Fleet(servers["s3"].place(), tmp_path)


def make(store: Store, shards: dict[str, bytes] = SHARDS, inputs: dict[str, object] = INPUTS) -> Artifact:
    with store.lock("pack", digest_of(inputs)), store.writer("pack", inputs, {}) as writer:
        for name, content in shards.items():
            writer.write(name, content)
        writer.write("log.txt", str(time.time()).encode(), volatile=True)
        return writer.commit(facts={"shards": len(shards)})


def test_what_one_machine_writes_another_reads(fleet: Fleet) -> None:
    written = make(fleet.machine())
    found = fleet.machine("second").find("pack", KEY)
    assert found is not None
    assert found.digest == written.digest
    assert {name: found.path(name).read_bytes() for name in SHARDS} == SHARDS
    assert found.folder.is_dir()
    assert found.damaged(sha256_file) == []
    assert found.address.endswith(f"/pack/{KEY}")


def test_a_bucket_holds_what_a_folder_holds(remote: Fleet, tmp_path: Path) -> None:
    """A folder that is copied object by object is the same store: names, bytes, digests."""
    original = make(Store(tmp_path / "folder"))
    for path in (tmp_path / "folder" / "pack").rglob("*"):
        if path.is_file():
            remote.write(path.relative_to(tmp_path / "folder").as_posix(), path.read_bytes())
    found = remote.machine().find("pack", KEY)
    assert found is not None
    assert found.digest == original.digest
    assert found.folder.joinpath("part/b.bin").read_bytes() == SHARDS["part/b.bin"]
    made = make(remote.machine(), inputs={**INPUTS, "sequence_len": 9})
    assert isinstance(remote.where, Where)
    names = {name.removeprefix(f"pack/{made.key}/") for name in remote.where.names() if made.key in name}
    assert names >= {"manifest.json", "log.txt", *SHARDS}


@pytest.mark.parametrize("harm", ["missing", "short", "flipped", "manifest"])
def test_damage_is_a_miss_and_is_made_again(fleet: Fleet, harm: str) -> None:
    artifact = make(fleet.machine())
    name = f"pack/{KEY}/part/b.bin"
    if harm == "missing":
        fleet.remove(name)
    elif harm == "short":
        fleet.write(name, SHARDS["part/b.bin"][:-1])
    elif harm == "flipped":
        fleet.write(name, SHARDS["part/b.bin"].replace(b"d shard", b"d_shard"))
    else:
        record = artifact.manifest.model_dump_json(indent=1).replace('"shards": 3', '"shards": 4')
        fleet.write(f"pack/{KEY}/manifest.json", record.encode())
    second = fleet.machine("second")
    found = second.find("pack", KEY)
    if found is not None:  # only the bytes are wrong: that is seen when they come
        assert harm == "flipped"
        with pytest.raises(DamagedArtifactError, match=r"part/b\.bin"):
            _ = found.folder
    assert second.find("pack", KEY) is None
    [finding] = verify(fleet.machine("third"))[1]
    assert finding.kind == "damaged"
    assert finding.name == (f"pack/{KEY}/manifest.json" if harm == "manifest" else name)
    again = make(second)
    assert again.digest == artifact.digest
    for machine in ("second", "third"):
        whole = fleet.machine(machine).find("pack", KEY)
        assert whole is not None
        assert whole.folder.joinpath("part/b.bin").read_bytes() == SHARDS["part/b.bin"]
    assert verify(fleet.machine()) == (1, [])


def test_repair_removes_what_is_damaged_and_what_belongs_to_nothing(fleet: Fleet) -> None:
    store = fleet.machine()
    whole = make(store, inputs={**INPUTS, "sequence_len": 16})
    make(store)
    fleet.write(f"pack/{KEY}/a.bin", b"First shard")
    fleet.write(f"pack/{KEY}/part/b.bin", b"short")
    fleet.write(f"pack/{whole.key}/stray.tmp", b"x")
    fleet.write(f"pack/{'0' * 64}/a.bin", b"never finished")
    findings = verify(fleet.machine("second"))[1]
    assert sorted((finding.kind, finding.name.rpartition("/")[2]) for finding in findings) == [
        ("damaged", "a.bin"),
        ("damaged", "b.bin"),
        ("orphaned", "a.bin"),
        ("orphaned", "stray.tmp"),
    ]
    assert len(repair(store, findings)) == 4
    assert verify(store) == (1, [])
    assert store.find("pack", KEY) is None
    assert store.find("pack", whole.key) is not None


def test_two_contents_for_one_key_are_reported_and_the_first_is_kept(fleet: Fleet) -> None:
    first, second = fleet.machine(), fleet.machine("second")
    with second.writer("pack", INPUTS, {}) as slow:
        kept = make(first)
        slow.write("a.bin", b"something else")
        with pytest.raises(StoreError, match="two runs made different content for one key"):
            slow.commit(facts={"shards": 3})
    found = fleet.machine("third").find("pack", KEY)
    assert found is not None
    assert found.digest == kept.digest


def test_equal_work_of_two_machines_without_a_lease_is_one_whole_artifact(remote: Fleet) -> None:
    """As where leases do not hold: both write at the same time."""
    stores = [remote.machine(f"machine-{number}") for number in range(3)]
    barrier, digests = threading.Barrier(len(stores)), []

    def produce(store: Store) -> None:
        with store.writer("pack", INPUTS, {}) as writer:
            for name, content in SHARDS.items():
                writer.write(name, content)
            writer.write("log.txt", os.urandom(8), volatile=True)
            barrier.wait()
            digests.append(writer.commit(facts={"shards": 3}).digest)

    threads = [threading.Thread(target=produce, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == len(stores)
    assert len(set(digests)) == 1
    found = remote.machine("reader").find("pack", KEY)
    assert found is not None
    assert found.folder.joinpath("part/b.bin").read_bytes() == SHARDS["part/b.bin"]


def test_the_newest_is_found_and_uses_are_kept(fleet: Fleet) -> None:
    store = fleet.machine()
    assert store.newest("pack") is None
    held = make(store)
    other = make(store, inputs={**INPUTS, "sequence_len": 16})
    newest = fleet.machine("second").newest("pack")
    assert newest is not None
    assert newest.key == other.key
    store.note_run("out", [held])
    assert removable(store, days=1) == []
    found = removable(store, days=0)
    assert [item.address for item in found] == [other.address]
    with fleet.machine("second").lock("pack", other.key):
        assert removable(store, days=0) == []
        assert collect(store, found) == []
    time.sleep(1.1)  # an object's time has whole seconds
    fleet.machine("second").note_use(other)
    assert collect(store, found) == []
    assert [item.key for item in store.artifacts("pack")] == [held.key, other.key]
    assert len(collect(store, removable(store, days=0))) == 1
    assert [item.key for item in fleet.machine("second").artifacts()] == [held.key]
    newest = store.newest("pack")
    assert newest is not None
    assert newest.key == held.key


HOLDER = """
import sys, time
from pathlib import Path
from stages.artifacts.opening import open_store
options = {"endpoint_url": sys.argv[2]}
store = open_store(sys.argv[1], options=options, cache=Path(sys.argv[3]), lease_seconds=4)
with store.lock("pack", sys.argv[4]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(fleet: Fleet, *, as_other_machine: bool) -> Iterator[None]:
    """Hold the lease in a process, killed in the end; in its own process namespace it looks like another machine."""
    assert isinstance(fleet.where, Where)
    command = [sys.executable, "-c", HOLDER, fleet.where.address, fleet.where.server.url]
    command += [str(fleet.folder / "holder"), KEY]
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"] if as_other_machine else []
    with subprocess.Popen(bound([*unshare, *command]), stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.kill()


@pytest.mark.parametrize("kind", ["s3", pytest.param("gcs", marks=pytest.mark.slow)])
def test_a_lease_is_waited_for_and_outlives_its_dead_holder_by_its_duration_at_most(
    kind: str, servers: dict[str, Server], tmp_path: Path
) -> None:
    fleet = Fleet(servers[kind].place(), tmp_path)
    with held_elsewhere(fleet, as_other_machine=shutil.which("unshare") is not None):
        with fleet.machine(lease_seconds=4).place.hold(f"pack-{KEY}", wait=False) as is_ours:
            assert not is_ours
        time.sleep(5)  # longer than the lease: it is renewed
        with fleet.machine(lease_seconds=4).place.hold(f"pack-{KEY}", wait=False) as is_ours:
            assert not is_ours
    started = time.monotonic()
    with fleet.machine(lease_seconds=4).lock("pack", KEY):
        assert time.monotonic() - started < 4 + 3


ONCE = """
import sys, time
from pathlib import Path
from stages.artifacts.opening import open_store
store = open_store(sys.argv[1], options={"endpoint_url": sys.argv[2]}, cache=Path(sys.argv[3]))
inputs = {"stage": "pack", "round": sys.argv[5]}
with store.lock("pack", sys.argv[4]):
    artifact = store.find("pack", sys.argv[4])
    if artifact is None:
        with store.writer("pack", inputs, {}) as writer:
            time.sleep(1)
            writer.write("a.bin", b"x")
            artifact = writer.commit(facts={})
            print("made", artifact.digest)
    else:
        print("found", artifact.digest)
"""


@pytest.mark.parametrize("kind", ["s3", pytest.param("gcs", marks=pytest.mark.slow)])
def test_of_three_machines_that_start_together_one_does_the_work(
    kind: str, servers: dict[str, Server], tmp_path: Path
) -> None:
    where = servers[kind].place()
    key = digest_of({"stage": "pack", "round": "1"})
    machines = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                ONCE,
                where.address,
                where.server.url,
                str(tmp_path / f"machine-{number}"),
                key,
                "1",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    said = [machine.communicate(timeout=120)[0].split() for machine in machines]
    assert sorted(words[0] for words in said) == ["found", "found", "made"]
    assert len({words[1] for words in said}) == 1


def test_a_holder_of_this_machine_that_died_is_not_waited_for(on_s3: Fleet) -> None:
    with held_elsewhere(on_s3, as_other_machine=False):
        pass
    started = time.monotonic()
    with on_s3.machine(lease_seconds=300).lock("pack", KEY):
        assert time.monotonic() - started < 10


def test_a_lost_lease_stops_the_commit(on_s3: Fleet) -> None:
    store = on_s3.machine(lease_seconds=1)
    with store.lock("pack", KEY), store.writer("pack", INPUTS, {}) as writer:
        writer.write("a.bin", b"x")
        assert isinstance(on_s3.where, Where)
        on_s3.where.write(f".leases/pack-{KEY}", b'{"holder": "another", "seconds": 60}')
        time.sleep(1.5)
        with pytest.raises(Exception, match="the lease on pack-"):
            writer.commit(facts={})
    assert on_s3.machine("second").find("pack", KEY) is None


def test_a_server_without_conditions_is_found_out_and_said(
    servers: dict[str, Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(Fleet(servers["gcs-loose"].place(), tmp_path / "loose").machine())
    assert "does not enforce conditional writes" in caplog.text
    caplog.clear()
    make(Fleet(servers["gcs"].place(), tmp_path / "strict").machine())
    assert "does not enforce" not in caplog.text


def test_the_cache_keeps_to_its_limit_and_keeps_what_was_used_last(on_s3: Fleet) -> None:
    content = {"a.bin": os.urandom(40_000)}
    keys = [make(on_s3.machine(), content, {**INPUTS, "sequence_len": n}).key for n in range(3)]
    cache = on_s3.folder / "small" / "cache"
    for key in keys:  # a process each, as its pins last as long as it lives
        script = (
            "import sys; from pathlib import Path;"
            "from stages.artifacts.opening import open_store;"
            "s = open_store(sys.argv[1], options={'endpoint_url': sys.argv[2]}, cache=Path(sys.argv[3]),"
            " cache_bytes=100_000); print(s.find('pack', sys.argv[4]).folder)"
        )
        assert isinstance(on_s3.where, Where)
        arguments = [on_s3.where.address, on_s3.where.server.url, str(cache), key]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    kept = {path.parent.name for path in cache.rglob("a.bin")}
    assert kept == set(keys[1:])


def test_a_damaged_copy_in_the_cache_is_brought_again(on_s3: Fleet) -> None:
    make(on_s3.machine())
    first = on_s3.machine("second").find("pack", KEY)
    assert first is not None
    copy = first.path("a.bin")
    copy.write_bytes(b"First shard")
    os.utime(copy, (1, 1))
    again = on_s3.machine("second").find("pack", KEY)
    assert again is not None
    assert again.path("a.bin").read_bytes() == SHARDS["a.bin"]


def test_refusals_are_said_in_one_sentence_without_secrets(servers: dict[str, Server], tmp_path: Path) -> None:
    where = servers["s3"].place()
    os.environ["AWS_SECRET_ACCESS_KEY"] = "another-planted-secret"
    with pytest.raises(ConfigError) as raised:
        make(where.open(tmp_path / "cache"))
    text = str(raised.value)
    assert where.address in text
    assert "which credentials are used" in text
    assert "planted" not in text
    assert SECRET not in text
    for server in (servers["s3"], servers["gcs"]):
        os.environ["AWS_SECRET_ACCESS_KEY"] = SECRET
        nowhere = f"{server.scheme}://No_Such_Bucket/x"
        with pytest.raises(ConfigError, match="bucket") as raised:
            make(open_store(nowhere, options={"endpoint_url": server.url}, cache=tmp_path / "cache"))
        assert nowhere in str(raised.value)
    for address, what in {"ftp://x/y": "a store is a folder", "s3://user:pw@bucket/x": "credentials in it"}.items():
        with pytest.raises(ConfigError, match=what) as raised:
            open_store(address)
        assert "pw@" not in str(raised.value)
