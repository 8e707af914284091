"""What a stage that works for hours keeps in a remote store, so that another machine can go on with it.

<store>/.work/<stage>/<key>/.sent/<name>.json      the files of one backup, written last: without it there is none
<store>/.work/<stage>/<key>/.sent/<name>/<files>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stages.artifacts.digests import sha256_file
from stages.artifacts.manifest import FileEntry
from stages.artifacts.place import Place, spread
from stages.errors import DamagedArtifactError

SENT = ".sent"
_Record = TypeAdapter(list[FileEntry])


class Backup:
    """Backups of one work folder, by name; each is whole or not there."""

    def __init__(self, place: Place, work: str, right: str) -> None:
        self._place, self._folder, self._right = place, f"{work}/{SENT}", right
        self._work = place.here / work

    def names(self) -> list[str]:
        """Return the names of the backups that are whole."""
        records = [file.name.removeprefix(f"{self._folder}/") for file in self._place.files(self._folder)]
        return [name.removesuffix(".json") for name in records if name.endswith(".json") and "/" not in name]

    def send(self, name: str, files: Mapping[str, Path], is_off: Callable[[], bool]) -> bool:
        """Send files, and then the record of them; return whether that was done.

        Args:
            name: of the backup.
            files: path in the work folder -> where its bytes are, which do not change meanwhile.
            is_off: whether to leave it after the file that is being sent.
        """
        entries = []
        for path, source in files.items():
            if is_off():
                return False
            self._place.confirm(self._right)
            entry = FileEntry(path=path, size=source.stat().st_size, sha256=sha256_file(source))
            self._place.send(source, f"{self._folder}/{name}/{path}", entry)
            entries.append(entry)
        self._place.write(f"{self._folder}/{name}.json", _Record.dump_json(entries))
        return True

    def bring(self, name: str) -> bool:
        """Put the files of a backup into the work folder, the last one last; False if they are not whole."""
        try:
            entries = _Record.validate_json(self._place.read(f"{self._folder}/{name}.json") or b"")
            brought = spread(self._place, lambda entry: self._bring(name, entry), entries)
        except (ValidationError, DamagedArtifactError):
            return False
        for entry, path in zip(entries, brought, strict=True):
            target = self._work / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        return True

    def remove(self, name: str) -> None:
        """Remove a backup, its record first."""
        self._place.remove(f"{self._folder}/{name}.json")
        self._place.clear(f"{self._folder}/{name}")

    def _bring(self, name: str, entry: FileEntry) -> Path:
        return self._place.bring(f"{self._folder}/{name}/{entry.path}", entry)
