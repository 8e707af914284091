"""The fetch stage on local files: every row, in its order, as it stands in the source."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.errors import ConfigError, DataError, TransientError
from stages.fetch import STAGE, shards
from stages.stage import Context, run_stage

ROWS = [{"instruction": f"Say {n}", "input": "", "output": 'a "b"\n[{,é\\' * n} for n in range(40)]
LINES = [json.dumps(row).encode() for row in ROWS]


class Bench:
    """A folder for data, and a store."""

    def __init__(self, folder: Path) -> None:
        self.data, self.folder = folder / "data", folder
        self.data.mkdir()
        self.digests = FileDigests(folder / "digests.sqlite")
        self.store = Store(folder / "store", self.digests)

    def write(self, name: str, content: bytes) -> Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def context(self, *datasets: dict[str, Any]) -> Context:
        config = {
            "base_model": "base",
            "datasets": [
                {"type": "alpaca", **{k: str(v) if k == "path" else v for k, v in d.items()}} for d in datasets
            ],
            "learning_rate": 1e-4,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
        }
        return Context(RunConfig.model_validate(config), self.digests)

    def fetch(self, *datasets: dict[str, Any], store: Store | None = None) -> Artifact:
        return run_stage(STAGE, self.context(*datasets), {}, store or self.store).artifact

    def rows(self, path: Path | str, **keys: Any) -> list[bytes]:
        return rows_of(self.fetch({"path": path, **keys}))

    def parsed(self, path: Path | str, **keys: Any) -> list[Any]:
        return [json.loads(row) for row in self.rows(path, **keys)]

    def key(self, path: Path | str, **keys: Any) -> dict[str, Any]:
        return STAGE.key_inputs(self.context({"path": path, **keys}), {})


def rows_of(artifact: Artifact, dataset: int = 0) -> list[bytes]:
    """Return the rows of a data set, having checked what the facts say of them."""
    facts = artifact.facts["datasets"][dataset]
    found: list[bytes] = []
    for shard in facts["shards"]:
        rows = pq.read_table(artifact.path(shard["file"]))["row"].to_pylist()
        assert (shard["rows"], shard["bytes"]) == (len(rows), sum(map(len, rows)))
        found += rows
    assert facts["rows"] == len(found)
    return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=7)
    return buffer.getvalue()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    buffer, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return buffer.getvalue()


WRITTEN: dict[str, bytes] = {
    "a.jsonl": b"\n".join(LINES),
    "windows.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(LINES) + b"\r\n",
    "lines.json": b"\n\n".join(LINES),
    "list.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "object.json": json.dumps({"version": 1, "about": {"tags": ["x"]}, "data": ROWS, "end": None}).encode(),
    "object-indented.json": json.dumps({"data": ROWS, "n": {"list": []}}, indent=1).encode(),
    "a.csv": as_csv(ROWS),
    "a.tsv": as_csv(ROWS, "\t"),
    "a.parquet": as_parquet(ROWS),
    "a.arrow": as_arrow(ROWS),
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_gives_the_same_rows(bench: Bench, name: str) -> None:
    path = bench.write(name, WRITTEN[name])
    assert bench.parsed(path) == ROWS
    assert bench.rows(path)[0].startswith(b"{")  # without a byte order mark


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "a.csv", "a.parquet", "a.arrow"])
def test_compressed_files(bench: Bench, name: str, suffix: str) -> None:
    path = bench.write(name + suffix, COMPRESS[suffix](WRITTEN[name]))
    assert bench.parsed(path) == ROWS
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{name}{suffix}: cannot be read"):
        bench.rows(path)


def test_lines_are_carried_as_they_stand_even_when_they_are_not_json(bench: Bench) -> None:
    lines = [b'{"a": 1.0,   "a": 2}', b"not json", b'{"text": "\xff\xfe"}', b'{"big": 123456789012345678901234567890}']
    content = b"\n \n".join(lines) + b"\n"
    assert bench.rows(bench.write("a.jsonl", content)) == lines
    assert bench.rows(bench.write("b.json", b"[" + b",\n".join([lines[0], b"{a: 1}", lines[3]]) + b"]")) == [
        lines[0],
        b"{a: 1}",
        lines[3],
    ]


def test_text_gives_a_row_for_each_line(bench: Bench) -> None:
    path = bench.write("a.txt", "first\n\n{second} é\r\nthird".encode())
    assert bench.parsed(path) == [{"text": text} for text in ("first", "{second} é", "third")]
    assert bench.rows(bench.write("b.txt", b"good\nb\xffd\n")) == [b'{"text":"good"}', b"b\xffd"]


def test_csv_values_stay_texts(bench: Bench) -> None:
    path = bench.write("a.csv", b'instruction,output\n007,1e3\nnull,"a ""b"",\nc"\n,NaN\n')
    values = [("007", "1e3"), ("null", 'a "b",\nc'), ("", "NaN")]
    assert bench.parsed(path) == [{"instruction": first, "output": second} for first, second in values]


def test_values_that_json_does_not_have(bench: Bench) -> None:
    row = {
        "when": datetime(2026, 1, 2, 3, 4),
        "price": Decimal("1.50"),
        "raw": b"text",
        "nothing": None,
        "x": float("nan"),
    }
    path = bench.write("a.parquet", as_parquet([row]))
    assert bench.parsed(path) == [
        {"when": "2026-01-02T03:04:00", "price": "1.50", "raw": "text", "nothing": None, "x": None}
    ]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ROWS),
        ("train[:20%]", ROWS[:8]),
        ("train[10:15]", ROWS[10:15]),
        ("train[-3:]", ROWS[-3:]),
        ("train[:-38]", ROWS[:2]),
        ("train[33%:66%]", ROWS[13:26]),
        ("train[:2] + train[-5%:]", ROWS[:2] + ROWS[-2:]),
        ("train[:50%]+train[50%:]", ROWS),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "a.csv", "a.parquet", "a.arrow"])
@pytest.mark.usefixtures("small_shards")
def test_slices_keep_the_numbers_of_the_rows(bench: Bench, name: str, split: str, expected: list[Any]) -> None:
    made = bench.fetch({"path": bench.write(name, WRITTEN[name]), "split": split})
    assert [json.loads(row) for row in rows_of(made)] == expected
    numbers = [
        shard["first_row"] + offset for shard in made.facts["datasets"][0]["shards"] for offset in range(shard["rows"])
    ]
    assert [ROWS[number] for number in numbers] == expected


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_slices_go_through_several_files(bench: Bench, suffix: str) -> None:
    for number in range(4):
        part = ROWS[number * 10 : number * 10 + 10]
        content = as_parquet(part) if suffix == "parquet" else b"\n".join(LINES[number * 10 : number * 10 + 10])
        bench.write(f"{number}.{suffix}", content)
    assert bench.parsed(bench.data, split="train[15:37]") == ROWS[15:37]
    assert bench.parsed(bench.data, split="train[30:]") == ROWS[30:]


def test_slices_are_those_of_datasets(bench: Bench) -> None:
    from datasets import Dataset, ReadInstruction

    split = "train[7%:13%]+train[-9%:]"
    whole = Dataset.from_list([{"n": n} for n in range(137)])
    path = bench.write("a.jsonl", b"\n".join(b'{"n": %d}' % n for n in range(137)))
    parts = ReadInstruction.from_spec(split).to_absolute({"train": 137})
    expected = [row for part in parts for row in whole["n"][part.from_ : part.to]]
    assert [row["n"] for row in bench.parsed(path, split=split)] == expected


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", "no split test; known: train"),
        ("train[:50]", r"reaches beyond the split, which has 40 rows"),
        ("train[5:5]", "is empty"),
        ("train[a:b]", "expected the name of a split"),
    ],
)
def test_a_split_that_is_not_there_is_refused(bench: Bench, split: str, message: str) -> None:
    path = bench.write("a.jsonl", WRITTEN["a.jsonl"])
    with pytest.raises(ConfigError, match=rf"datasets\.0\.split = .*{message}"):
        bench.rows(path, split=split)


def test_a_folder_tells_its_splits_by_names(bench: Bench) -> None:
    for name in ("train-1.jsonl", "train-2.jsonl", "sub/test/a.jsonl", "dev.jsonl", "notes.txt", ".hidden/train.jsonl"):
        bench.write(name, b'{"from": "%s"}\n' % name.encode())
    assert bench.parsed(bench.data) == [{"from": "train-1.jsonl"}, {"from": "train-2.jsonl"}]
    assert bench.parsed(bench.data, split="test") == [{"from": "sub/test/a.jsonl"}]
    assert bench.parsed(bench.data, split="validation+test") == [{"from": "dev.jsonl"}, {"from": "sub/test/a.jsonl"}]


def test_files_of_a_folder_that_no_split_has_are_named(bench: Bench) -> None:
    for name in ("train.jsonl", "more.jsonl"):
        bench.write(name, b"{}\n")
    said: list[str] = []
    context = replace(bench.context({"path": bench.data}), log=said.append)
    assert rows_of(run_stage(STAGE, context, {}, bench.store).artifact) == [b"{}"]
    assert len(said) == 1
    assert "more.jsonl is not read" in said[0]


def test_a_folder_without_such_names_is_one_split(bench: Bench) -> None:
    for name in ("b.parquet", "a.parquet"):
        bench.write(name, as_parquet([{"from": name}]))
    assert bench.parsed(bench.data) == [{"from": "a.parquet"}, {"from": "b.parquet"}]
    bench.write("c.jsonl", b"{}\n")
    with pytest.raises(ConfigError, match="files of several formats"):
        bench.rows(bench.data)
    assert bench.rows(bench.data, ds_type="json") == [b"{}"]


def test_data_files_are_looked_for_in_the_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/1.jsonl", "x/2.jsonl", "y.jsonl"):
        bench.write(name, b'{"from": "%s"}\n' % name.encode())
    chosen = bench.parsed(bench.data, data_files=["y.jsonl", "x/*.jsonl"])
    assert [row["from"] for row in chosen] == ["y.jsonl", "x/1.jsonl", "x/2.jsonl"]
    monkeypatch.chdir(bench.folder)
    assert bench.parsed("data", data_files="data/y.jsonl") == [{"from": "y.jsonl"}]
    assert bench.parsed("json", data_files="data/y.jsonl") == [{"from": "y.jsonl"}]
    assert len(bench.parsed("data/x/*.jsonl")) == 2


def test_a_copy_of_a_hub_repository_is_read_as_its_card_says(bench: Bench) -> None:
    card = "---\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n  - split: train\n    path: a/*.jsonl\n"
    card += "- config_name: extra\n  data_files: b.jsonl\n---\n# About\n"
    for name in ("a/1.jsonl", "b.jsonl"):
        bench.write(name, b'{"from": "%s"}\n' % name.encode())
    bench.write("README.md", card.encode())
    assert bench.parsed(bench.data) == [{"from": "a/1.jsonl"}]
    assert bench.parsed(bench.data, name="extra") == [{"from": "b.jsonl"}]
    with pytest.raises(ConfigError, match=r"datasets\.0\.name = other: .*main, extra"):
        bench.rows(bench.data, name="other")


def test_what_datasets_saved_to_disk(bench: Bench) -> None:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(bench.data / "one", num_shards=3)
    DatasetDict(train=rows, test=rows.select([3, 1])).save_to_disk(bench.data / "two")
    assert bench.parsed(bench.data / "one", split="train[5:]") == ROWS[5:]
    assert bench.parsed(bench.data / "two", split="test") == [ROWS[3], ROWS[1]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"a": 1}, {"a": ', "ends in the middle of its list, after element 1"),
        ("a.json", b'[{"a": 1},, {}]', "between two commas, after element 1"),
        ("a.json", b'[{"a": 1}] [2]', r"after its end there is more .*\.jsonl"),
        ("a.json", b'{\n"a": [1], "b": [2]}', 'several lists, "a" and "b"'),
        ("a.json", b'{\n"a": 1\n}', "an object without a list"),
        ("a.json", b'{\n"a": [1]', "ends in the middle"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "UTF-16"),
        ("a.csv", b"a,b\n1,2\n3\n", "line 3: 1 values, expected 2"),
        ("a.csv", b"a,a\n1,2\n", "names the column 'a' more than once"),
        ("a.csv", b"a\nb\xff\n", "utf-8"),
        ("a.csv", b'a\n"cut off\n', "unexpected end of data"),
        ("a.parquet", b"PAR1 or not", "cannot be read as parquet"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"a,b\n", "holds no rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(bench: Bench, name: str, content: bytes, message: str) -> None:
    path = bench.write(name, content)
    with pytest.raises(DataError, match=rf"(?s)^{path}: .*{message}"):
        bench.rows(path)


def test_what_is_missing_is_named_with_what_is_near(bench: Bench) -> None:
    bench.write("train.jsonl", b"{}\n")
    with pytest.raises(
        ConfigError, match=r"datasets\.0\.path = .*trian\.jsonl: there is no file .*There is .*train\.jsonl"
    ):
        bench.rows(bench.data / "trian.jsonl")
    with pytest.raises(ConfigError, match=r"(?s)datasets\.0\.path = .*a\.jsonl.*datasets\.1\.path = .*b\.jsonl"):
        bench.fetch({"path": "./a.jsonl"}, {"path": "./b.jsonl"})
    with pytest.raises(ConfigError, match=r"datasets\.0\.path = s4://bucket/a\.jsonl: s4:// is not known"):
        bench.rows("s4://bucket/a.jsonl")
    with pytest.raises(ConfigError, match=r"datasets\.0\.data_files = x\*: no file matches x\*"):
        bench.rows(bench.data, data_files="x*")
    with pytest.raises(ConfigError, match=r"datasets\.0\.ds_type: the name of data\.bin .*known: \.json"):
        bench.rows(bench.write("data.bin", b"{}\n"))
    assert bench.rows(bench.data / "data.bin", ds_type="json") == [b"{}"]


def test_the_key_is_made_of_content_not_of_places(bench: Bench) -> None:
    path = bench.write("a.jsonl", WRITTEN["a.jsonl"])
    key = bench.key(path)
    moved = bench.write("elsewhere/b.jsonl", WRITTEN["a.jsonl"])
    assert bench.key(moved) == key
    assert bench.key(path, split="train") == key
    assert bench.key(path, type="chat_template") == key
    assert bench.key(path, split="train[:5]") != key
    assert bench.key(path, ds_type="text") != key
    path.write_bytes(WRITTEN["a.jsonl"] + b"{}")
    assert bench.key(path) != key


def test_the_same_rows_give_the_same_bytes(bench: Bench) -> None:
    there = Store(bench.folder / "other", bench.digests)
    first = bench.fetch({"path": bench.write("a.jsonl", WRITTEN["a.jsonl"])})
    second = bench.fetch({"path": bench.write("b.jsonl", WRITTEN["a.jsonl"])}, store=there)
    assert first.digest == second.digest
    assert first.key == second.key


@pytest.mark.usefixtures("small_shards")
def test_shards_are_cut_by_size(bench: Bench) -> None:
    made = bench.fetch(
        {"path": bench.write("a.jsonl", WRITTEN["a.jsonl"])}, {"path": bench.write("b.csv", as_csv(ROWS[:3]))}
    )
    facts = made.facts["datasets"][0]["shards"]
    assert [shard["file"] for shard in facts] == [f"00/{number:05d}.parquet" for number in range(len(facts))]
    assert all(500 <= shard["bytes"] < 2000 + max(map(len, LINES)) for shard in facts[:-1])
    assert rows_of(made) == LINES
    assert [json.loads(row) for row in rows_of(made, 1)] == ROWS[:3]
    assert made.facts["datasets"][1]["shards"][0]["file"] == "01/00000.parquet"


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("split", ["train", "train[:50%]+train[50%:]"])
def test_finished_shards_are_not_written_again(bench: Bench, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    dataset = {"path": bench.write("a.jsonl", WRITTEN["a.jsonl"]), "split": split}
    whole = bench.fetch(dataset, store=Store(bench.folder / "other", bench.digests))
    written: list[int] = []
    real = shards.write_rows

    def dying(path: Path, texts: list[bytes], numbers: None) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(len(texts))
        real(path, texts, numbers)

    monkeypatch.setattr(shards, "write_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        bench.fetch(dataset)
    written.clear()
    monkeypatch.setattr(shards, "write_rows", lambda path, texts, _: written.append(len(texts)) or real(path, texts))
    resumed = bench.fetch(dataset)
    assert len(written) == len(whole.facts["datasets"][0]["shards"]) - 5
    assert resumed.digest == whole.digest
    assert rows_of(resumed) == LINES


@pytest.mark.usefixtures("small_shards")
def test_a_file_that_changes_while_it_is_read_never_mixes_with_what_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.write("a.jsonl", WRITTEN["a.jsonl"])
    real, written = shards.write_rows, []

    def changing(shard: Path, texts: list[bytes], numbers: None) -> None:
        written.append(shard)
        real(shard, [b"{}"] if len(written) == 3 else texts)
        if len(written) == 3:
            path.write_bytes(WRITTEN["a.jsonl"] + b"\n{}")

    monkeypatch.setattr(shards, "write_rows", changing)
    with pytest.raises(TransientError, match="changed while it was read"):
        bench.fetch({"path": path})
    monkeypatch.setattr(shards, "write_rows", real)
    assert rows_of(bench.fetch({"path": path})) == [*LINES, b"{}"]
    path.write_bytes(WRITTEN["a.jsonl"])
    assert bench.rows(path) == LINES


def test_real_chats(bench: Bench) -> None:
    shared = Path(__file__).parents[2] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("no shared data beside this checkout")
    chats = shared / "chat_500.jsonl"
    assert bench.rows(chats) == chats.read_bytes().splitlines()
    tools = shared / "glaive_toolcall_en_demo.json"
    assert bench.parsed(tools) == json.loads(tools.read_bytes())
    packed = bench.data / "chats.jsonl.gz"
    with chats.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    assert bench.rows(packed) == chats.read_bytes().splitlines()
