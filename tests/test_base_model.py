"""Base models from elsewhere: object stores, GGUF files, pickles; each becomes a folder of safetensors here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from configs.schema import RunConfig
from stages.artifacts import FileDigests
from stages.base_model import MODEL_FILES, TOKENIZER_FILES, find_model, find_tokenizer
from stages.errors import ConfigError
from tests.crash.proxy import faulty
from tests.fetched import REQUIRED
from tests.project import Project
from tests.store_servers import s3_server
from tests.tiny import build_model


def run_on(model: Path | str, **keys: Any) -> RunConfig:
    datasets = [{"path": "rows.jsonl", "type": "alpaca"}]
    return RunConfig.model_validate({"base_model": str(model), "datasets": datasets, **REQUIRED, **keys})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def digests(tmp_path: Path) -> FileDigests:
    return FileDigests(tmp_path / "digests.sqlite")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    found = boto3.resource("s3", endpoint_url=s3, region_name="us-east-1").Bucket(f"models-{os.urandom(4).hex()}")
    found.create()
    return found


def upload(bucket: Any, folder: Path, prefix: str) -> str:
    for path in folder.iterdir():
        bucket.put_object(Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    return f"s3://{bucket.name}/{prefix}"


def test_a_model_in_a_bucket_is_brought_once_and_pinned(s3: str, bucket: Any, tiny: Path, digests: FileDigests) -> None:
    url = upload(bucket, tiny, "team/base")
    with faulty(s3) as proxy:
        run = run_on(url, base_model_storage_options={"endpoint_url": proxy.endpoint, "region": "us-east-1"})
        small = find_tokenizer(run).folder(TOKENIZER_FILES)
        assert not (small / "model.safetensors").exists()
        proxy.choose = lambda number, method, path: (
            "cut" if "safetensors" in path and method == "GET" and number % 2 else None
        )
        folder = find_model(run).folder(MODEL_FILES)
        assert folder == small
        for path in tiny.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes()
        proxy.requests.clear()
        assert find_model(run).folder(MODEL_FILES) == folder
        assert not [request for request in proxy.requests if request.startswith("GET") and "safetensors" in request]
        before = find_model(run).content(MODEL_FILES, digests)
        assert find_model(run).at(before).folder(MODEL_FILES) == folder
        bucket.put_object(Key="team/base/config.json", Body=(tiny / "config.json").read_bytes() + b" ")
        assert find_model(run).content(MODEL_FILES, digests) != before
        assert find_model(run).folder(MODEL_FILES) != folder
    with pytest.raises(ConfigError, match=r"base_model = s3://.*/none: there are no files there"):
        find_model(run_on(f"s3://{bucket.name}/none", base_model_storage_options={"endpoint_url": s3}))


def as_pickle(model: Path, folder: Path, weights: Any) -> Path:
    import torch

    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


class Harm:
    """What a pickle does when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    mark = tmp_path / "harmed"
    pickled = as_pickle(tiny, tmp_path / "pickled", {"lm_head.weight": Harm(mark)})
    with pytest.raises(ConfigError, match=r"base_model = .*weights are pickles.*allow_pickled_weights: true"):
        find_model(run_on(pickled))
    assert not mark.exists()


def test_without_a_network_a_run_is_judged_as_far_as_that_goes(tmp_path: Path) -> None:
    project = Project(tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"})
    project.configure(base_model="team/model")
    project.write_rows(10)
    document = project.sft("validate", "run.yaml", "--json")
    assert document.json()["valid"]
    assert b"team/model: the Hub cannot be reached, and it is not on this machine" in document.out


@pytest.mark.slow
def test_pickled_weights_that_the_user_wants_are_converted_and_run_no_code(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    good = as_pickle(tiny, tmp_path / "pickled", load_file(tiny / "model.safetensors"))
    assert_same_weights(find_model(run_on(good, allow_pickled_weights=True)).folder(MODEL_FILES), tiny)
    mark = tmp_path / "harmed"
    bad = as_pickle(tiny, tmp_path / "bad", {"lm_head.weight": Harm(mark)})
    with pytest.raises(ConfigError, match="cannot be converted to safetensors"):
        find_model(run_on(bad, allow_pickled_weights=True)).folder(MODEL_FILES)
    assert not mark.exists()


def test_a_gguf_file_is_the_model_that_it_was_made_of(tiny: Path, tmp_path: Path, digests: FileDigests) -> None:
    from transformers import AutoTokenizer

    file = write_gguf(tiny, tmp_path / "ggufs" / "tiny.gguf")
    by_name = find_model(run_on(file))
    by_folder = find_model(run_on(file.parent, gguf_file="tiny.gguf"))
    assert by_name.content(MODEL_FILES, digests) == by_folder.content(MODEL_FILES, digests)
    folder = by_name.folder(MODEL_FILES)
    assert by_folder.folder(TOKENIZER_FILES) == folder
    assert by_name.at(by_name.content(MODEL_FILES, digests)).folder(MODEL_FILES) == folder
    assert_same_weights(folder, tiny)
    here, there = (AutoTokenizer.from_pretrained(f) for f in (folder, tiny))
    text = "the quick brown fox: what is 1 + 1?"
    assert here.encode(text, add_special_tokens=False) == there.encode(text, add_special_tokens=False)
    assert here.chat_template == there.chat_template
    with pytest.raises(ConfigError, match=r"gguf_file = big\.gguf: there is no such file in .*there: tiny\.gguf"):
        find_model(run_on(file.parent, gguf_file="big.gguf"))


def assert_same_weights(folder: Path, reference: Path) -> None:
    import torch
    from safetensors.torch import load_file

    found, expected = load_file(folder / "model.safetensors"), load_file(reference / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model: Path, path: Path) -> Path:
    """Write a Llama folder as GGUF in float32, by the format's own writer; query and key rows as llama.cpp has them."""
    import gguf
    import orjson
    from safetensors.numpy import load_file

    config = orjson.loads((model / "config.json").read_bytes())
    tokenizer = orjson.loads((model / "tokenizer.json").read_bytes())
    path.parent.mkdir()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = dict(tokenizer["model"]["vocab"])
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = [token for token, _ in sorted({**vocabulary, **special}.items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    writer.add_chat_template((model / "chat_template.jinja").read_text())
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in load_file(model / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if stem in outer:
            writer.add_tensor(f"{outer[stem]}.weight", tensor)
            continue
        _, _, layer, inner = stem.split(".", 3)
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(inner)
        if heads:
            n = config[heads]
            tensor = tensor.reshape(n, 2, tensor.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[inner]}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
