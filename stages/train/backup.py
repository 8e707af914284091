"""Checkpoints in the store, sent while the training goes on, so that another machine continues it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stages.artifacts.backup import Backup
from stages.errors import SftError
from stages.train.checkpoints import MARKER, PREFIX, is_resumable, newest_checkpoint, step_of
from stages.train.job import WorkFolder

LOOK_SECONDS = 1.0
SNAPSHOT = ".sending"


def restore(work: WorkFolder, backup: Backup, key: str, *, every: bool, log: Callable[[str], None]) -> None:
    """Bring the checkpoints that another machine has sent, if one is further than what is here.

    Args:
        work: the working folder of the training.
        backup: where they are.
        key: of the training.
        every: whether all are needed, and not only the newest that is whole.
        log: is told what came.
    """
    here = newest_checkpoint(work.root, key)
    names = sorted(backup.names(), key=_step, reverse=not every)  # the records of the newest come last
    if max(map(_step, names), default=-1) <= (step_of(here) if here is not None else -1):
        return
    for name in names:
        if not (work.root / name).exists() and backup.bring(name):
            newest = newest_checkpoint(work.root, key)
            if newest == work.root / name:
                log(f"the checkpoint of step {_step(name)} came from the store")
                if not every:
                    return


@contextmanager
def sending(work: WorkFolder, backup: Backup | None, *, every: bool, log: Callable[[str], None]) -> Iterator[None]:
    """Send checkpoints in the background until the block ends; if it ends by an error, the newest one is sent, too.

    Args:
        work: the working folder of the training.
        backup: where to; None: nowhere.
        every: whether all checkpoints that are kept here are kept there, and not only the newest to go on from.
        log: is told what was sent, and what was not.
    """
    if backup is None:
        yield
        return
    sender = _Sender(work, backup, every=every, log=log)
    sender.start()
    try:
        yield
    except BaseException:
        sender.end(send_newest=True)
        raise
    sender.end(send_newest=False)


class _Sender(threading.Thread):
    """Looks for checkpoints that are whole and sends them."""

    def __init__(self, work: WorkFolder, backup: Backup, *, every: bool, log: Callable[[str], None]) -> None:
        super().__init__(name="checkpoints", daemon=True)
        self._work, self._backup, self._every, self._log = work, backup, every, log
        self._ended, self._is_off = threading.Event(), False
        self._sent: set[str] = set()
        self._failed: set[str] = set()

    def run(self) -> None:
        """Send until the end."""
        while not self._ended.wait(LOOK_SECONDS):
            self._look()

    def end(self, *, send_newest: bool) -> None:
        """Stop after the file that is being sent, or after the newest checkpoint."""
        self._is_off = not send_newest
        self._ended.set()
        self.join()
        if send_newest:
            self._failed.clear()
            self._look()

    def _look(self) -> None:
        """Send what is new, the newest first, and remove there what is not kept any more."""
        whole = sorted((path.parent for path in self._work.root.glob(f"{PREFIX}*/{MARKER}")), key=step_of, reverse=True)
        kept = whole if self._every else list(filter(is_resumable, whole))[:1]
        for folder in kept:
            if folder.name not in self._sent | self._failed and not self._is_off:
                self._send(folder)
        if kept and kept[0].name in self._sent:
            self._remove_others({folder.name for folder in kept})

    def _send(self, folder: Path) -> None:
        snapshot = self._work.root / SNAPSHOT
        try:
            files = _snapshot(self._work, folder, snapshot)
            if self._backup.send(folder.name, files, lambda: self._is_off):
                self._sent.add(folder.name)
                self._log(f"the checkpoint of step {step_of(folder)} is in the store")
        except FileNotFoundError:
            return  # it was removed meanwhile, because a newer one is there
        except SftError as error:  # the training is worth more than its backup
            self._failed.add(folder.name)
            self._log(f"the checkpoint of step {step_of(folder)} could not be sent to the store: {error}")
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)

    def _remove_others(self, kept: set[str]) -> None:
        try:
            for name in set(self._backup.names()) - kept:
                self._backup.remove(name)
                self._sent.discard(name)
        except SftError as error:
            self._log(f"an old checkpoint is still in the store: {error}")


def _snapshot(work: WorkFolder, folder: Path, snapshot: Path) -> Mapping[str, Path]:
    """Return the files that a training continues with: those of a checkpoint, linked, and copies of its records.

    Raises:
        FileNotFoundError: the checkpoint was removed meanwhile.
    """
    shutil.rmtree(snapshot, ignore_errors=True)
    files = {}
    for record in filter(Path.exists, (work.metrics, work.samples)):
        files[record.name] = snapshot / record.name
        snapshot.mkdir(exist_ok=True)
        shutil.copyfile(record, files[record.name])
    marker = folder / MARKER
    for path in [*(path for path in sorted(folder.rglob("*")) if path != marker and path.is_file()), marker]:
        name = path.relative_to(work.root).as_posix()
        files[name] = snapshot / name
        files[name].parent.mkdir(parents=True, exist_ok=True)
        os.link(path, files[name])
    return files


def _step(name: str) -> int:
    return step_of(Path(name))
