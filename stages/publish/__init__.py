"""Publish: the complete model where it is wanted, read back from there."""

from stages.publish.stage import STAGE

__all__ = ["STAGE"]
