"""What can go wrong in a stage, and who may try again.

SftError                    exit code 1
 ├── ConfigError            exit code 2: the configuration is wrong; never retried
 ├── DataError              exit code 2: the data is wrong; never retried
 ├── TransientError         exit code 1: can pass (network, throttling, a lost worker); retried
 └── StageError             exit code 1: the work failed; not retried
      └── StoreError        an artifact could not be written, read or trusted
           └── DamagedArtifactError  its files are not those that were written: it has to be made again
"""

from __future__ import annotations

from configs.errors import ConfigError, Problem, SftError

__all__ = [
    "ConfigError",
    "DamagedArtifactError",
    "DataError",
    "Problem",
    "SftError",
    "StageError",
    "StoreError",
    "TransientError",
]


class DataError(SftError):
    """The data cannot be used as it is: names file, row, what was found, what was expected."""

    exit_code = 2


class TransientError(SftError):
    """A failure that can pass by itself: trying again is worth it."""


class StageError(SftError):
    """The work of a stage failed for a reason that trying again does not cure."""


class StoreError(StageError):
    """An artifact could not be written, read or trusted."""


class DamagedArtifactError(StoreError):
    """A file of an artifact is missing, or its bytes are not those that were written: it has to be made again."""
