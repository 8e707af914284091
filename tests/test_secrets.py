"""Secrets are planted wherever a user may have them, and looked for in all that is written and printed."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from configs.load import load_run
from configs.schema import RunConfig
from stages.errors import ConfigError
from tasks.blocks import names_blocks, with_blocks
from tests.project import Project
from tests.store_servers import s3_server
from tests.web_server import FileServer, file_server

SECRETS = {
    "environment": "plantedEnvironmentSecret0",
    "hub": "hf_plantedHubToken0000000",
    "options": "plantedOptionsSecret0",
    "user": "plantedUserPassword0",
    "signature": "plantedSignature0",
    "header": "plantedHeaderToken0",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "web").mkdir()
    with file_server(tmp_path / "web") as server:
        yield server


def planted(tmp_path: Path, s3: str, web: FileServer) -> Project:
    """Return a project whose data sets, target and environment hold every secret, and all are reachable."""
    project = Project.create(tmp_path / "project", rows=40)
    rows = (project.folder / "data.jsonl").read_bytes()
    bucket = boto3.resource(
        "s3", endpoint_url=s3, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    ).Bucket(f"team-{os.urandom(4).hex()}")
    bucket.create()
    bucket.put_object(Key="chats.jsonl", Body=rows)
    for path in (project.folder / "base").iterdir():
        bucket.put_object(Key=f"base/{path.name}", Body=path.read_bytes())
    for name in ("user.jsonl", "signed.jsonl", "header.jsonl"):
        (web.folder / name).write_bytes(rows)
    host = web.endpoint.removeprefix("http://")
    place = {"endpoint_url": s3, "region": "us-east-1", "key": "anybody", "secret": SECRETS["options"]}
    paths: list[dict[str, Any]] = [
        {"path": f"s3://{bucket.name}/chats.jsonl", "storage_options": place},
        {"path": f"http://me:{SECRETS['user']}@{host}/user.jsonl"},
        {"path": f"{web.endpoint}/signed.jsonl?X-Amz-Signature={SECRETS['signature']}&X-Amz-Expires=60"},
        {
            "path": f"{web.endpoint}/header.jsonl",
            "storage_options": {"headers": {"Authorization": f"Bearer {SECRETS['header']}"}},
        },
    ]
    project.configure(
        datasets=[{"type": "chat_template", **path} for path in paths],
        publish={"to": f"s3://{bucket.name}/model", "storage_options": place},
        base_model=f"s3://{bucket.name}/base",
        base_model_storage_options=place,
        max_steps=1,
    )
    project.environment |= {
        "AWS_SECRET_ACCESS_KEY": SECRETS["environment"],
        "AWS_ACCESS_KEY_ID": "environmentKey",
        "HF_TOKEN": SECRETS["hub"],
        "XDG_CACHE_HOME": str(project.folder / "cache"),
        "PREFECT_HOME": str(project.folder / ".prefect"),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    return project


def found_in(folder: Path, *printed: bytes) -> list[str]:
    """Return "secret: file" for each planted secret in any file but the user's own YAML, and in what was printed."""
    contents = {f"printed {number}": text for number, text in enumerate(printed)}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "run.yaml":
            contents[str(path)] = path.read_bytes()
    return [f"{name}: {where}" for where, text in contents.items() for name, secret in SECRETS.items()
            if secret.encode() in text]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_run_writes_no_secret_anywhere(tmp_path: Path, s3: str, web: FileServer) -> None:
    project = planted(tmp_path, s3, web)
    done = [project.sft("run", "run.yaml", seconds=400), project.sft("plan", "run.yaml", "learning_rate=0.5")]
    done.append(project.sft("run", "run.yaml", "--json"))
    assert {stage["status"] for stage in done[-1].json()["stages"]} == {"reused"}
    printed = [text for one in done for text in (one.out, one.err.encode())]
    assert found_in(project.folder, *printed) == []
    with sqlite3.connect(project.folder / ".prefect" / "prefect.db") as database:  # what is in a page's middle, too
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        text = "".join(str(row) for table in tables for row in database.execute(f"SELECT * FROM [{table}]"))  # noqa: S608
    assert not [name for name, secret in SECRETS.items() if secret in text]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("user.jsonl", "header.jsonl", "chats.jsonl")]


