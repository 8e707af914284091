"""A store on S3 behind a network that breaks: what can pass is waited for, what cannot is one sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.artifacts import Artifact, FileDigests, Store, digest_of
from stages.artifacts import bucket as bucket_module
from stages.artifacts import objects as objects_module
from stages.artifacts.bucket import BucketPlace
from stages.artifacts.collect import collect, removable
from stages.artifacts.opening import open_store
from stages.artifacts.verify import verify
from stages.errors import ConfigError, TransientError
from tests.crash.faults import chance
from tests.crash.proxy import Choice, FaultProxy, faulty
from tests.store_servers import ENVIRONMENT, Server, Where, serving

INPUTS = {"stage": "pack", "version": 1}
KEY = digest_of(INPUTS)
RARE = ("429", "500", "503", "reset", "slow")
FILES = {"a.bin": b"first shard", "b/large.bin": bytes(range(256)) * 4096, "empty.bin": b""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("s3", tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def where(server: Server, monkeypatch: pytest.MonkeyPatch) -> Where:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects_module, "LONGEST_DELAY_SECONDS", 0.5)
    return server.place()


def machine(where: Where, proxy: FaultProxy, folder: Path) -> Store:
    options = {"endpoint_url": proxy.endpoint}
    return open_store(where.address, FileDigests(folder / "digests.sqlite"), options=options, cache=folder / "cache")


def make(store: Store) -> Artifact:
    with store.lock("pack", KEY), store.writer("pack", INPUTS, {}) as writer:
        for name, content in FILES.items():
            writer.write(name, content)
        return writer.commit(facts={"files": len(FILES)})


def write_and_read(where: Where, choose: Choice, folder: Path) -> FaultProxy:
    """Make the artifact on one machine and read it on another, both behind the proxy."""
    with faulty(where.server.url, choose) as proxy:
        proxy.silence = 0.5
        made = make(machine(where, proxy, folder / "first"))
        found = machine(where, proxy, folder / "second").find("pack", KEY)
        assert found is not None
        assert found.digest == made.digest
        assert {name: found.path(name).read_bytes() for name in FILES} == FILES
    whole = where.open(folder / "third").find("pack", KEY)
    assert whole is not None
    assert {name: whole.path(name).read_bytes() for name in FILES} == FILES
    return proxy


@pytest.mark.parametrize(
    "fault",
    ["lost", "cut", "flipped", *(pytest.param(fault, marks=pytest.mark.slow) for fault in RARE)],
)
def test_every_third_request_fails(where: Where, tmp_path: Path, fault: str) -> None:
    proxy = write_and_read(where, lambda number, method, path: fault if number % 3 == 0 else None, tmp_path)
    assert proxy.injected[fault] >= 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_quarter_of_all_requests_fails_in_random_ways(where: Where, tmp_path: Path, seed: int) -> None:
    proxy = write_and_read(where, chance(seed, flips=True, share=0.25), tmp_path)
    assert proxy.injected.total() >= 1  # of about 20 requests


def test_a_create_whose_answer_was_lost_is_ours_and_one_that_came_second_is_not(where: Where, tmp_path: Path) -> None:
    with faulty(where.server.url) as proxy:
        place = machine(where, proxy, tmp_path).place
        assert place.create("first", b"1")
        since = len(proxy.requests)
        proxy.choose = lambda number, method, path: "lost" if number == since + 1 and method == "PUT" else None
        assert place.create("second", b"ours")
        assert proxy.injected["lost"] == 1
        assert not place.create("second", b"another's")
        assert place.read("second") == b"ours"


@pytest.mark.slow
def test_a_store_that_throttles_for_a_while_is_waited_for(where: Where, tmp_path: Path) -> None:
    with faulty(where.server.url) as proxy:
        store = machine(where, proxy, tmp_path)
        made = make(store)
        until = time.monotonic() + 6
        proxy.choose = lambda number, method, path: "503" if time.monotonic() < until else None
        found = store.find("pack", KEY)
        assert found is not None
        assert found.digest == made.digest
        assert time.monotonic() >= until


def test_a_store_that_is_away_is_one_sentence(where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "FIRST_PATIENCE_SECONDS", 2.0)
    with faulty(where.server.url, lambda number, method, path: "reset") as proxy:
        store = machine(where, proxy, tmp_path)
        with pytest.raises(TransientError, match="no answer for") as raised:
            store.find("pack", KEY)
    assert where.address in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_download_goes_on_where_it_broke_off(where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "BLOCK", 1 << 16)
    with faulty(where.server.url) as proxy:
        make(machine(where, proxy, tmp_path / "first"))
        found = machine(where, proxy, tmp_path / "second").find("pack", KEY)
        assert found is not None
        place = found.place
        assert isinstance(place, BucketPlace)
        monkeypatch.setattr(place._objects, "_patience", 0.0)
        blocks = 0

        def break_off(number: int, method: str, path: str) -> str | None:
            nonlocal blocks
            blocks += path.endswith("large.bin") and method == "GET"
            return "reset" if blocks > 8 and path.endswith("large.bin") else None

        proxy.choose = break_off
        with pytest.raises(TransientError):
            found.path("b/large.bin")
        proxy.choose, proxy.ranges[:] = lambda number, method, path: None, []
        monkeypatch.setattr(place._objects, "_patience", 180.0)
        assert found.path("b/large.bin").read_bytes() == FILES["b/large.bin"]
        assert len(proxy.ranges) == 8, "the first eight of the sixteen blocks were kept"


def test_a_permission_that_is_lost_in_the_middle_is_one_sentence_and_nothing_is_lost(
    where: Where, tmp_path: Path
) -> None:
    with faulty(where.server.url) as proxy:
        store = machine(where, proxy, tmp_path)
        proxy.choose = lambda number, method, path: "403" if path.endswith("large.bin") else None
        with pytest.raises(ConfigError, match=r"b/large\.bin.*403.*what they may do there") as raised:
            make(store)
        assert len(str(raised.value).splitlines()) == 1
        assert where.open(tmp_path / "other").find("pack", KEY) is None
        proxy.choose = lambda number, method, path: None
        with store.lock("pack", KEY), store.writer("pack", INPUTS, {}) as writer:
            assert all(writer.finished(name) is not None for name in FILES)
            writer.commit(facts={"files": len(FILES)})
    assert where.open(tmp_path / "other").find("pack", KEY) is not None


SKEWED = """
import datetime, sys
import botocore.auth
now = botocore.auth.get_current_datetime
botocore.auth.get_current_datetime = lambda *given: now(*given) + datetime.timedelta(days=2)
from pathlib import Path
from stages.artifacts.opening import open_store
try:
    open_store(sys.argv[1], options={"endpoint_url": sys.argv[2]}, cache=Path(sys.argv[3])).find("pack", "0" * 64)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_clock_that_is_wrong_is_one_sentence(where: Where, tmp_path: Path) -> None:
    arguments = [where.address, where.server.url, str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", SKEWED, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigError")
    assert "Set this machine's clock" in done.stdout


