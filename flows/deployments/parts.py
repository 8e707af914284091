"""The deployments of a run: what each does, where it runs, and what starts it.

    NAME            fetch .. publish     gpu queue     by hand
    NAME-prepare    fetch .. pack        data queue    by schedule, or when the data has changed
    NAME-train      train, merge         gpu queue     when it is prepared
    NAME-publish    publish              data queue    when it is trained
    NAME-watch      looks at the sources data queue    every `orchestration.watch` seconds

The three in the middle are a chain: each tells that it is done, and the next one starts on a queue of its own, so that
no GPU is held while data is prepared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events import DeploymentEventTrigger

from configs.schema import OrchestrationConfig
from flows import events

Schedule = CronSchedule | IntervalSchedule


@dataclass(frozen=True)
class Part:
    """One deployment.

    Attributes:
        name: its name.
        flow: `sft` or `sft-watch`.
        description: what the UI says of it.
        on_gpu: whether it runs on the GPU queue.
        parameters: those of the flow that are its own.
        schedule: when it starts by itself.
        starts_after: the event that starts it.
    """

    name: str
    flow: str
    description: str
    on_gpu: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule | None = None
    starts_after: str | None = None

    def triggers(self, name: str) -> list[DeploymentEventTrigger]:
        """Return what starts it: the event about the deployments with `name`, whose overrides it takes over."""
        if self.starts_after is None:
            return []
        return [
            DeploymentEventTrigger(
                name=f"{self.name}: after {self.starts_after}",
                expect={self.starts_after},
                match=events.chained(name),
                parameters={"overrides": "{{ event.payload.overrides }}", "chain": True},
            )
        ]


def parts(name: str, settings: OrchestrationConfig) -> Iterator[Part]:
    """Yield the deployments of a run with that name."""
    yield Part(name, "sft", "The whole run, in one process on the GPU queue.", on_gpu=True)
    yield Part(
        f"{name}-prepare",
        "sft",
        "Fetches, tokenizes and packs, without a GPU. With `chain`, the training starts when it is done.",
        parameters={"until": "pack"},
        schedule=_schedule(settings),
        starts_after=events.DATA_CHANGED,
    )
    yield Part(
        f"{name}-train",
        "sft",
        "Trains and merges on what is prepared. With `chain`, publishing starts when it is done.",
        on_gpu=True,
        parameters={"start": "train", "until": "merge"},
        starts_after=events.PREPARED,
    )
    yield Part(
        f"{name}-publish",
        "sft",
        "Publishes what is trained.",
        parameters={"start": "publish", "until": "publish"},
        starts_after=events.TRAINED,
    )
    if settings.watch:
        yield Part(
            f"{name}-watch",
            "sft-watch",
            "Looks whether the data has changed, and tells it: the preparation starts.",
            schedule=_every(settings.watch),
        )


def _schedule(settings: OrchestrationConfig) -> Schedule | None:
    if settings.cron:
        return CronSchedule(cron=settings.cron, timezone=settings.timezone)
    return _every(settings.interval) if settings.interval else None


def _every(seconds: int) -> IntervalSchedule:
    return IntervalSchedule.model_validate({"interval": seconds})
