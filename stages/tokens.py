"""Reading tokenized rows and packed sequences by memory map: what pack, train and inspect share.

Tokenized rows (artifact of `tokenize`): Arrow IPC files of `TOKEN_SCHEMA`, listed in order in `facts["shards"]` as
`{"file", "dataset", "rows", "tokens"}`. The global number of a row is its position over all shards in that order.

Packed sequences (artifact of `pack`): `train.arrow` and `eval.arrow` of `PACK_SCHEMA`. Sequence i holds the slices
`[start, start + length)` of its rows, one after the other; never the tokens themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.artifacts import Artifact

TOKEN_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.bool_())),  # True where the label is the token itself, False where it is -100
        ("dataset", pa.int32()),  # index into `datasets` of the configuration
        ("row", pa.int64()),  # number of the row in that data set, from 0
    ]
)
PACK_SCHEMA = pa.schema(
    [
        ("rows", pa.list_(pa.int64())),
        ("starts", pa.list_(pa.int32())),
        ("lengths", pa.list_(pa.int32())),
    ]
)
IGNORED = -100
"""The label of a token that is not trained, as PyTorch's cross-entropy has it."""


def read_arrow(path: Path) -> pa.Table:
    """Return an Arrow IPC file as a memory-mapped table."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as an Arrow IPC file of one record batch, so that a column is one contiguous buffer."""
    table = table.combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


class TokenRows:
    """All tokenized rows of a run, in order, without copying them into memory.

    Attributes:
        lengths: (rows,) int32, tokens of each row.
    """

    def __init__(self, artifact: Artifact) -> None:
        tables = [read_arrow(artifact.path(shard["file"])) for shard in artifact.facts["shards"]]
        tables = [table for table in tables if table.num_rows] or [TOKEN_SCHEMA.empty_table()]
        self._ids: list[npt.NDArray[np.int32]] = []
        self._masks: list[pa.BooleanArray] = []
        self._offsets: list[npt.NDArray[np.int64]] = []
        self._sources: list[pa.Table] = []
        first_rows, lengths = [0], []
        for table in tables:
            ids, mask = _only_chunk(table["input_ids"]), _only_chunk(table["trained"])
            offsets = np.asarray(ids.offsets).astype(np.int64)
            self._ids.append(ids.values.to_numpy())
            self._masks.append(mask.values)
            self._offsets.append(offsets)
            self._sources.append(table.select(["dataset", "row"]))
            lengths.append(np.diff(offsets).astype(np.int32))
            first_rows.append(first_rows[-1] + table.num_rows)
        self._first_rows = np.asarray(first_rows, dtype=np.int64)
        self.lengths: npt.NDArray[np.int32] = np.concatenate(lengths)

    @cached_property
    def trained(self) -> npt.NDArray[np.int32]:
        """Return (rows,) int32, trained tokens of each row. Reads all masks: two seconds for a billion tokens."""
        counts = [
            _trues(mask, offsets, lengths)
            for mask, offsets, lengths in zip(
                self._masks, self._offsets, np.split(self.lengths, self._first_rows[1:-1]), strict=True
            )
        ]
        return np.concatenate(counts)

    @cached_property
    def datasets(self) -> npt.NDArray[np.int32]:
        """Return (rows,) int32, the index of the data set of each row."""
        return np.concatenate([np.asarray(table["dataset"], np.int32) for table in self._sources])

    def __len__(self) -> int:
        return len(self.lengths)

    def source(self, row: int) -> tuple[int, int]:
        """Return (index of the data set, row number in it) of a row."""
        shard, local = self._locate(row)
        table = self._sources[shard]
        return table["dataset"][local].as_py(), table["row"][local].as_py()

    def slice(self, row: int, start: int, length: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return (input_ids, labels), each (length,) int32, of a part of a row; labels are not shifted."""
        shard, local = self._locate(row)
        begin = int(self._offsets[shard][local]) + start
        ids = self._ids[shard][begin : begin + length]
        mask = self._masks[shard].slice(begin, length).to_numpy(zero_copy_only=False)
        return ids, np.where(mask, ids, np.int32(IGNORED)).astype(np.int32, copy=False)

    def __getitem__(self, row: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return (input_ids, labels) of a whole row."""
        return self.slice(row, 0, int(self.lengths[row]))

    def _locate(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return shard, row - int(self._first_rows[shard])


@dataclass(frozen=True)
class Packs:
    """Packed sequences as slices of tokenized rows, flattened.

    Attributes:
        offsets: (sequences + 1,) int64; sequence i holds the slices `offsets[i] : offsets[i + 1]`.
        rows: (slices,) int64, global row numbers.
        starts: (slices,) int32, first token of the slice in its row.
        lengths: (slices,) int32, tokens of the slice.
    """

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def read(cls, path: Path) -> Packs:
        """Open an index file by memory map."""
        table = read_arrow(path)
        if not table.num_rows:
            return cls(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))
        rows, starts, lengths = (_only_chunk(table[name]) for name in ("rows", "starts", "lengths"))
        offsets = np.asarray(rows.offsets).astype(np.int64)
        return cls(offsets, rows.values.to_numpy(), starts.values.to_numpy(), lengths.values.to_numpy())

    def write(self, path: Path) -> None:
        """Write the index as an Arrow IPC file of `PACK_SCHEMA`."""
        offsets = pa.array(self.offsets.astype(np.int32))
        columns = [self.rows.astype(np.int64), self.starts.astype(np.int32), self.lengths.astype(np.int32)]
        arrays = [pa.ListArray.from_arrays(offsets, pa.array(column)) for column in columns]
        write_arrow(path, pa.Table.from_arrays(arrays, schema=PACK_SCHEMA))

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Return (sequences,) int64, the tokens of each sequence."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.lengths.astype(np.int64), self.offsets[:-1])


def _trues(
    mask: pa.BooleanArray, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Return (rows,) how many of the flags of each row are true; rows without flags are allowed."""
    flags = mask.slice(int(offsets[0]), int(offsets[-1] - offsets[0])).to_numpy(zero_copy_only=False)
    counts = np.zeros(len(lengths), np.int32)
    filled = np.flatnonzero(lengths)
    if len(filled):
        starts = offsets[filled] - offsets[0]
        counts[filled] = np.add.reduceat(flags.view(np.uint8), starts, dtype=np.int32)
    return counts


def _only_chunk(column: pa.ChunkedArray) -> pa.ListArray:
    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
