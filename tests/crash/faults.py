"""Work through a proxy that breaks one request in five, in random ways; the result must be that of a quiet network."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.errors import TransientError
from tasks.stage_task import RETRIES
from tests.crash.laboratory import Tally
from tests.crash.proxy import faulty
from tests.crash.remote_scenarios import empty, fetch_from, publish_to, remote_is_whole, upload_rows, write_artifact
from tests.crash.scenarios import fetch_rows, write_rows
from tests.store_servers import Server, Where

SHARE = 0.2
KINDS = ("429", "500", "503", "reset", "lost", "cut", "slow", "silent", "flipped")
BODIES = (".jsonl", ".bin", ".safetensors")
"""Of what a bit may be flipped on S3: what has a checksum. Nothing can tell a flipped bit of another answer."""


@dataclass(frozen=True)
class Exchange:
    """Work with a server.

    Attributes:
        name: in the table of results.
        upstream: URL of the server.
        prepare: puts there what the work begins with, past the proxy.
        work: does it all through the URL it is given; returns what must be the same on a quiet network.
        flips: whether a bit of an answer may be flipped: only where the server states checksums.
        look: returns a sentence for everything that a reader must not see in the end.
    """

    name: str
    upstream: str
    prepare: Callable[[Path], None]
    work: Callable[[str, Path], Any]
    flips: bool
    look: Callable[[Path], list[str]] = lambda root: []


def with_server(server: Server) -> tuple[Exchange, ...]:
    """Return what is done with an object store."""
    store, data, target = (Where(server, f"faults-{name}") for name in ("store", "data", "target"))
    cloud, flips = server.kind.upper(), server.kind == "s3"

    def at(where: Where, url: str) -> Where:
        return replace(where, server=replace(server, url=url))

    return (
        Exchange(
            f"store on {cloud}",
            server.url,
            partial(empty, store),
            lambda url, root: write_artifact(at(store, url), root),
            flips,
            partial(remote_is_whole, store),
        ),
        Exchange(
            f"fetch from {cloud}",
            server.url,
            partial(upload_rows, data),
            lambda url, root: fetch_from(at(data, url), root),
            flips,
        ),
        Exchange(
            f"publish to {cloud}",
            server.url,
            partial(empty, target),
            lambda url, root: publish_to(target, root, through=url),
            flips,
        ),
    )


def with_web(url: str, folder: Path) -> Exchange:
    """Return fetching from a web server that serves a folder; it states no checksums."""
    write_rows(folder)
    return Exchange(
        "fetch from a web server",
        url,
        lambda root: None,
        lambda url, root: fetch_rows(root, path=f"{url}/data.jsonl"),
        flips=False,
    )


def chance(seed: int, *, flips: bool, share: float = SHARE) -> Callable[[int, str, str], str | None]:
    """Return a choice of faults for a proxy, with flipped bits where there is a checksum that tells."""
    rng = random.Random(seed)

    def choose(number: int, method: str, path: str) -> str | None:
        if rng.random() >= share:
            return None
        kind = rng.choice(KINDS)
        if kind == "flipped" and not (flips and method == "GET" and path.partition("?")[0].endswith(BODIES)):
            return "cut"
        return kind

    return choose


def break_requests(exchange: Exchange, folder: Path, deadline: float, seed: int, most: int = 100_000) -> Tally:
    """Do the work again and again until the deadline, `most` times, each time with other faults."""
    tally = Tally(f"{exchange.name}: {SHARE:.0%} of requests broken")
    expected = exchange.work(exchange.upstream, _begin_anew(exchange, folder / "round"))
    for number in range(seed, seed + most):
        if time.monotonic() > deadline:
            break
        with faulty(exchange.upstream, chance(number, flips=exchange.flips)) as proxy:
            proxy.silence = 0.3  # seconds
            began = time.monotonic()
            try:
                root = _begin_anew(exchange, folder / "round")
                found = _patiently(partial(exchange.work, proxy.endpoint, root), tally)
            except Exception as error:  # noqa: BLE001  whatever it is, it is a result of the experiment
                tally.wrong.append(f"{tally.name}, seed {number}: {type(error).__name__}: {error}")
            else:
                if found != expected:
                    tally.wrong.append(f"{tally.name}, seed {number}: the result is another")
            tally.recovery.append(time.monotonic() - began)
            tally.points = max(tally.points, len(proxy.requests))
            tally.faults += sum(proxy.injected.values())
    tally.wrong += exchange.look(folder / "seen")
    return tally


def _patiently(work: Callable[[], Any], tally: Tally) -> Any:
    """Return what the work returns; tried again as its Prefect task would be."""
    for _ in range(RETRIES):
        try:
            return work()
        except TransientError:
            tally.tries_again += 1
    return work()


def _begin_anew(exchange: Exchange, root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    exchange.prepare(root)
    return root
