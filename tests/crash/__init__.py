"""The crash laboratory: kills and network faults at every point that can be counted."""

import os

from stages.remote.filesystem import NO_HIERARCHY_PROBE

os.environ.setdefault(NO_HIERARCHY_PROBE, "false")  # gcsfs reads it when it is imported
