"""publish: the complete model to a folder or URL, every byte read back from there, with a receipt.

    <target>/...                     the files of the merged model
    <target>/README.md               its model card; one that somebody wrote or changed there is kept
    <target>/sft-receipt.json        written last: without it, the publication is not complete
    <target>/sft-receipt-old.json    while another model takes the place: what the last one was made of

The artifact holds the same receipt. What a target had from an earlier publication of ours, and the new one does not
have, is removed; a file that is not ours, or was changed since, is left alone.

Nothing is published that would not be at inference what it was in training (`stages.publish.check`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
from pydantic import ValidationError

from configs.schema import RunConfig
from stages.artifacts import Artifact, ArtifactWriter, FileEntry
from stages.errors import ConfigError, Problem, TransientError
from stages.publish.card import CARD, is_untouched, render_card, sealed
from stages.publish.check import check_as_trained
from stages.publish.target import Target, explained, local_folder, open_target
from stages.stage import Context, Stage, Upstream

RECEIPT = "sft-receipt.json"
OLD_RECEIPT = "sft-receipt-old.json"
MODEL = "model/"
"""Where the model's files lie in the artifact of merge."""


def inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    """Return where the model goes, and what its card says; the model itself is an upstream artifact."""
    check_target(context.run)
    card = render_card(context.run, upstream, settings=False)
    return {"to": context.run.publish_to, "card": sha256(card.encode()).hexdigest()}


def check_target(run: RunConfig) -> None:
    """Find out, without writing, whether a model can be published there at all.

    Raises:
        ConfigError: no such kind of place, a file in the way, or the place of the base model.
    """
    where = run.publish_to
    open_target(where, run.publish_options)
    folder = local_folder(where)
    if folder is None:
        return
    key = "publish.to" if run.publish else "output_dir"
    if folder.exists() and Path(run.base_model).exists() and folder.samefile(run.base_model):
        rule, remedy = "this is the base model's own folder, which would be overwritten", "Choose another folder."
        raise ConfigError([Problem("configuration", key, where, rule, remedy)])
    if folder.exists() and not folder.is_dir():
        rule, remedy = "this is a file, and the model is a folder", "Choose another name, or remove the file."
        raise ConfigError([Problem("configuration", key, where, rule, remedy)])


def produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    """Publish, and return `{"to", "files", "bytes", "model", "prompts_compared"}`.

    Raises:
        StageError: the model would not be at inference what it was in training.
    """
    run, merged, where = context.run, upstream["merge"], context.run.publish_to
    asked = check_as_trained(run, upstream)
    folder, card = merged.path(MODEL), writer.work / CARD
    writer.work.mkdir(parents=True, exist_ok=True)
    card.write_bytes(sealed(render_card(run, upstream, asked.variables)))
    entries = [
        entry.model_copy(update={"path": entry.path.removeprefix(MODEL)})
        for entry in merged.manifest.files
        if entry.path.startswith(MODEL)
    ]
    described = FileEntry(path=CARD, size=card.stat().st_size, sha256=sha256(card.read_bytes()).hexdigest())
    receipt = make_receipt(where, merged, entries)
    transfer = Transfer(
        open_target(where, run.publish_options),
        {CARD: card} | {entry.path: folder / entry.path for entry in entries},
        context,
        total=2 * sum(entry.size for entry in (*entries, described)),
    )
    with explained(where):
        transfer.publish([*entries, described], receipt)
    writer.write("receipt.json", receipt)
    card.unlink()
    sent = {"to": where, "files": len(entries), "bytes": sum(entry.size for entry in entries), "model": merged.digest}
    return {**sent, "prompts_compared": asked.rows}


def make_receipt(where: str, merged: Artifact, files: Sequence[FileEntry]) -> bytes:
    """Return the receipt: where, what, and of which artifacts it was made; the same bytes each time.

    The card is not among its files: it may be edited there.
    """
    listed = [{"path": entry.path, "size": entry.size, "sha256": entry.sha256} for entry in files]
    receipt = {
        "receipt_version": 1,
        "to": where,
        "model": merged.digest,
        "artifacts": {"merge": merged.key, **merged.manifest.parents},
        "files": listed,
    }
    return orjson.dumps(receipt, option=orjson.OPT_INDENT_2)