FULL_STORE = """
import sys
from pathlib import Path
from configs.schema import RunConfig
from stages.artifacts import FileDigests, Store
from stages.stage import Context, Stage, run_stage

def produce(context, upstream, writer):
    writer.write("small.bin", b"x") if writer.finished("small.bin") is None else print("small.bin was kept")
    writer.write("large.bin", bytes(1 << 20))
    return {}

root = Path(sys.argv[1])
context = Context(RunConfig.model_construct(), FileDigests(root / "digests.sqlite"))
try:
    run_stage(Stage("pack", 1, (), lambda context, upstream: {}, produce), context, {}, Store(root / "store"))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount of its own")
def test_a_store_on_a_full_disk_is_one_sentence_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    script = """mount -t tmpfs -o size=400k none "$1" && "$2" -c "$3" "$1"
        mount -o remount,size=4m "$1" && "$2" -c "$3" "$1"; test -f "$1"/store/pack/*/manifest.json && echo made"""
    arguments = [str(tmp_path), sys.executable, FULL_STORE]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "-", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    first, *then = done.stdout.splitlines()
    assert first.startswith("StoreError")
    assert "No space left on device" in first
    assert "sft artifacts gc" in first
    assert then == ["small.bin was kept", "made"]


FULL = """
import sys
from pathlib import Path
from stages.artifacts.bucket import BucketPlace
from stages.artifacts.opening import open_store
store = open_store(sys.argv[1], options={"endpoint_url": sys.argv[2]}, cache=Path(sys.argv[3]))
artifact = store.find("pack", sys.argv[4])
print(len(artifact.path("a.bin").read_bytes()), flush=True)
try:
    artifact.path("b/large.bin")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount of its own")
def test_a_full_disk_is_one_sentence(where: Where, tmp_path: Path) -> None:
    make(where.open(tmp_path / "cache"))
    small = tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=400k none "$1" && exec "$2" -c "$3" "$4" "$5" "$1" "$6"'
    arguments = [str(small), sys.executable, FULL, where.address, where.server.url, KEY]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "-", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    first, second = done.stdout.splitlines()
    assert first == "11"
    assert second.startswith("StoreError")
    assert "No space left on device" in second
    assert "artifact_cache" in second


WRITER = """
import sys
from pathlib import Path
from stages.artifacts import digest_of
from stages.artifacts.opening import open_store
from tests.test_store_faults import KEY, make
made = make(open_store(sys.argv[1], options={"endpoint_url": sys.argv[2]}, cache=Path(sys.argv[3])))
print(made.digest)
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_writer_killed_at_any_request_leaves_all_or_nothing(
    server: Server, where: Where, tmp_path: Path, moment: str
) -> None:
    """Killed before, or after, the server has done the n-th request; on its own machine and on another it goes on."""
    reference = make(where.open(tmp_path / "reference"))
    for point in range(1, 200):
        here = server.place()
        with faulty(server.url) as proxy:
            command = [sys.executable, "-c", WRITER, here.address, proxy.endpoint, str(tmp_path / "killed")]
            writer = subprocess.Popen(command, stdout=subprocess.PIPE)

            def kill(number: int, point: int = point, writer: subprocess.Popen[bytes] = writer) -> None:
                if number == point:
                    writer.kill()

            setattr(proxy, moment, kill)
            said = writer.communicate()[0]
        seen = here.open(tmp_path / f"other-{point}").find("pack", KEY)
        if seen is not None:
            assert {name: seen.path(name).read_bytes() for name in FILES} == FILES
        again = make(here.open(tmp_path / ("killed" if point % 2 else f"other-{point}")))
        assert again.digest == reference.digest
        store = here.open(tmp_path / "last")
        assert verify(store) == (1, [])
        collect(store, removable(store, days=0))
        left = [name for name in here.names() if not name.startswith((".leases/", ".newest/", ".clock"))]
        assert not [name for name in left if name.startswith("pack/")]
        assert len([name for name in left if name.startswith(".probes/")]) <= 1, "of the killed writer"
        if said:
            break
    assert point > 20
