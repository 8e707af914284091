"""What is made from the schema: the JSON schema for editors, and the reference page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import yaml
from jsonschema import Draft202012Validator

from configs.json_schema import json_schema
from configs.keys import section_names
from configs.reference import UNITS, markdown
from configs.schema import RunConfig
from tests.mutations import GOOD, KINDS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "infra" / "docs" / "configuration.md"
VALIDATOR = Draft202012Validator(json_schema())


def errors(text: str | bytes) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))]


def test_the_reference_page_is_current() -> None:
    assert PAGE.read_text() == markdown(), f"run: sft schema --markdown > {PAGE.relative_to(ROOT)}"


def test_every_key_is_on_the_page_with_what_it_is() -> None:
    page = PAGE.read_text()
    for _, model in section_names():
        assert all(f"| `{key}` | " in page for key in model.model_fields)
    assert {key.rpartition(".")[2] for key in UNITS} <= {
        key for _, model in section_names() for key in model.model_fields
    }
    assert "| `sequence_len` | integer ≥ 1 | `512` | tokens | " in page
    assert "`qat`" in page.partition("## Refused")[2]


def test_the_json_schema_is_one_and_every_key_has_its_description() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert all(len(schema["properties"][key]["description"]) > 8 for key in RunConfig.model_fields)
    assert schema["properties"]["flash_attention"]["deprecated"]
    assert "bf16" in schema["properties"]["qat"]["description"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_that_come_with_it_pass_the_json_schema(path: Path) -> None:
    assert not errors(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate: 1e-4\nadapter:\nwandb_watch:\ngptq: false\n",
        "lora_target_modules: '.*proj'\npublish: s3://bucket/model\ndeepspeed: zero3.json\n",
        "fsdp: [full_shard, auto_wrap]\nfsdp_config: {fsdp_offload_params: true, sharding_strategy: FULL_SHARD}\n",
        "flash_attention: true\nbf16: auto\nval_set_size: 0\noptim_args: eps=1e-6\n",
    ],
)
def test_what_the_reader_takes_passes(text: str) -> None:
    keys = {line.partition(":")[0] for line in text.splitlines()}
    kept = "".join(f"{line}\n" for line in GOOD.splitlines() if line.partition(":")[0] not in keys)
    assert not errors(kept + text)


@pytest.mark.parametrize("kind", ["typos", "wrong types", "out of range"])
def test_what_the_reader_refuses_fails(kind: str) -> None:
    passed = [m.key for m in KINDS[kind]() if not errors(m.content)]
    assert [key for key in passed if key not in ("learning_rate", "weight_decay", "num_epochs")] == []  # not finite


def test_the_command_prints_both() -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "flows.cli", "schema", *words], capture_output=True, check=True
        )
        for words in ((), ("--markdown",))
    ]
    assert orjson.loads(printed[0].stdout) == orjson.loads(orjson.dumps(json_schema()))
    assert printed[1].stdout.decode() == markdown()
    for done in printed:
        assert not {b"torch", b"prefect", b"transformers"} & {
            line.split(b"|")[-1].strip() for line in done.stderr.splitlines()
        }
