"""Shards that earlier artifacts of this store hold: what a grown or changed data set does not tokenize again.

Each artifact lists in `shards.json` what its shards are made of. A shard of the same raw rows, tokenizer, template and
options has the same tokens, wherever it stands; only the numbers of its rows may be others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, TypeAdapter

from stages.artifacts import Artifact, ArtifactWriter, FileDigests, digest_of
from stages.errors import DamagedArtifactError
from stages.tokenize.shard import Outcome
from stages.tokens import read_arrow, write_arrow

CONTENTS = "shards.json"
MOST_ARTIFACTS = 64
"""So many of the newest artifacts are looked into."""


class MadeShard(BaseModel):
    """A tokenized shard.

    Attributes:
        made_of: digest of everything that determines its tokens.
        file: the data file.
        dataset: index of its data set.
        first_row: number of the first raw row in that data set.
        outcome: what became of its rows.
    """

    model_config = ConfigDict(frozen=True)

    made_of: str
    file: str
    dataset: int
    first_row: int
    outcome: Outcome

    def at(self, file: str, dataset: int, first_row: int) -> MadeShard:
        """Return the shard as it is in another place."""
        moved = [{**record, "row": record["row"] + first_row - self.first_row} for record in self.outcome.rejected]
        outcome = self.outcome.model_copy(update={"rejected": moved})
        place = {"file": file, "dataset": dataset, "first_row": first_row, "outcome": outcome}
        return self.model_copy(update=place)


_Listed = TypeAdapter(list[MadeShard])


def made_of(inputs: Mapping[str, Any], dataset: int, raw: str) -> str:
    """Return the digest of what determines the tokens of a shard.

    Args:
        inputs: those of the stage's key.
        dataset: index of the data set.
        raw: SHA-256 of the file of raw rows.
    """
    shared = {name: value for name, value in inputs.items() if name not in ("upstream", "datasets")}
    return digest_of({**shared, "dataset": inputs["datasets"][dataset], "raw": raw})


def write_contents(shards: Sequence[MadeShard], writer: ArtifactWriter) -> None:
    """Write `shards.json`; volatile, because it is for the next run and no part of the result."""
    content = orjson.dumps([shard.model_dump() for shard in shards])
    writer.write(CONTENTS, content, volatile=True)


def find_earlier(wanted: Iterable[str], writer: ArtifactWriter) -> dict[str, tuple[Artifact, MadeShard]]:
    """Return for each digest of `made_of` an earlier artifact that holds such a shard, as far as there is one."""
    missing, found = set(wanted), dict[str, tuple[Artifact, MadeShard]]()
    for artifact in islice(writer.earlier(), MOST_ARTIFACTS):
        if not missing:
            break
        for shard in _contents(artifact):
            if shard.made_of in missing:
                found[shard.made_of] = artifact, shard
                missing.remove(shard.made_of)
    return found


def adopt(artifact: Artifact, shard: MadeShard, place: MadeShard, writer: ArtifactWriter, digests: FileDigests) -> bool:
    """Make an earlier shard a data file at another place; return False if it is damaged or gone."""
    stated = next((entry.sha256 for entry in artifact.manifest.files if entry.path == shard.file), None)
    try:
        source = artifact.path(shard.file)
        if digests.sha256(source) != stated:
            return False
        with writer.create(place.file) as draft:
            if (shard.dataset, shard.first_row) == (place.dataset, place.first_row):
                draft.path.hardlink_to(source)
            else:
                _write_moved(source, draft.path, place.dataset, place.first_row - shard.first_row)
            draft.notes.update(place.outcome.model_dump())
    except (
        OSError,
        DamagedArtifactError,
    ):  # removed meanwhile, or no hard links here: tokenizing it is always possible
        return False
    return True


def _contents(artifact: Artifact) -> list[MadeShard]:
    if all(entry.path != CONTENTS for entry in artifact.manifest.files):
        return []
    try:
        return _Listed.validate_json(artifact.path(CONTENTS).read_bytes())
    except (OSError, ValueError, DamagedArtifactError):
        return []


def _write_moved(source: Path, target: Path, dataset: int, rows: int) -> None:
    """Write a shard whose rows come `rows` later, in another data set."""
    table = read_arrow(source)
    numbers = table["row"].to_numpy() + rows
    columns = {"dataset": pa.array(np.full(len(numbers), dataset, np.int32)), "row": pa.array(numbers)}
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), column)
    write_arrow(target, table)
