"""What foreign data, models and templates cannot do; each test names the harm."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.load import load_run
from stages.errors import ConfigError, DataError
from stages.fetch import unpacking
from stages.templates import limits
from stages.templates.choice import ChatTemplate, RenderError
from tests.fetched import make_run, tokenize
from tests.test_fetch import Bench
from tests.tiny import build_tokenizer

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


LOOP, END = "{% for _ in range(99999) %}", "{% endfor %}"
ENDLESS = LOOP * 3 + END * 3


def test_a_rendering_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    with pytest.raises(ConfigError, match="may never end"):
        ChatTemplate(ENDLESS, {}).render(CHAT)


@pytest.mark.slow
def test_a_template_that_never_ends_is_stopped_and_said(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path / "tokenizer", ENDLESS)
    with pytest.raises(ConfigError, match=r"chat_template.*takes more than 5 seconds.*may never end"):
        tokenize(tmp_path, make_run(tokenizer), [{"messages": CHAT}] * 3)


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10**11 }}",
        "{{ [0] * 99999999999 }}",
        "{{ 9 ** (9 ** (9 ** 9)) }}",
        "{{ range(10**12) | list }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_cannot_fill_memory_or_leave_its_sandbox(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(RenderError):
        ChatTemplate(text, {}).render(CHAT)
    assert time.monotonic() - started < 5


BOMB = b'{"text": "' + b"0" * (80 << 20) + b'"}\n'


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_that_unfolds_to_fill_the_disk_is_refused(bench: Bench, suffix: str) -> None:
    pack = {
        ".gz": lambda content: gzip.compress(content, 1),
        ".bz2": lambda content: bz2.compress(content, 1),
        ".xz": lambda content: lzma.compress(content, preset=0),
        ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
    }[suffix]
    bomb = pack(BOMB)
    for name in (f"a.jsonl{suffix}", f"b.parquet{suffix}"):
        path = bench.write(name, bomb)
        with pytest.raises(DataError, match=rf"{name}: .*unfolds to more than .* bytes .*max_decompression_ratio"):
            bench.rows(path)


def test_a_parquet_file_whose_pages_unfold_to_fill_memory_is_refused(bench: Bench) -> None:
    path = bench.data / "a.parquet"
    table = pa.table({"text": ["0" * (80 << 20)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match=r"a\.parquet: .*unfolds to more than .* bytes .*max_decompression_ratio"):
        bench.rows(path)
    assert len(bench.rows(path, max_decompression_ratio=1e6)) == 1


def test_the_bound_can_be_raised(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "ALWAYS_ALLOWED", 1000)
    path = bench.write("a.jsonl.gz", gzip.compress(b'{"text": "%s"}\n' % (b"0" * 100_000)))
    with pytest.raises(DataError, match="max_decompression_ratio"):
        bench.rows(path)
    assert len(bench.rows(path, max_decompression_ratio=2000)) == 1


@pytest.mark.parametrize("name", ["../../secret.jsonl", "/etc/passwd", "a/../../../secret.jsonl"])
def test_paths_in_data_cannot_leave_their_folder(bench: Bench, name: str) -> None:
    (bench.data.parent / "secret.jsonl").write_text('{"stolen": 1}\n')
    bench.write("card/train.jsonl", b"{}\n")
    bench.write("card/README.md", f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n---\n".encode())
    with pytest.raises(ConfigError, match=r"datasets\.0\.path = .*outside of that folder"):
        bench.rows(bench.data / "card")
    bench.write("saved/dataset_info.json", b"{}")
    bench.write("saved/state.json", json.dumps({"_data_files": [{"filename": name}]}).encode())
    with pytest.raises(ConfigError, match=r"datasets\.0\.path = .*outside of that folder"):
        bench.rows(bench.data / "saved")
    bench.write("dict/dataset_dict.json", json.dumps({"splits": [name]}).encode())
    with pytest.raises(ConfigError, match=r"datasets\.0\.path = .*outside of that folder"):
        bench.rows(bench.data / "dict")


def test_a_yaml_file_cannot_unfold_or_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "harmed"
    laughs = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    for text in (laughs, f"base_model: !!python/object/apply:os.mkdir ['{mark}']\n", "[" * 100_000):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        started = time.monotonic()
        with pytest.raises(ConfigError):
            load_run(path)
        assert time.monotonic() - started < 10
    assert not mark.exists()
    assert os.listdir(tmp_path) == ["run.yaml"]  # noqa: PTH208
