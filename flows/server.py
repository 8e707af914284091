"""Prefect's own server, embedded: started for one run where no server is configured, gone with it however it ends.

Prefect starts such a server by itself, but that one survives a killed parent, and it cannot come up while the rest is
still being imported.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import ConfigError, Problem, StageError
from stages.lifeline import bound

STARTUP_SECONDS = 180.0
CLIENT_RETRIES = "1"  # on the loopback a server that refuses a connection is gone; waiting does not bring it back
_SERVER_SETTINGS = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def server_is_configured() -> bool:
    """Return whether the environment or the active Prefect profile names a server."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    try:
        content = tomllib.loads(profiles.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return False
    active = os.environ.get("PREFECT_PROFILE") or content.get("active")
    return "PREFECT_API_URL" in content.get("profiles", {}).get(active, {})


def need_server() -> None:
    """Refuse to go on without a server of one's own: what is registered there has to outlive this command.

    Raises:
        ConfigError: none is configured.
    """
    if not server_is_configured():
        rule = "deployments and events need a Prefect server that stays"
        remedy = "Start one (`prefect server start`) and set it to its address, such as http://127.0.0.1:4200/api."
        raise ConfigError([Problem("environment", "PREFECT_API_URL", "absent", rule, remedy)])


@contextmanager
def prefect_server() -> Iterator[None]:
    """Make sure that `PREFECT_API_URL` names a server inside this block; must begin before Prefect is imported.

    Raises:
        StageError: the embedded server did not come up.
    """
    if server_is_configured():
        yield
        return
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    process = subprocess.Popen(
        bound(command), env={**os.environ, **_SERVER_SETTINGS}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", CLIENT_RETRIES)
    try:
        import prefect  # noqa: F401  (while the server starts)

        _wait_until_healthy(port, process)
        yield
    finally:
        _send_last_logs()
        del os.environ["PREFECT_API_URL"]
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _send_last_logs() -> None:
    """Wait until Prefect has sent what it has logged; without a server it would complain on the terminal."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StageError(
                f"Prefect's embedded server ended with code {process.returncode} before it was up. "
                "Start one yourself (`prefect server start`), set PREFECT_API_URL, and look at its output."
            )
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise StageError(
        f"Prefect's embedded server did not answer within {STARTUP_SECONDS:.0f} seconds. "
        "Start one yourself (`prefect server start`) and set PREFECT_API_URL."
    )