@dataclass
class Transfer:
    """One publication on its way.

    Attributes:
        target: where it goes.
        sources: name at the target -> file.
        context: hears how far it is.
        total: bytes that are sent and read back.
        done: of them, so far.
    """

    target: Target
    sources: Mapping[str, Path]
    context: Context
    total: int
    done: int = 0

    def publish(self, files: Sequence[FileEntry], receipt: bytes) -> None:
        """Bring the files there; the receipt is gone while they are not all there."""
        names = [entry.path for entry in files]
        with self.target.held():
            self.target.clear([*names, RECEIPT])
            try:
                self._replace(files, receipt)
            finally:
                self.target.clear([*names, RECEIPT])

    def _replace(self, files: Sequence[FileEntry], receipt: bytes) -> None:
        missing = [entry for entry in files if not (self._is_there(entry) or self._is_of_somebody(entry))]
        staged = [entry for entry in missing if self._stage(entry)]
        ours = self._open_place(receipt)
        for entry in missing:
            self.target.place(self.sources[entry.path], entry.path, self._moved)
            if entry not in staged:
                self._verify(entry, self.target.sha256(entry.path, self._moved))
        self._remove_stale(ours, {entry.path for entry in files})
        self.target.write(RECEIPT, receipt)
        self.target.remove(OLD_RECEIPT)

    def _is_there(self, entry: FileEntry) -> bool:
        """Tell whether a file is already as it must be: read, not trusted."""
        if self.target.size(entry.path) != entry.size:
            return False
        there = self.target.sha256(entry.path, lambda count: None) == entry.sha256
        if there:
            self._moved(2 * entry.size)
        return there

    def _is_of_somebody(self, entry: FileEntry) -> bool:
        """Tell whether a card is there that is not one of ours, or was changed since."""
        there = self.target.read(CARD) if entry.path == CARD else None
        if there is None or is_untouched(there):
            return False
        self.context.log(f"{CARD}: somebody wrote or changed it there; it is kept")
        self._moved(2 * entry.size)
        return True

    def _stage(self, entry: FileEntry) -> bool:
        digest = self.target.stage(self.sources[entry.path], entry.path, self._moved)
        if digest is None:
            return False
        self._verify(entry, digest)
        self._moved(entry.size)
        return True

    def _verify(self, entry: FileEntry, digest: str | None) -> None:
        if digest != entry.sha256:
            found = "is not there" if digest is None else f"came back with other bytes (SHA-256 {digest[:12]}...)"
            raise TransientError(f"{entry.path} {found} after it was sent. Nothing is announced; run again to send it.")
        self.context.log(f"{entry.path}: {entry.size} bytes, verified")

    def _open_place(self, receipt: bytes) -> list[FileEntry]:
        """Take the last receipt away, if it is another, and return the files of ours that may lie there."""
        last, older = self.target.read(RECEIPT), self.target.read(OLD_RECEIPT)
        if last is not None and last != receipt:
            older = _merged_receipts(older, last)
            self.target.write(OLD_RECEIPT, older)
        if last is not None:
            self.target.remove(RECEIPT)
        return files_of(older)

    def _remove_stale(self, ours: Sequence[FileEntry], wanted: set[str]) -> None:
        for entry in ours:
            unchanged = entry.path not in wanted and self.target.size(entry.path) == entry.size
            if unchanged and self.target.sha256(entry.path, lambda count: None) == entry.sha256:
                self.context.log(f"{entry.path}: of an earlier publication, removed")
                self.target.remove(entry.path)

    def _moved(self, count: int) -> None:
        self.done += count
        self.context.progress(self.done, self.total, "bytes")


def files_of(receipt: bytes | None) -> list[FileEntry]:
    """Return the files that a receipt lists; none of a text that is no receipt, or that leaves its folder."""
    try:
        listed = [FileEntry.model_validate(entry) for entry in orjson.loads(receipt or b"{}").get("files", ())]
    except (orjson.JSONDecodeError, AttributeError, TypeError, ValidationError):
        return []
    paths = [(entry, PurePosixPath(entry.path)) for entry in listed]
    return [entry for entry, path in paths if not path.is_absolute() and ".." not in path.parts]


def _merged_receipts(older: bytes | None, last: bytes) -> bytes:
    """Return one receipt with the files of both: a publication was broken off before this one replaced it."""
    files = [entry.model_dump(exclude={"volatile"}) for entry in [*files_of(older), *files_of(last)]]
    return orjson.dumps({"files": files}, option=orjson.OPT_INDENT_2)


def stale(context: Context, artifact: Artifact) -> str | None:
    """Return why the target does not hold the publication any more; reads its receipt and the sizes, not the bytes."""
    where, receipt = context.run.publish_to, artifact.path("receipt.json").read_bytes()
    with explained(where):
        target = open_target(where, context.run.publish_options)
        there = target.read(RECEIPT)
        if there is None:
            return f"{where} does not hold the model any more: {RECEIPT} is not there"
        if there != receipt:
            return f"{where} holds another publication: its {RECEIPT} differs"
        for entry in files_of(receipt):
            size = target.size(entry.path)
            if size != entry.size:
                found = "is not there" if size is None else f"has {size} bytes instead of {entry.size}"
                return f"{where} does not hold the model any more: {entry.path} {found}"
    return None


NEEDS = ("fetch", "tokenize", "pack", "train", "merge")
STAGE = Stage("publish", version=2, needs=NEEDS, inputs=inputs, produce=produce, stale=stale)
