"""What would go wrong in a run, and what looks unhealthy in it, found before anything of it has started."""

from stages.preflight.finding import Finding, Level, stop_on

__all__ = ["Finding", "Level", "stop_on"]
