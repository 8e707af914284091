"""Events that a run tells Prefect's server, and that deployments are triggered by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.events import emit_event

DATA_CHANGED = "sft.data.changed"
PREPARED = "sft.prepared"
TRAINED = "sft.trained"
PUBLISHED = "sft.published"
SICK = "sft.health.sick"

AFTER_STAGE = {"pack": PREPARED, "merge": TRAINED, "publish": PUBLISHED}
"""Last stage of a flow run -> the event that tells that it is done."""


def resource_id(name: str) -> str:
    """Return the id of the resource that the events of the deployments with a name are about."""
    return f"sft.run.{name}"


def chained(name: str) -> dict[str, str]:
    """Return the labels of events after which the next deployment of that name starts."""
    return {"prefect.resource.id": resource_id(name), "sft.chain": "true"}


def tell(event: str, name: str, payload: Mapping[str, Any], *, chain: bool) -> None:
    """Emit an event about the deployments with a name; with `chain` the next one starts."""
    labels = {**chained(name), "sft.chain": "true" if chain else "false", "prefect.resource.name": name}
    emit_event(event=event, resource=labels, payload=dict(payload))
