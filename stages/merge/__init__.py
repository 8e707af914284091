"""Merge: the adapter into its base model, in a process of its own, and checked."""

from stages.merge.stage import STAGE

__all__ = ["STAGE"]
