"""Connects this process to a Ray cluster, whose workers then have the code of this process."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

from stages.errors import ConfigError, Problem, TransientError
from stages.own_process import SOURCE_ROOT

KNOCK_SECONDS = 10.0


def connect(address: str | None, section: str, variables: Mapping[str, str]) -> Any:
    """Return Ray, connected; `shutdown()` of it parts again, and ends what was started.

    Args:
        address: of the cluster, as `ray.init` takes it; None: the one that this machine belongs to.
        section: of the configuration, whose `address` that is.
        variables: environment variables of the workers.

    Raises:
        ConfigError: Ray is not installed here.
        TransientError: the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        rule, remedy = "needs Ray, which is not installed here", 'Run `pip install "sft-flow[ray]"`, or use local.'
        raise ConfigError([Problem("configuration", section, "ray", rule, remedy)]) from error
    code = [str(SOURCE_ROOT / package) for package in ("configs", "stages")]
    try:
        if address is not None:
            _knock(address)
        ray.init(
            address=address or "auto",
            runtime_env={"py_modules": code, "env_vars": dict(variables)},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError) as error:
        raise TransientError(
            f"{section}.address: no Ray cluster answers at {address or 'auto'} ({error}). "
            "Start one (`ray start --head`), or set another address."
        ) from error
    return ray


def _knock(address: str) -> None:
    """Find out within seconds whether something listens there: Ray itself tries for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
