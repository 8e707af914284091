"""Fetching from S3, GCS and web servers: real servers, real clients, and a proxy that breaks what passes through it."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from stages.artifacts import Store
from stages.errors import ConfigError, DataError, TransientError
from stages.fetch import STAGE, shards
from stages.remote import download
from stages.remote.patience import Patience
from stages.stage import run_stage
from tests.crash.proxy import faulty
from tests.store_servers import gcs_server, s3_server
from tests.test_fetch import COMPRESS, LINES, ROWS, WRITTEN, Bench, rows_of
from tests.web_server import FileServer, file_server

Put = Callable[[str, bytes], str]
"""Writes an object and returns its URL."""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def gcs() -> Iterator[str]:
    with gcs_server() as endpoint:
        yield endpoint


class Place:
    """A bucket or a folder of a web server: how to write to it, and how a data set names it."""

    def __init__(self, url: str, options: dict[str, Any], put: Callable[[str, bytes], Any]) -> None:
        self.url, self.options, self._put = url, options, put

    def put(self, name: str, content: bytes) -> str:
        self._put(name, content)
        return f"{self.url}/{name}"

    def rows(self, bench: Bench, path: str, **keys: Any) -> list[Any]:
        return bench.parsed(path, storage_options=self.options, **keys)


def s3_place(endpoint: str) -> Place:
    name = f"data-{os.urandom(4).hex()}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=name)
    return Place(
        f"s3://{name}/in",
        {"endpoint_url": endpoint, "region": "us-east-1"},
        lambda key, content: client.put_object(Bucket=name, Key=f"in/{key}", Body=content),
    )


def gcs_place(endpoint: str) -> Place:
    from stages.remote.filesystem import open_filesystem

    options = {"endpoint_url": endpoint, "anonymous": True, "project": "test"}
    name = f"data-{os.urandom(4).hex()}"
    filesystem, _ = open_filesystem(f"gs://{name}", options)
    filesystem.mkdir(name)
    return Place(f"gs://{name}/in", options, lambda key, content: filesystem.pipe_file(f"{name}/in/{key}", content))


def web_place(server: FileServer) -> Place:
    def put(key: str, content: bytes) -> None:
        (server.folder / key).parent.mkdir(parents=True, exist_ok=True)
        (server.folder / key).write_bytes(content)

    return Place(server.endpoint, {}, put)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FileServer]:
    with file_server(tmp_path / "web") as server:
        server.folder.mkdir()
        yield server


@pytest.fixture(params=["s3", "gcs", "http"])
def place(request: pytest.FixtureRequest, bench: Bench) -> Place:
    if request.param == "http":
        return web_place(request.getfixturevalue("web"))
    make = {"s3": s3_place, "gcs": gcs_place}[request.param]
    return make(request.getfixturevalue(request.param))


def test_every_format_gives_the_same_rows(bench: Bench, place: Place) -> None:
    names = [("a.parquet", None), ("a.arrow", None), ("list.json", None), ("a.csv", None), ("a.jsonl", ".gz")]
    for name, packed in [*names, ("a.parquet", ".zst")]:
        content = COMPRESS[packed](WRITTEN[name]) if packed else WRITTEN[name]
        assert place.rows(bench, place.put(name + (packed or ""), content)) == ROWS, name
    assert not list((Path(os.environ["XDG_CACHE_HOME"]) / "sft-flow" / "downloads").glob("*"))  # given up when read


def test_folders_patterns_and_splits(bench: Bench, place: Place) -> None:
    for name in ("chats/train-1.jsonl", "chats/train-2.jsonl", "chats/sub/test/a.jsonl", "chats/.hidden/x.jsonl"):
        place.put(name, b'{"from": "%s"}\n' % name.encode())
    root = f"{place.url}/chats"
    assert [row["from"] for row in place.rows(bench, root)] == ["chats/train-1.jsonl", "chats/train-2.jsonl"]
    assert [row["from"] for row in place.rows(bench, f"{root}/", split="test")] == ["chats/sub/test/a.jsonl"]
    assert len(place.rows(bench, f"{root}/train-*.jsonl")) == 2
    assert len(place.rows(bench, root, data_files=["train-2.jsonl", "sub/*/a.jsonl"])) == 2
    assert len(place.rows(bench, "json", data_files=f"{root}/train-1.jsonl")) == 1
    with pytest.raises(ConfigError, match=r"datasets\.0\.path = .*nothing matches"):
        place.rows(bench, f"{root}/none-*.jsonl")
    with pytest.raises(ConfigError, match=r"datasets\.0\.path = .*there is nothing at|holds no data files"):
        place.rows(bench, f"{root}/none.jsonl")


def test_what_datasets_saved_to_disk(bench: Bench, place: Place) -> None:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, test=rows.select([3, 1])).save_to_disk(
        bench.data / "two", num_shards={"train": 3, "test": 1}
    )
    for path in (bench.data / "two").rglob("*"):
        if path.is_file():
            place.put(f"two/{path.relative_to(bench.data / 'two')}", path.read_bytes())
    assert place.rows(bench, f"{place.url}/two", split="train[5:]") == ROWS[5:]
    assert place.rows(bench, f"{place.url}/two/test") == [ROWS[3], ROWS[1]]


def test_a_source_is_pinned_and_a_changed_one_has_another_key(bench: Bench, place: Place) -> None:
    url = place.put("a.jsonl", b"\n".join(LINES))
    before = bench.key(url, storage_options=place.options)
    assert bench.key(url, storage_options=place.options) == before
    assert "127.0.0.1" not in json.dumps(before) or url.startswith("http")
    place.put("a.jsonl", b"\n".join(reversed(LINES)))  # of the same size
    assert bench.key(url, storage_options=place.options) != before
    moved = place.put("b.jsonl", b"\n".join(LINES))
    made = [
        bench.fetch({"path": u, "storage_options": place.options})
        for u in (moved, bench.write("c.jsonl", b"\n".join(LINES)))
    ]
    assert made[0].digest == made[1].digest  # the same rows: all that follows is reused


@pytest.mark.usefixtures("small_shards")
def test_a_resumed_fetch_asks_for_nothing_that_is_in_finished_shards(
    bench: Bench, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = s3_place(s3)
    for number in range(8):
        place.put(f"many/{number}.jsonl", b"\n".join(LINES[number * 5 : number * 5 + 5]))
    real, written = shards.write_rows, []

    def dying(path: Path, texts: list[bytes], numbers: Any = None) -> None:
        if len(written) == 8:
            raise KeyboardInterrupt
        written.append(len(texts))
        real(path, texts, numbers)

    with faulty(s3) as proxy:
        options = {**place.options, "endpoint_url": proxy.endpoint}
        dataset = {"path": f"{place.url}/many", "storage_options": options}
        monkeypatch.setattr(shards, "write_rows", dying)
        with pytest.raises(KeyboardInterrupt):
            bench.fetch(dataset)
        monkeypatch.setattr(shards, "write_rows", real)
        proxy.requests.clear()
        assert rows_of(bench.fetch(dataset)) == LINES
        fetched = {request for request in proxy.requests if request.startswith("GET") and ".jsonl" in request}
        assert not [request for request in fetched if "/0.jsonl" in request or "/1.jsonl" in request]
        assert len(fetched) <= 6


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)


BIG = b"\n".join(json.dumps({"n": n, "text": os.urandom(300).hex()}).encode() for n in range(1400))  # 0.9 MB


def is_body(kind: str, method: str, path: str) -> bool:
    return method == "GET" and "big.jsonl" in path and (kind != "gcs" or "alt=media" in path)


FAULTS = [(kind, fault) for kind in ("s3", "http", "gcs") for fault in ("429", "503", "reset", "cut", "slow")]
EVERY_DAY = [("s3", "503"), ("http", "429"), ("gcs", "cut"), ("http", "reset")]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in FAULTS if pair not in EVERY_DAY]


@pytest.mark.parametrize(("kind", "fault"), [*EVERY_DAY, *SLOW])
def test_a_fault_on_the_way_costs_time_and_nothing_else(
    bench: Bench, web: FileServer, s3: str, gcs: str, kind: str, fault: str
) -> None:
    upstream = {"s3": s3, "http": web.endpoint, "gcs": gcs}[kind]
    place = {"s3": s3_place, "gcs": gcs_place}[kind](upstream) if kind != "http" else web_place(web)
    url = place.put("big.jsonl", BIG)
    with faulty(upstream) as proxy:
        broken: list[int] = []

        def sometimes(number: int, method: str, path: str) -> str | None:
            if len(broken) < 4 and number % 3 != 0:
                broken.append(number)
                return fault
            return None

        proxy.choose = sometimes
        options = {**place.options, "endpoint_url": proxy.endpoint} if kind != "http" else {}
        address = url.replace(upstream, proxy.endpoint)
        assert bench.rows(address, storage_options=options) == BIG.split(b"\n")
        assert proxy.injected[fault] >= 2


@pytest.mark.parametrize("kind", ["s3", "http", "gcs"])
def test_an_interrupted_download_continues(bench: Bench, web: FileServer, s3: str, gcs: str, kind: str) -> None:
    upstream = {"s3": s3, "http": web.endpoint, "gcs": gcs}[kind]
    place = {"s3": s3_place, "gcs": gcs_place}[kind](upstream) if kind != "http" else web_place(web)
    url = place.put("big.jsonl", BIG)
    with faulty(upstream) as proxy:
        proxy.choose = lambda number, method, path: (
            "cut" if is_body(kind, method, path) and not proxy.injected["cut"] else None
        )
        options = {**place.options, "endpoint_url": proxy.endpoint} if kind != "http" else {}
        bench.rows(url.replace(upstream, proxy.endpoint), storage_options=options)
        assert proxy.injected["cut"] == 1
        begins = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in proxy.ranges]
        assert max(begins) > len(BIG) // 4, proxy.ranges


def test_bytes_with_a_wrong_checksum_are_never_used(bench: Bench, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = s3_place(s3)
    url = place.put("big.jsonl", BIG)
    with faulty(s3) as proxy:
        options = {**place.options, "endpoint_url": proxy.endpoint}
        proxy.choose = lambda number, method, path: (
            "flipped" if is_body("s3", method, path) and not proxy.injected["flipped"] else None
        )
        assert bench.rows(url, storage_options=options) == BIG.split(b"\n")
        proxy.choose = lambda number, method, path: "flipped" if is_body("s3", method, path) else None
        with pytest.raises(TransientError, match=r"big\.jsonl: .*(md5|checksum)"):
            bench.fetch({"path": url, "storage_options": options}, store=Store(bench.folder / "other", bench.digests))


@pytest.mark.parametrize("kind", ["s3", "http", "gcs"])
def test_a_source_that_changes_while_it_is_read_is_an_error_that_says_so(
    bench: Bench, web: FileServer, s3: str, gcs: str, kind: str
) -> None:
    upstream = {"s3": s3, "http": web.endpoint, "gcs": gcs}[kind]
    place = {"s3": s3_place, "gcs": gcs_place}[kind](upstream) if kind != "http" else web_place(web)
    url = place.put("big.jsonl", BIG)
    with faulty(upstream) as proxy:

        def change(number: int, method: str, path: str) -> str | None:
            if is_body(kind, method, path) and not proxy.injected["cut"]:
                return "cut"
            if proxy.injected["cut"] == 1 and not proxy.injected["changed"]:
                proxy.injected["changed"] += 1
                place.put("big.jsonl", BIG[::-1])
            return None

        proxy.choose = change
        options = {**place.options, "endpoint_url": proxy.endpoint} if kind != "http" else {}
        with pytest.raises(TransientError, match=r"big\.jsonl changed while it was read"):
            bench.rows(url.replace(upstream, proxy.endpoint), storage_options=options)
    assert rows_of(bench.fetch({"path": url, "storage_options": place.options})) == BIG[::-1].strip().split(b"\n")


@pytest.mark.parametrize("validators", [{"modified", "size"}, {"size"}, set()])
def test_web_servers_that_say_less(bench: Bench, web: FileServer, validators: set[str]) -> None:
    web.validators, web.ranges = validators, False
    place = web_place(web)
    url = place.put("a.jsonl", b"\n".join(LINES))
    os.utime(web.folder / "a.jsonl", (1e9, 1e9))
    assert bench.rows(url) == LINES
    before = bench.key(url)
    [pin] = before["datasets"][0]["source"]["files"]["train"]
    assert ("sha256" in pin) == ("modified" not in validators)
    assert run_stage(STAGE, bench.context({"path": url}), {}, bench.store).status == "reused"
    place.put("a.jsonl", b"\n".join(reversed(LINES)))
    assert bench.key(url) != before


def test_presigned_links_only_know_get(bench: Bench, web: FileServer) -> None:
    web.only_get = True
    url = web_place(web).put("a.jsonl.gz", gzip.compress(b"\n".join(LINES)))
    key = bench.key(f"{url}?X-Amz-Signature=first&X-Amz-Date=now")
    assert bench.rows(f"{url}?X-Amz-Signature=first&X-Amz-Date=now") == LINES
    assert bench.key(f"{url}?X-Amz-Signature=second&X-Amz-Date=later") == key


def test_what_cannot_pass_is_one_sentence_at_once(bench: Bench, s3: str) -> None:
    place = s3_place(s3)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"datasets\.0\.path = s3://no-such-bucket-here/a\.jsonl"):
        place.rows(bench, "s3://no-such-bucket-here/a.jsonl")
    with pytest.raises(ConfigError, match="does not take these storage_options"):
        bench.rows(f"{place.url}/a.jsonl", storage_options={"endpoint": s3})
    with pytest.raises(ConfigError, match="ftpx:// is not known"):
        bench.rows("ftpx://host/a.jsonl")
    assert time.monotonic() - started < 10


def test_a_server_that_is_away_is_waited_for_within_a_budget(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.remote import objects

    monkeypatch.setattr(objects, "FINDING", Patience(1.0, first=0.05))
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1/a\.jsonl: .*asked again"):
        bench.rows("http://127.0.0.1:1/a.jsonl")


def test_a_listing_cannot_lead_out_of_its_folder(bench: Bench, s3: str) -> None:
    place = s3_place(s3)
    place.put("data/../../../etc/cron.d/train.jsonl", b"{}\n")
    with pytest.raises(ConfigError, match="would lie outside"):
        place.rows(bench, f"{place.url}/data")


def test_damage_in_a_compressed_download_names_the_url(bench: Bench, web: FileServer) -> None:
    url = web_place(web).put("a.jsonl.gz", gzip.compress(b"\n".join(LINES))[:-20])
    host = urlsplit(url).netloc
    with pytest.raises(DataError, match=f"http://{host}/a.jsonl.gz: cannot be read as json"):
        bench.rows(url)


def test_old_downloads_are_swept(tmp_path: Path) -> None:
    kept = download.Downloads(tmp_path / "downloads")
    kept.folder.mkdir()
    for name, age in (("old", 8), ("young", 1)):
        (kept.folder / name).write_bytes(b"x")
        os.utime(kept.folder / name, (time.time() - age * 86_400,) * 2)
    kept.sweep()
    assert [path.name for path in kept.folder.iterdir()] == ["young"]
