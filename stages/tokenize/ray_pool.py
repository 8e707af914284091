"""Tokenizing shards on a Ray cluster: one task a shard, from raw bytes to the bytes of the tokenized file.

Nodes need Python with the same libraries, and nothing else: code, tokenizer and rows travel through Ray, and no file
system is shared. A shard always gives the same bytes, so a task whose worker or node is lost is simply done again.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.errors import TransientError
from stages.ray_cluster import connect
from stages.tokenize.shard import Job, Outcome, Report, Setup, ShardTokenizer

RETRIES = 5
"""So often a shard is given to another worker when its own is lost."""

AHEAD = 2
"""Shards in flight for each processor of the cluster: the next one lies ready, and results do not pile up."""

Files = dict[str, bytes]
"""Name -> content."""


def tokenize_on_ray(
    setup: Setup, jobs: Sequence[Job], address: str | None, report: Report
) -> Generator[tuple[Job, Outcome], None, None]:
    """Yield each job with its outcome, in the order in which they finish.

    Args:
        setup: what every worker needs.
        jobs: the shards.
        address: of the cluster, as `ray.init` takes it; None: the one that this machine belongs to.
        report: is told the rows and tokens of every finished shard.

    Raises:
        ConfigError: Ray is not installed here.
        TransientError: the cluster cannot be reached, or is gone.
    """
    if not jobs:
        return
    with _cluster(address) as ray:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_tokenize)
        shared = ray.put((setup.model_dump_json(), _files(setup.folder)))
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, running = deque(jobs), dict[Any, Job]()
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.popleft()
                running[remote.remote(shared, job.model_dump_json(), job.source.read_bytes())] = job
            (done,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(done)
            content, answer = _result(ray, done, job)
            job.target.write_bytes(content)
            outcome = Outcome.model_validate_json(answer)
            report(outcome.rows_read, outcome.tokens)
            yield job, outcome


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Give Ray, connected, with workers of one thread."""
    single = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ray = connect(address, "orchestration", single)
    try:
        yield ray
    finally:
        ray.shutdown()


def _result(ray: Any, reference: Any, job: Job) -> tuple[bytes, str]:
    try:
        content, answer = ray.get(reference)
    except ray.exceptions.RaySystemError as error:
        raise TransientError(f"{job.source}: the Ray cluster is gone: {error}") from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:
        raise TransientError(
            f"{job.source}: lost {RETRIES + 1} workers of the Ray cluster, the last: {error}"
        ) from error
    return content, answer


def _tokenize(shared: tuple[str, Files], job: str, raw: bytes) -> tuple[bytes, str]:
    """Return the bytes of a tokenized shard and its outcome: what runs on a node."""
    tokenizer = _tokenizer(shared[0], tuple(sorted(shared[1].items())))
    with tempfile.TemporaryDirectory() as folder:
        there = Job.model_validate_json(job)
        here = there.model_copy(update={"source": Path(folder, there.source.name), "target": Path(folder, "out.arrow")})
        here.source.write_bytes(raw)
        outcome = tokenizer.tokenize(here, lambda rows, tokens: None)
        return here.target.read_bytes(), outcome.model_dump_json()


@lru_cache(maxsize=1)
def _tokenizer(setup: str, files: tuple[tuple[str, bytes], ...]) -> ShardTokenizer:
    """Return the tokenizer of a run, kept for the next shard of this worker."""
    with tempfile.TemporaryDirectory() as folder:  # everything is read at once
        for name, content in files:
            Path(folder, name).write_bytes(content)
        return ShardTokenizer(Setup.model_validate_json(setup).model_copy(update={"folder": Path(folder)}))


def _files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
