"""The crash laboratory: kills and network faults at every point that can be counted."""
