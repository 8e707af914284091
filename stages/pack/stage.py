"""The pack stage: reads the lengths of the tokenized rows, writes an index of slices that make the sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from configs.schema import RunConfig
from stages.artifacts import Artifact, ArtifactWriter
from stages.errors import DataError, StageError
from stages.pack.best_fit import pack_best_fit
from stages.pack.choice import Choice, choose
from stages.pack.in_order import pack_in_order
from stages.pack.selection import Selection, select
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
        "shuffle_seed": run.seed if run.shuffles else None,
        "val_set_size": run.val_set_size,
        "sample_packing": run.sample_packing,
        "eval_sample_packing": _packs_eval(run) if run.val_set_size or run.test_datasets else None,
        **_options(run),
        "pyarrow": pa.__version__,
        "numpy": np.__version__,
    }


def _options(run: RunConfig) -> dict[str, Any]:
    """Return what else decides, where it is asked for."""
    options: dict[str, Any] = {}
    if run.test_datasets:
        options |= {"test_datasets": len(run.test_datasets), "eval_sequence_len": _eval_length(run)}
    if run.shuffle_before_merging_datasets:
        options["shuffle_before_merging_datasets"] = run.seed
    if run.dataset_exact_deduplication:
        options["dataset_exact_deduplication"] = True
    if run.packs_in_order and (run.sample_packing or _packs_eval(run)):
        options["packs_in_order"] = True
    if run.dataset_shard_num is not None:
        options["dataset_shard"] = [run.dataset_shard_num, run.dataset_shard_idx]
    if run.mixture is not None:
        options["mixture"] = {**run.mixture.model_dump(), "weights": [dataset.weight for dataset in run.datasets]}
    return options


def _produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    run = context.run
    rows = TokenRows(upstream["tokenize"])
    limits = np.where(rows.datasets < len(run.datasets), run.sequence_len, _eval_length(run)).astype(np.int32)
    if run.excess_length_strategy == "raise":
        _refuse_long_rows(rows, limits, run)
    selection = select(rows, limits, run.min_sample_len, cut=run.excess_length_strategy == "truncate")
    chosen = choose(rows, selection, run)
    _write_rejected(rows, chosen, run, writer)
    selection = chosen.selection
    packs = {
        "train": _pack(selection, chosen.train, run.sequence_len, run, packed=run.sample_packing),
        "eval": _pack(selection, chosen.held_out, _eval_length(run), run, packed=_packs_eval(run)),
    }
    for side, index in packs.items():
        with writer.create(f"{side}.arrow") as draft:
            index.write(draft.path)
    context.progress(len(rows), len(rows), "rows")
    used = len(np.unique(packs["train"].rows)) + len(packs["eval"].rows)
    if used + sum(selection.counts.values()) + sum(chosen.left_out.values()) != len(rows):
        raise StageError(
            f"pack: {len(rows)} rows read, but {used} written, {selection.counts} rejected, {chosen.left_out} left out"
        )
    return {
        "sequence_len": run.sequence_len,
        "train": _facts(packs["train"], selection, run.sequence_len),
        "eval": _facts(packs["eval"], selection, _eval_length(run)),
        "rejected": selection.counts,
        "left_out": chosen.left_out,
        "truncated": int(np.count_nonzero(selection.lengths[selection.kept] < selection.whole[selection.kept])),
        "datasets": _by_dataset(rows, packs, selection, len(run.sources)),
    }


def _by_dataset(
    rows: TokenRows, packs: dict[str, Packs], selection: Selection, datasets: int
) -> list[dict[str, dict[str, int]]]:
    """Return for each data set, by side, what it comes to; a row that is repeated counts each time."""
    counted: list[dict[str, dict[str, int]]] = [{} for _ in range(datasets)]
    for side, index in packs.items():
        sources = rows.datasets[index.rows]
        for number in np.unique(sources).tolist():
            own = index.rows[sources == number]
            counted[number][side] = {
                "rows": len(own),
                "tokens": int(selection.lengths[own].sum(dtype=np.int64)),
                "trained_tokens": int(selection.trained[own].sum(dtype=np.int64)),
            }
    return counted


def _eval_length(run: RunConfig) -> int:
    return run.eval_sequence_len or run.sequence_len


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


def _refuse_long_rows(rows: TokenRows, limits: npt.NDArray[np.int32], run: RunConfig) -> None:
    long = np.flatnonzero(rows.lengths > limits)
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
    return f"{run.sources[dataset].shown} row {number}"


def _write_rejected(rows: TokenRows, chosen: Choice, run: RunConfig, writer: ArtifactWriter) -> None:
    """Write `rejected.jsonl`; volatile, because it names the paths of the data, which the key leaves out."""
    with writer.create("rejected.jsonl", volatile=True) as draft, draft.path.open("wb") as file:
        for row, reason in chosen.selection.rejected():
            dataset, number = rows.source(row)
            record = {
                "dataset": dataset,
                "row": number,
                "path": run.sources[dataset].shown,
                "reason": reason,
                "detail": _detail(rows, chosen, row, reason, run),
            }
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def _detail(rows: TokenRows, chosen: Choice, row: int, reason: str, run: RunConfig) -> str:
    length = int(chosen.selection.whole[row])
    if reason == "duplicate":
        return f"the same tokens and mask as {_name(rows, chosen.repeats[row], run)}"
    if reason == "too_short":
        return f"{length} tokens, fewer than min_sample_len ({run.min_sample_len})"
    if reason == "nothing_trained":
        return f"none of its {length} tokens is trained"
    key = "sequence_len"
    if rows.source(row)[0] >= len(run.datasets) and run.eval_sequence_len is not None:
        key = "eval_sequence_len"
    cut = ", and none of those that would be left after the cut is trained"
    return f"{length} tokens, more than {key} ({getattr(run, key)})" + (
        cut if run.excess_length_strategy == "truncate" else ""
    )


def _pack(
    selection: Selection, members: npt.NDArray[np.int64], sequence_len: int, run: RunConfig, *, packed: bool
) -> Packs:
    if packed and run.packs_in_order:
        offsets = pack_in_order(selection.lengths[members], sequence_len)
    elif packed:
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


STAGE = Stage("pack", 2, ("tokenize",), _inputs, _produce)
