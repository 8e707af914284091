"""The quick start's folder: the base model and the data, made once and known by their digests."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from flows.quickstart import data
from flows.quickstart.processes import output_of
from stages.artifacts import digest_of, sha256_file

RECORD = "prepared.json"
CODE = ("data.py", "model.py", "evaluate.py")
"""What decides on the files and on what counts as a right answer."""


def identity(folder: Path) -> str | None:
    """Return the digest of what the folder was made of and holds; None if it is not whole, or made by other code."""
    try:
        record = orjson.loads((folder / RECORD).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return digest_of(record) if record == _record(folder) else None


def make(folder: Path) -> str:
    """Write the data and the base model into the folder, the record last; return its identity."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    data.write(folder)
    output_of([sys.executable, "-m", "flows.quickstart.model", str(folder)])
    record = _record(folder)
    (folder / RECORD).write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
    return digest_of(record)


def _record(folder: Path) -> dict[str, dict[str, str]]:
    """Return the digests of the code that makes the files, and of the files."""
    made = sorted([folder / data.TRAIN_FILE, folder / data.HELD_OUT_FILE, *(folder / "base").glob("*")])
    return {
        "code": {name: sha256_file(Path(__file__).with_name(name)) for name in CODE},
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in made if path.is_file()},
    }
