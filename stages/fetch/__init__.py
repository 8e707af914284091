"""Fetch: the raw rows of every data set, from disk or from the Hub, as shards of JSON texts."""

from stages.fetch.stage import STAGE

__all__ = ["STAGE"]
