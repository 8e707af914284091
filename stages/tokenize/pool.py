"""Tokenizing shards in several processes, which are started once and live no longer than this one."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from typing import IO, Any

import orjson

from stages.errors import ConfigError, Problem, TransientError
from stages.own_process import python_path
from stages.tokenize.shard import Job, Outcome, Report, Setup, ShardTokenizer


def tokenize_shards(
    setup: Setup, jobs: Sequence[Job], processes: int, report: Report
) -> Generator[tuple[Job, Outcome], None, None]:
    """Yield each job with its outcome, in the order in which they finish.

    One shard, or one process, is done in this process.

    Raises:
        TransientError: a worker was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from _here(setup, jobs, report)
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(setup)) for _ in range(processes)]
        threads = stack.enter_context(ThreadPoolExecutor(processes))
        for worker in workers:
            stack.callback(worker.kill)  # a thread may still wait for it, if this ends early
        yield from _share_out(jobs, workers, threads, report)


def _here(setup: Setup, jobs: Sequence[Job], report: Report) -> Generator[tuple[Job, Outcome], None, None]:
    tokenizer = ShardTokenizer(setup)
    for job in jobs:
        yield job, tokenizer.tokenize(job, report)


def _share_out(
    jobs: Sequence[Job], workers: list[_Worker], threads: ThreadPoolExecutor, report: Report
) -> Generator[tuple[Job, Outcome], None, None]:
    """Give each job to the worker that is idle next."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)
    one_at_a_time = threading.Lock()

    def locked_report(rows: int, tokens: int) -> None:
        with one_at_a_time:
            report(rows, tokens)

    def run(job: Job) -> Outcome:
        worker = idle.get()
        try:
            return worker.run(job, locked_report)
        finally:
            idle.put(worker)

    futures = {threads.submit(run, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


class _Worker:
    """A process of `stages.tokenize.worker`, which ends when its standard input closes, so at the latest with us."""

    def __init__(self, setup: Setup) -> None:
        single = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stages.tokenize.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single, "PYTHONPATH": python_path()},
        )
        self._to, self._from = _pipe(self._process.stdin), _pipe(self._process.stdout)
        self._send(setup.model_dump_json())

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._to.close()
        except BrokenPipeError:
            pass  # it is gone already
        self._from.close()
        self._process.wait()

    def kill(self) -> None:
        """End the process, also in the middle of a job."""
        self._process.kill()

    def run(self, job: Job, report: Report) -> Outcome:
        """Have a job done."""
        try:
            self._send(job.model_dump_json())
            while line := self._from.readline():
                answer: dict[str, Any] = orjson.loads(line)
                if "outcome" in answer:
                    return Outcome.model_validate(answer["outcome"])
                if "problems" in answer:
                    raise ConfigError(Problem(**problem) for problem in answer["problems"])
                report(answer["rows"], answer["tokens"])
        except BrokenPipeError:
            pass  # told below
        code = self._process.wait()
        reason = "was killed (perhaps it ran out of memory)" if code < 0 else f"ended with code {code}"
        raise TransientError(f"{job.source}: the process that tokenizes it {reason}. Try a smaller dataset_num_proc.")

    def _send(self, line: str) -> None:
        self._to.write(line.encode() + b"\n")
        self._to.flush()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise TransientError("a tokenizing process has no pipe")
    return pipe
