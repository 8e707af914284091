"""What would go wrong in a run, and what looks unhealthy in it, found before anything of it has started."""

from __future__ import annotations

from stages.preflight.advice import judge
from stages.preflight.data import check_data
from stages.preflight.finding import Finding, Level, stop_on
from stages.preflight.hardware import check_hardware
from stages.preflight.model import check_model
from stages.preflight.places import check_places
from stages.preflight.scene import Scene

__all__ = ["Finding", "Level", "Scene", "judge", "look", "stop_on"]


def look(scene: Scene) -> list[Finding]:
    """Return everything that would go wrong in a run, from configuration and small files alone."""
    return [*check_data(scene), *check_hardware(scene), *check_model(scene), *check_places(scene)]