@pytest.mark.parametrize("broken", ["signed.jsonl", *SLOW])
def test_errors_hold_no_secret(tmp_path: Path, s3: str, web: FileServer, broken: str) -> None:
    project = planted(tmp_path, s3, web)
    text = (project.folder / "run.yaml").read_text()
    (project.folder / "run.yaml").write_text(text.replace(broken, f"missing-{broken}"))
    done = project.sft("validate", "run.yaml", "--traceback", expect=2)
    assert f"missing-{broken}" in done.err
    assert found_in(project.folder, done.out, done.err.encode()) == []


def test_a_wrong_value_beside_a_secret_is_told_without_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "base_model: x\nlearning_rate: 1e-4\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\n"
        f"datasets:\n- path: http://me:{SECRETS['user']}@host/a.jsonl?sig={SECRETS['signature']}\n"
        f"  type: 7\n  storage_options: [{SECRETS['options']}]\n"
        f"base_model_storage_options: {{block: {SECRETS['header']}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert "storage_options" in str(caught.value)
    assert not [secret for secret in SECRETS.values() if secret in str(caught.value)]
    problems = str([vars(problem) for problem in caught.value.problems])
    assert not [secret for secret in SECRETS.values() if secret in problems]


@pytest.mark.parametrize(
    "override",
    [
        f"datasets.0.storage_options.secret={SECRETS['options']}",
        f"datasets.0.path=s3://me:{SECRETS['user']}@bucket/a.jsonl",
        f"datasets.0.path=https://host/a.jsonl?X-Amz-Signature={SECRETS['signature']}",
    ],
)
def test_a_secret_is_not_taken_from_the_command_line(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "base_model: x\nlearning_rate: 1e-4\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\n"
        "datasets:\n- path: a.jsonl\n  type: alpaca\n"
    )
    with pytest.raises(ConfigError, match="a secret on the command line") as caught:
        load_run(path, [override])
    assert not re.search("planted", str(caught.value))
    loaded = load_run(
        path, ["datasets.0.storage_options.endpoint_url=http://127.0.0.1:1", "datasets.0.path=s3://b/a.csv"]
    )
    assert loaded.run.datasets[0].storage_options == {"endpoint_url": "http://127.0.0.1:1"}


def test_dumps_of_a_configuration_hold_no_secret(tmp_path: Path) -> None:
    dataset = {"path": f"http://me:{SECRETS['user']}@host/a.jsonl?sig={SECRETS['signature']}", "type": "alpaca"}
    run = RunConfig.model_validate(
        {
            "base_model": f"http://me:{SECRETS['user']}@host/model",
            "datasets": [{**dataset, "storage_options": {"secret": SECRETS["options"]}}],
            "learning_rate": 1e-4,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
        }
    )
    texts = [
        run.model_dump_json(),
        str(run.model_dump()),
        repr(run.datasets[0].storage_options and run.datasets[0].shown),
    ]
    assert not [secret for secret in SECRETS.values() for text in texts if secret in text]


@pytest.mark.slow
def test_storage_options_from_a_prefect_block(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    from prefect.blocks.system import Secret

    Secret(value={"key": "k", "secret": SECRETS["options"], "region": "eu"}).save("training-data", overwrite=True)
    run = RunConfig.model_validate(
        {
            "base_model": "x",
            "datasets": [
                {
                    "path": "s3://b/a.jsonl",
                    "type": "alpaca",
                    "storage_options": {"block": "secret/training-data", "region": "us"},
                }
            ],
            "learning_rate": 1e-4,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
        }
    )
    assert names_blocks(run)
    found = with_blocks(run)
    assert found.datasets[0].storage_options == {"key": "k", "secret": SECRETS["options"], "region": "us"}
    assert not names_blocks(found)
    missing = run.model_copy(update={"base_model_storage_options": {"block": "secret/none"}})
    with pytest.raises(ConfigError, match=r"base_model_storage_options\.block = secret/none"):
        with_blocks(missing)
