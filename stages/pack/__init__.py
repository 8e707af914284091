"""Pack: which rows are kept, which are held out, and which share a sequence. Writes an index, never tokens."""

from stages.pack.best_fit import pack_best_fit
from stages.pack.stage import STAGE

__all__ = ["STAGE", "pack_best_fit"]
