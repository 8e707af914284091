"""A project that is operated through Prefect: a server's API, workers, and what runs on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import psutil

from stages.lifeline import bound
from tests.project import Project


class Api:
    """The HTTP API of a Prefect server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, path: str, body: dict[str, Any] | None = None, *, method: str | None = None) -> Any:
        content = None if body is None else orjson.dumps(body)
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}{path}", content, {"Content-Type": "application/json"}, method=method
        )
        for attempt in range(8):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                    text = answer.read()
                return orjson.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == 7:
                    raise
                time.sleep(0.5)  # SQLite is busy
        raise AssertionError

    def refusal(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """Return status and text of an answer that is an error."""
        try:
            self(path, body)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        raise AssertionError(f"{path} took {body}")

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment by name and return its id."""
        identifier = self(f"/deployments/name/{deployment}")["id"]
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self(f"/deployments/{identifier}/create_flow_run", body)["id"])

    def state(self, run: str) -> str:
        return str(self(f"/flow_runs/{run}")["state_name"])

    def wait(self, run: str, *names: str, seconds: float = 180) -> float:
        """Wait for a state of a run and return how long it took."""
        started = time.monotonic()
        wait_for(lambda: self.state(run) in names, seconds, lambda: f"{names}, not {self.state(run)}")
        return time.monotonic() - started

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the runs of a deployment, oldest first."""
        body = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self("/flow_runs/filter", body)
        return found


def wait_for(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} seconds for {what()}"
        time.sleep(0.3)


@contextmanager
def worker(project: Project, *queues: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process worker of Prefect for some queues of the project's pool."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "sft", "--name", "-".join(queues)]
    for queue in queues:
        command += ["--work-queue", queue]
    with (project.folder / f"worker-{'-'.join(queues)}.log").open("ab") as log:
        process = subprocess.Popen(
            bound(command), cwd=project.folder, env={**os.environ, **project.environment}, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def working_in(folder: Path, *words: str) -> list[psutil.Process]:
    """Return the processes that work in a folder and have one of the words in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.cwd() == str(folder) and any(word in line for word in words):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def of_training(folder: Path) -> list[psutil.Process]:
    return working_in(folder, "stages.train", "prefect.engine")


@contextmanager
def received() -> Iterator[tuple[list[str], str]]:
    """Listen on the loopback and give the bodies that are posted there, and the address."""
    bodies: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield bodies, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def save_webhook(project: Project, name: str, address: str) -> None:
    """Create a notification block of Prefect that posts to an address."""
    text = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
        f"Block(name={name!r}, url={address!r}, json_data={{'text': '{{{{subject}}}} {{{{body}}}}'}})"
        f".save({name!r}, overwrite=True)"
    )
    subprocess.run([sys.executable, "-c", text], env={**os.environ, **project.environment}, check=True, timeout=120)


def log_of(project: Project) -> str:
    work = project.folder / "store" / ".work" / "train"
    return "\n".join(path.read_text()[-3000:] for path in work.glob("*/train.log"))


def wait_for_checkpoint(project: Project) -> None:
    work = project.folder / "store" / ".work" / "train"
    wait_for(lambda: any(work.glob("*/checkpoint-*/complete.json")), 240, lambda: log_of(project))


def weights(project: Project) -> bytes:
    return (project.folder / "out" / "adapter_model.safetensors").read_bytes()
