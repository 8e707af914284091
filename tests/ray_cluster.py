"""A real Ray cluster of two nodes on two loopback addresses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.conftest import free_port

START_SECONDS = 120.0


class Node:
    """`ray start --block`, ended with everything that it started."""

    def __init__(self, folder: Path, address: str, *options: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address}"]
        command += ["--disable-usage-stats", "--object-store-memory=100000000", *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "RAY_TMPDIR": str(folder), "GLOO_SOCKET_IFNAME": "lo"},
        )

    def kill(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        for member in (*family, psutil.Process(self.process.pid)):
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass
        self.process.wait()


class Cluster:
    """Two nodes of one CPU: Ray takes 127.0.0.1 for a name of the machine's outer address, others as they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        port = free_port()
        self.address = f"127.0.0.2:{port}"
        head = Node(folder, "127.0.0.2", "--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false")
        self.nodes = [head]
        self._wait_for(1)
        self.add()

    def add(self) -> None:
        """Start one more node."""
        address = f"127.0.0.{len(self.nodes) + 2}"
        self.nodes.append(Node(self._folder, address, f"--address={self.address}", "--num-cpus=1"))
        self._wait_for(sum(node.process.poll() is None for node in self.nodes))

    def _wait_for(self, count: int) -> None:
        script = f"import ray; ray.init('{self.address}'); print(sum(node['Alive'] for node in ray.nodes()))"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout
            if seen.strip() == str(count):
                return
            time.sleep(1)
        raise AssertionError(f"the cluster did not have {count} nodes after {START_SECONDS:.0f} seconds")


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:  # its sockets need a short path
        cluster = Cluster(Path(name))
        try:
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                if node.process.poll() is None:
                    node.kill()
