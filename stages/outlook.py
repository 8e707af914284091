"""What can be said of a run before it starts: what would stop it, what is unusual, whether it fits. Without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from configs.load import LoadedRun
from configs.schema import RunConfig
from stages.base_model import TOKENIZER_FILES, find_model, find_tokenizer
from stages.errors import ConfigError, Problem, SftError
from stages.estimate.activations import Pass
from stages.estimate.fit import Fit, fit
from stages.estimate.gpus import Gpu, gpu_called, gpus_named
from stages.estimate.shapes import ModelShape, model_shape
from stages.pipeline import STAGE_NAMES
from stages.preflight import Finding, Scene, judge, look, stop_on
from stages.preflight.scene import note, refused, warning
from stages.preflight.tokenizer_facts import TokenizerFacts, tokenizer_facts
from stages.train.machine import Machine, precision, this_machine, world_size

Found = TypeVar("Found")


@dataclass(frozen=True)
class Devices:
    """What a training would run on.

    Attributes:
        machine: its GPUs.
        gpu: their kind; None without one, or if it is not in the table.
        processes: number of training processes, one for each.
        here: whether it is this machine.
    """

    machine: Machine
    gpu: Gpu | None
    processes: int
    here: bool

    @property
    def name(self) -> str:
        """Return the device as a person names it."""
        if self.gpu is not None:
            return self.gpu.name
        return "GPU" if self.machine.gpus else "CPU"

    @property
    def bytes(self) -> int | None:
        """Return the memory of one device; of a CPU the part of one process; None if it is not known."""
        if self.gpu is not None:
            return self.gpu.bytes
        if self.machine.gpus:
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // self.processes


@dataclass(frozen=True)
class Outlook:
    """What is known of a run before it starts.

    Attributes:
        devices: what it would train on.
        findings: what would stop it, what is unusual, what is safe and may surprise.
        shape: sizes of the base model; None if its configuration could not be read.
        fit: the memory that training needs; None without sizes.
    """

    devices: Devices
    findings: tuple[Finding, ...]
    shape: ModelShape | None
    fit: Fit | None

    def at(self, *levels: str) -> list[Finding]:
        """Return the findings of these levels."""
        return [finding for finding in self.findings if finding.level in levels]

    def stop(self, *, strict: bool = False) -> None:
        """Refuse a run with errors, and with `strict` one with warnings.

        Raises:
            ConfigError: with all of them.
        """
        stop_on(self.findings, strict=strict)

    def until(self, stage: str) -> Outlook:
        """Return what concerns the stages up to this one."""
        wanted = STAGE_NAMES[: STAGE_NAMES.index(stage) + 1]
        return replace(self, findings=tuple(finding for finding in self.findings if finding.stage in wanted))

    def of_file(self) -> Outlook:
        """Return what holds on any machine: what only this one is without is a warning."""
        softened = (
            replace(finding, level="warning") if finding.of_machine and finding.level == "error" else finding
            for finding in self.findings
        )
        return replace(self, findings=tuple(softened))


def look_ahead(loaded: LoadedRun, *, gpu: str | None = None, finished: Iterable[str] = ()) -> Outlook:
    """Return what can be said of a run.

    Args:
        loaded: the configuration.
        gpu: GPU to plan for, `h100` or `8xh100`; None for what this machine has.
        finished: stages whose artifact is there already.

    Raises:
        ConfigError: the GPU is not known.
    """
    run = loaded.run
    devices = _devices(run, gpu)
    missing: list[Finding] = []
    shape = _found(missing, lambda: _shape(run))
    tokenizer = _found(missing, lambda: _tokenizer(run))
    scene = Scene(run, devices.machine, devices.here, shape, tokenizer, frozenset(finished))
    found = _fit(run, shape, devices)
    findings = [
        *missing,
        *look(scene),
        *judge(run, processes=devices.processes, shape=shape),
        *(_too_large(run, devices, found) if found is not None else ()),
    ]
    placed = (replace(finding, place=loaded.place(finding.key)) for finding in findings)
    return Outlook(devices, tuple(placed), shape, found)


def _devices(run: RunConfig, named: str | None) -> Devices:
    here = named is None
    gpu, count = (None, None) if named is None else gpus_named(named)
    if gpu is None:
        machine = this_machine()
        gpu = _gpu_here() if machine.gpus else None
    else:
        wanted = run.launcher.processes
        machine = Machine((gpu.capability,) * (count or (1 if wanted == "auto" else wanted)))
    try:
        processes = world_size(run, machine)
    except ConfigError:  # a check says it
        processes = max(1, len(machine.gpus))
    return Devices(machine, gpu, processes, here)


def _gpu_here() -> Gpu | None:
    """Return the kind of the GPU that the driver of this machine lists first, None if it is not in the table."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = next((line for line in path.read_text().splitlines() if line.startswith("Model:")), "")
        return gpu_called(model.removeprefix("Model:"))
    return None


def _is_gguf(run: RunConfig) -> bool:
    return run.gguf_file is not None or run.base_model.endswith(".gguf")


def _shape(run: RunConfig) -> ModelShape:
    if _is_gguf(run):
        raise SftError("a GGUF file says its sizes only to who reads all of it")
    return model_shape(find_model(run).folder(("config.json",)))


def _tokenizer(run: RunConfig) -> TokenizerFacts:
    if _is_gguf(run) and run.tokenizer_config is None:
        raise SftError("a GGUF file says its tokenizer only to who reads all of it")
    return tokenizer_facts(find_tokenizer(run).folder(TOKENIZER_FILES), run)


def _found(findings: list[Finding], find: Callable[[], Found]) -> Found | None:
    """Return what `find` finds; else add why it does not: an error, or a note if it may be there another time."""
    try:
        return find()
    except ConfigError as problem:
        new = [refused(_check_of(wrong), wrong, stage="tokenize") for wrong in problem.problems]
    except SftError as problem:
        rule = f"could not be looked at: {problem}".rstrip(".")
        new = [note("not-looked-at", "base_model", None, rule, "What depends on it is not checked.")]
    findings += [finding for finding in new if finding not in findings]
    return None


def _check_of(wrong: Problem) -> str:
    return "hub-token-missing" if "HF_TOKEN" in wrong.remedy else "not-found"


def _fit(run: RunConfig, shape: ModelShape | None, devices: Devices) -> Fit | None:
    """Return the estimate of memory; None without sizes, or if the precision is one that the device has not."""
    if shape is None or not shape.sized:
        return None
    try:
        computed_in = precision(run, devices.machine)
    except ConfigError:  # a check says it
        return None
    device: Literal["cpu", "cuda"] = "cuda" if devices.machine.gpus else "cpu"
    step = Pass(computed_in, device, rows=run.sequences_per_pass, width=run.sequence_len)
    return fit(run, shape, step, devices.processes, devices.bytes)


def _too_large(run: RunConfig, devices: Devices, found: Fit) -> list[Finding]:
    if found.fits is not False or found.available is None:
        return []
    needed, there = found.memory.total / 2**30, found.available / 2**30
    steps = "; then ".join(change.keys for change in found.changes)
    last = "" if found.enough else "; and use more or larger GPUs, with fsdp_config"
    remedy = f"Set {steps}{last}." if steps else "Use more or larger GPUs, with fsdp_config."
    rule = f"about {needed:.1f} GiB are needed on each {devices.name}, which has {there:.1f}"
    return [warning("does-not-fit", "micro_batch_size", run.sequences_per_pass, rule, remedy, of_machine=True)]
