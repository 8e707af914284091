"""Runs a function on n processes that form a gloo group, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from stages.lifeline import die_with_parent
from tests.conftest import free_port

WAIT_SECONDS = 900


def run_on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Return what `function(*arguments)` returned on each rank; the function must be importable by name.

    The function finds RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment, and forms the
    group itself (Hugging Face's TrainingArguments do). An exception on a rank is raised here with its traceback.
    """
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    pipes = [spawn.Pipe(duplex=False) for _ in range(world_size)]
    ranks = [
        spawn.Process(target=_rank, args=(sender, os.getpid(), rank, world_size, port, function, arguments))
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process, (_, sender) in zip(ranks, pipes, strict=True):
        process.start()
        sender.close()  # so that the end of the process is the end of the pipe
    try:
        return [_result(receiver, rank) for rank, (receiver, _) in enumerate(pipes)]
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _rank(
    sender: Connection,
    parent: int,
    rank: int,
    world_size: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    die_with_parent(parent)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    try:
        sender.send((True, function(*arguments)))
    except BaseException:  # noqa: BLE001  whatever it was, the test shows it
        sender.send((False, traceback.format_exc()))


def _result(receiver: Connection, rank: int) -> Any:
    if not receiver.poll(WAIT_SECONDS):
        raise AssertionError(f"rank {rank} did not answer within {WAIT_SECONDS} seconds")
    try:
        succeeded, result = receiver.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} ended without an answer") from None
    if not succeeded:
        raise AssertionError(f"rank {rank}:\n{result}")
    return result
