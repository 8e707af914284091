"""The run configuration: one frozen schema, read once, at the edge."""

from configs.errors import ConfigError, Problem, SftError
from configs.schema import DatasetConfig, RunConfig

__all__ = ["ConfigError", "DatasetConfig", "Problem", "RunConfig", "SftError"]
