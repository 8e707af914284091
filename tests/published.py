"""What stands above a merged model, as small as it can be: a run of one data set without rows."""

from __future__ import annotations

from typing import Any

from stages.artifacts import Artifact, Store

NOTHING = {"rows": 0, "rows_written": 0, "tokens": 0, "trained_tokens": 0, "sequences": 0, "sequence_len": 512}
FACTS: dict[str, dict[str, Any]] = {
    "fetch": {"datasets": [{"split": "train", "rows": 0, "shards": []}]},
    "tokenize": {"datasets": [NOTHING], "shards": []},
    "pack": {"sequence_len": 512, "train": NOTHING, "eval": NOTHING},
    "train": {
        "kind": "model",
        "base_model": {"hub": "somewhere/base", "commit": "0" * 40},
        "precision": "fp32",
        "quantization": None,
        "steps": 1,
        "epochs": 1.0,
        "world_size": 1,
        "first_loss": 2.0,
        "final_loss": 1.0,
        "eval_loss": None,
        "trained_tokens_seen": 0,
    },
}


def upstream_of(store: Store, model: Artifact) -> dict[str, Artifact]:
    """Return what publishing a merged model is given."""
    made = {}
    for stage, facts in FACTS.items():
        inputs = {"datasets": [{"source": {"hub": "some/rows", "commit": "1" * 40}}]} if stage == "fetch" else {}
        with store.writer(stage, {"stage": stage, **inputs}, {}) as writer:
            if writer.finished("nothing") is None:
                writer.write("nothing", b"")
            made[stage] = writer.commit(facts=facts)
    return {**made, "merge": model}
