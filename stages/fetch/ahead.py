"""Files that are brought to this machine while earlier ones are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from stages.fetch.files import DataFile
from stages.fetch.origins import LocalFile

AT_ONCE = 4  # files that are under way or wait for their turn; more would fill the disk, not the network


class Ahead:
    """Gives files in their order, each when it is here, with the next ones under way."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self._files = files
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Path]] = {}
        self._stopped = Event()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def from_number(self, number: int) -> Iterator[DataFile]:
        """Yield the files from that one on."""
        for current in range(number, len(self._files)):
            for coming in range(current, min(current + AT_ONCE, len(self._files))):
                self._begin(coming)
            if current in self._coming:
                self._coming.pop(current).result()
            yield self._files[current]

    def _begin(self, number: int) -> None:
        origin = self._files[number].origin
        if number in self._coming or isinstance(origin, LocalFile):
            return
        self._pool = self._pool or ThreadPoolExecutor(AT_ONCE, "bring")
        self._coming[number] = self._pool.submit(origin.bring, self._stopped)
