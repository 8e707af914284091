"""Work through a proxy that breaks one request in five, in random ways; the result must be that of a quiet network."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.errors import TransientError
from tasks.stage_task import RETRIES
from tests.crash.laboratory import Tally
from tests.crash.proxy import faulty
from tests.crash.remote_scenarios import empty, fetch_from, publish_to, remote_is_whole, upload_rows, write_artifact
from tests.crash.scenarios import fetch_rows, write_rows
from tests.object_stores import file_server
from tests.store_servers import Server, Where

SHARE = 0.2
LEASE_SECONDS = 30.0  # longer than a store that answers four of five requests can take
KINDS = ("429", "500", "503", "reset", "lost", "cut", "slow", "silent", "flipped")
BODIES = (".jsonl", ".bin", ".safetensors")
"""Of what a bit may be flipped on S3: what has a checksum. Nothing can tell a flipped bit of another answer."""


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


def break_network(server: Server, folder: Path, deadline: float, seeds: Sequence[int]) -> list[Tally]:
    """Do each work once for each seed, or until the deadline, with other faults each time."""
    where = {name: Where(server, f"faults-{name}") for name in ("store", "data", "target")}
    works: dict[str, tuple[Callable[[Path], None], Callable[[str, Path], Any]]] = {
        "store on S3": (
            partial(empty, where["store"]),
            lambda url, root: write_artifact(_at(where["store"], url), root, 30.0),
        ),
        "fetch from S3": (
            partial(upload_rows, where["data"]),
            lambda url, root: fetch_from(_at(where["data"], url), root),
        ),
        "publish to S3": (
            partial(empty, where["target"]),
            lambda url, root: publish_to(where["target"], root, through=url),
        ),
    }
    began, tallies = time.monotonic(), []
    for number, (name, (prepare, work)) in enumerate(works.items(), 1):
        until = began + (deadline - began) * 0.9 * number / len(works)
        what = f"{name}, {SHARE:.0%} of requests broken"
        tallies.append(_rounds(what, server.url, prepare, work, folder, until, seeds))
    tallies[0].wrong += remote_is_whole(where["store"], folder / "seen")
    with file_server(folder / "web") as web:
        (folder / "web").mkdir(exist_ok=True)
        write_rows(folder / "web")
        work = lambda url, root: fetch_rows(root, path=f"{url}/data.jsonl")  # noqa: E731
        name = f"fetch from a web server, {SHARE:.0%} of requests broken"
        tallies.append(_rounds(name, web.endpoint, lambda root: None, work, folder, deadline, seeds))
    return tallies


def _at(where: Where, url: str) -> Where:
    return replace(where, server=replace(where.server, url=url))


def _rounds(
    name: str,
    upstream: str,
    prepare: Callable[[Path], None],
    work: Callable[[str, Path], Any],
    folder: Path,
    deadline: float,
    seeds: Sequence[int],
) -> Tally:
    tally = Tally(name)
    expected = work(upstream, _begin_anew(prepare, folder / "round"))
    for seed in seeds:
        if time.monotonic() > deadline:
            break
        with faulty(upstream, chance(seed, flips="S3" in name)) as proxy:
            proxy.silence = 0.3  # seconds
            began = time.monotonic()
            try:
                found = _patiently(partial(work, proxy.endpoint, _begin_anew(prepare, folder / "round")), tally)
            except Exception as error:  # noqa: BLE001  whatever it is, it is a result of the experiment
                tally.wrong.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
            else:
                if found != expected:
                    tally.wrong.append(f"{name}, seed {seed}: the result is another")
            tally.recovery.append(time.monotonic() - began)
            tally.points = max(tally.points, len(proxy.requests))
            tally.faults += sum(proxy.injected.values())
    return tally


def _patiently(work: Callable[[], Any], tally: Tally) -> Any:
    """Return what the work returns; tried again as its Prefect task would be."""
    for _ in range(RETRIES):
        try:
            return work()
        except TransientError:
            tally.tries_again += 1
    return work()


def _begin_anew(prepare: Callable[[Path], None], root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    prepare(root)
    return root
