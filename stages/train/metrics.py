"""`metrics.jsonl`: one JSON object a line, readable while the training writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson


class MetricsLog:
    """The writer of a metrics file.

    A record of training is `{"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second",
    "trained_tokens", "seconds", "memory_bytes"}`, one of evaluation `{"step", "epoch", "eval_loss"}`, and with several
    data sets `"eval_losses"`: path -> loss.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: dict[str, Any]) -> None:
        """Write one record."""
        with self._path.open("ab") as file:
            file.write(orjson.dumps(record) + b"\n")

    def cut(self, step: int) -> None:
        """Remove the records past `step`, and a last line that was only half written."""
        if not self._path.exists():
            return
        kept = [record for record in read_metrics(self._path) if record["step"] <= step]
        draft = self._path.with_suffix(".tmp")
        draft.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in kept))
        draft.replace(self._path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the whole records of a metrics file, in order; none if there is no file yet."""
    return MetricsTail(path).read()


class MetricsTail:
    """Reads a metrics file while it grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._inode = path, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the records that were added since the last call; a half-written line waits."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:  # cut at a resume: another file with the same name
                    self._offset, self._inode = 0, inode
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [orjson.loads(line) for line in whole.splitlines()]
