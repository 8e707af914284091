"""`sft deploy` and `sft watch` as a person or a script sees them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from configs.load import LoadedRun
from flows.command import say, write_json
from flows.deployments.register import Target, register
from flows.watch import tell_if_changed


def deploy(loaded: LoadedRun, overrides: Sequence[str], target: Target, notify: str | None, *, as_json: bool) -> None:
    """Register the deployments of a run and say how they are started."""
    made = register(loaded, overrides, target, notify)
    if as_json:
        write_json(made)
        return
    for deployment in made["deployments"]:
        say(f"{deployment['name']:<32} {deployment['work_pool']}/{deployment['queue']}")
    queues = sorted({(deployment["work_pool"], deployment["queue"]) for deployment in made["deployments"]})
    say("\nstart a worker for each queue, where its machine is:")
    for pool, queue in queues:
        say(f"  prefect worker start --pool {pool} --work-queue {queue}")
    say(f"start a run:\n  prefect deployment run {made['deployments'][0]['name']}")


def keep_watching(config: Path, overrides: Sequence[str], every: float | None) -> None:
    """Look once, or every so many seconds, whether the data has changed."""
    while True:
        changed = tell_if_changed(config, overrides)
        say(f"{time.strftime('%H:%M:%S')} the data has changed" if changed else "the data is as it was")
        if every is None:
            return
        time.sleep(every)
