"""The pack stage: reads the lengths of the tokenized rows, writes an index of slices that make the sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from configs.schema import RunConfig
from stages.artifacts import Artifact, ArtifactWriter
from stages.errors import ConfigError, DataError, Problem, StageError
from stages.pack.best_fit import pack_best_fit
from stages.pack.selection import Selection, held_out_rows, select, shuffled
from stages.stage import Context, Stage, Upstream
from stages.tokens import Packs, TokenRows

SHOWN = 3
"""Rows that an error names one by one."""


def _inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    run = context.run
    _refuse_broken_data(upstream["tokenize"], run)
    return {
        "sequence_len": run.sequence_len,
        "excess_length_strategy": run.excess_length_strategy,
        "min_sample_len": run.min_sample_len,
        "shuffle_seed": run.seed if run.shuffle_merged_datasets else None,
        "val_set_size": run.val_set_size,
        "sample_packing": run.sample_packing,
        "eval_sample_packing": _packs_eval(run) if run.val_set_size else None,
        "pyarrow": pa.__version__,
    }


def _produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    run = context.run
    rows = TokenRows(upstream["tokenize"])
    if run.excess_length_strategy == "raise":
        _refuse_long_rows(rows, run)
    cut = run.excess_length_strategy == "truncate"
    selection = select(rows, run.sequence_len, run.min_sample_len, cut=cut)
    _write_rejected(rows, selection, run, writer)
    train, held_out = _split(selection, run)
    sides = {"train": (train, run.sample_packing), "eval": (held_out, _packs_eval(run))}
    packs = {side: _pack(selection, members, run.sequence_len, packed) for side, (members, packed) in sides.items()}
    for side, index in packs.items():
        with writer.create(f"{side}.arrow") as draft:
            index.write(draft.path)
    context.progress(len(rows), len(rows), "rows")
    counted = {side: _facts(index, selection, run.sequence_len) for side, index in packs.items()}
    written = counted["train"]["rows"] + counted["eval"]["rows"]
    if written + sum(selection.counts.values()) != len(rows):
        raise StageError(f"pack: {len(rows)} rows read, but {written} written and {selection.counts} rejected")
    truncated = int(np.count_nonzero(selection.lengths[selection.kept] < selection.whole[selection.kept]))
    return {"sequence_len": run.sequence_len, **counted, "rejected": selection.counts, "truncated": truncated}


def _packs_eval(run: RunConfig) -> bool:
    return run.sample_packing if run.eval_sample_packing is None else run.eval_sample_packing


def _refuse_broken_data(tokens: Artifact, run: RunConfig) -> None:
    """Stop at data of which too much was rejected, also when a run with another limit tokenized it."""
    lost, read = sum(tokens.facts["rejected"].values()), tokens.facts["rows_read"]
    if lost <= run.max_rejected_ratio * read:
        return
    reasons = ", ".join(f"{reason}: {count}" for reason, count in tokens.facts["rejected"].items())
    raise DataError(
        f"{lost} of {read} rows cannot be used ({reasons}); max_rejected_ratio allows {run.max_rejected_ratio:.1%}. "
        f"{tokens.path('rejected.jsonl')} lists them. Correct them, or raise max_rejected_ratio to go on without them."
    )


def _refuse_long_rows(rows: TokenRows, run: RunConfig) -> None:
    long = np.flatnonzero(rows.lengths > run.sequence_len)
    if not len(long):
        return
    named = [f"{_name(rows, row, run)}: {rows.lengths[row]} tokens" for row in long[:SHOWN].tolist()]
    raise DataError(
        f"{len(long)} of {len(rows)} rows are longer than sequence_len ({run.sequence_len} tokens), the longest has "
        f"{rows.lengths.max()}: {'; '.join(named)}{'; ...' if len(long) > SHOWN else ''}. Raise sequence_len, or set "
        "excess_length_strategy to drop or truncate."
    )


def _name(rows: TokenRows, row: int, run: RunConfig) -> str:
    dataset, number = rows.source(row)
    return f"{run.datasets[dataset].path} row {number}"


def _write_rejected(rows: TokenRows, selection: Selection, run: RunConfig, writer: ArtifactWriter) -> None:
    """Write `rejected.jsonl`; volatile, because it names the paths of the data, which the key leaves out."""
    with writer.create("rejected.jsonl", volatile=True) as draft, draft.path.open("wb") as file:
        for row, reason in selection.rejected():
            dataset, number = rows.source(row)
            record = {
                "dataset": dataset,
                "row": number,
                "path": run.datasets[dataset].path,
                "reason": reason,
                "detail": _detail(selection, row, reason, run),
            }
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def _detail(selection: Selection, row: int, reason: str, run: RunConfig) -> str:
    length = int(selection.whole[row])
    if reason == "too_short":
        return f"{length} tokens, fewer than min_sample_len ({run.min_sample_len})"
    if reason == "nothing_trained":
        return f"none of its {length} tokens is trained"
    cut = ", and none of those that would be left after the cut is trained"
    return f"{length} tokens, more than sequence_len ({run.sequence_len})" + (
        cut if run.excess_length_strategy == "truncate" else ""
    )


def _split(selection: Selection, run: RunConfig) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of (train, eval), in their order: eval is the tail of the shuffled rows."""
    kept = selection.kept
    if not len(kept):
        raise DataError(
            f"none of the {len(selection.lengths)} tokenized rows can be trained on: {_told(selection)}. "
            f"For too_long raise sequence_len (now {run.sequence_len}), for too_short lower min_sample_len "
            f"(now {run.min_sample_len}), for nothing_trained check roles and columns (`sft inspect` shows the mask)."
        )
    if run.shuffle_merged_datasets:
        kept = shuffled(kept, run.seed)
    held_out = held_out_rows(len(kept), run.val_set_size)
    if held_out >= len(kept):
        rule = f"leaves no row to train on: {held_out} of {len(kept)} rows would be held out"
        remedy = "Lower it, or add data."
        raise ConfigError([Problem("configuration", "val_set_size", f"{run.val_set_size:g}", rule, remedy)])
    return kept[: len(kept) - held_out], kept[len(kept) - held_out :]


def _told(selection: Selection) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in selection.counts.items() if count) or "there was none"


def _pack(selection: Selection, members: npt.NDArray[np.int64], sequence_len: int, packed: bool) -> Packs:
    if packed:
        offsets, order = pack_best_fit(selection.lengths[members], sequence_len)
        members = members[order]
    else:
        offsets = np.arange(len(members) + 1, dtype=np.int64)
    return Packs(offsets, members, np.zeros(len(members), np.int32), selection.lengths[members])


def _facts(packs: Packs, selection: Selection, sequence_len: int) -> dict[str, Any]:
    """Return the counts of one side; `efficiency` is the share of `sequences * sequence_len` that holds tokens."""
    tokens = int(packs.lengths.sum(dtype=np.int64))
    return {
        "sequences": len(packs),
        "rows": len(packs.rows),
        "tokens": tokens,
        "trained_tokens": int(selection.trained[packs.rows].sum(dtype=np.int64)),
        "efficiency": round(tokens / (len(packs) * sequence_len), 6) if len(packs) else 0.0,
    }


STAGE = Stage("pack", 1, ("tokenize",), _inputs, _produce)
