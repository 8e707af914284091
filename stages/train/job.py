"""What the stage hands to the training processes, and where things lie in the working folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from configs.schema import RunConfig
from stages.train.machine import Precision


class Job(BaseModel):
    """One training, with everything resolved.

    Attributes:
        key: key of the artifact that is being made; a checkpoint of another key is never resumed.
        run: the configuration.
        tokens: folder of the tokenize artifact.
        packs: folder of the pack artifact.
        model: folder of the base model.
        model_name: how the saved adapter names its base model.
        model_commit: commit of the base model on the Hub; None for a folder.
        adapter: folder of the adapter whose training goes on, if there is one.
        checkpoint: folder of a checkpoint of another training to start from, if there is one.
        work: working folder, kept between tries.
        precision: precision of the computation.
        attention: the attention implementation; None: SDPA sample by sample on a CPU.
        tf32: whether float32 matrix products are computed in TensorFloat-32.
        world_size: number of training processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    run: RunConfig
    tokens: Path
    packs: Path
    model: Path
    model_name: str
    model_commit: str | None
    adapter: Path | None = None
    checkpoint: Path | None = None
    work: Path
    precision: Precision
    attention: str | None = None
    tf32: bool
    world_size: int


class WorkFolder:
    """Names of the files in the working folder of a training."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job = root / "job.json"
        self.log = root / "train.log"
        self.metrics = root / "metrics.jsonl"
        self.health = root / "health.json"
        self.samples = root / "samples.jsonl"
        self.trace = root / "profiler_trace.json"
        self.snapshot = root / "snapshot.pickle"
        self.final = root / "final"
        self.done = root / "done.json"

    def agent_report(self, node: int | str) -> Path:
        """Return where the agent of a node writes the exit codes of its processes."""
        return self.root / f"agent-{node}.json"

    def rank_log(self, rank: int) -> Path:
        """Return where a process writes what it prints; the first one writes to the log that people read."""
        return self.root / f"rank-{rank}.log" if rank else self.log

    def failure(self, rank: int) -> Path:
        """Return where a process writes the error that ends it."""
        return self.root / f"failure-{rank}.json"

    def clear_reports(self) -> None:
        """Remove what an earlier try said about its end."""
        for path in (*self.root.glob("agent-*.json"), *self.root.glob("failure-*.json"), *self.root.glob("rank-*.log")):
            path.unlink(missing_ok=True)
