"""Raw rows to token ids and a trained flag for each token."""

from stages.tokenize.stage import STAGE

__all__ = ["STAGE"]
