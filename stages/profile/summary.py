"""What a recorded profile says: where the time of the steps went, and what each finding suggests.

    trace events -> spans with the time that is their own -> classes -> findings

With a GPU the time is that of its kernels and copies, and what is left are gaps in which it waited. Without one it is
that of PyTorch's operators, each without the operators that it calls, and what is left is Python.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stages.errors import StageError
from stages.profile.findings import findings_of

TRACE = "profiler_trace.json"
SNAPSHOT = "snapshot.pickle"

CLASSES: tuple[tuple[str, str], ...] = (
    ("collectives", r"nccl|gloo:|c10d::|all_?reduce|all_?gather|reduce_?scatter"),
    ("data wait", r"DataLoader"),
    ("optimizer", r"adam|lion|sgd|adafactor|foreach|multi_tensor|clip_grad|Optimizer"),
    ("attention", r"attention|flash_|fmha|attn"),
    ("matrix products", r"gemm|cutlass|cublas|::mm$|::bmm$|addmm|matmul|::linear$|mkldnn_linear|baddbmm|xmma|nvjet"),
    ("loss", r"softmax|logsumexp|cross_entropy|nll_loss|_SummedLoss"),
    ("copies", r"memcpy|memset|::copy_|::_to_copy|::to$|::cat$|::clone|contiguous|::fill_|::zero_|::empty|direct_copy"),
    ("indexing", r"index|embedding|gather|scatter|nonzero"),
    ("elementwise", r"."),
)
"""Class -> what the name of its kernels or operators looks like; the first that fits."""

DEVICE_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")
TOP = 12


@dataclass(frozen=True)
class Span:
    """Something that took time: `seconds` of its own, from `begin` for `length` on the clock of the trace (seconds)."""

    name: str
    kind: str
    begin: float
    length: float
    seconds: float
    shapes: str


def summarise(folder: Path) -> dict[str, Any]:
    """Return the summary of the profile in a folder, JSON-ready.

    Raises:
        StageError: there is no profile, or it is not one.
    """
    path = folder / TRACE
    try:
        trace = orjson.loads(path.read_bytes())
        events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    except FileNotFoundError:
        raise StageError(
            f"{path}: there is no profile. Set profiler_steps: 5 and profiler_steps_start: 10, and run again."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{path}: this is not a trace of PyTorch's profiler ({error}). Record it again.") from error
    first, last = trace.get("sft_steps", [1, 1])
    return summary_of(events, steps=last - first + 1, first=first)


def summary_of(events: Sequence[dict[str, Any]], *, steps: int, first: int = 1) -> dict[str, Any]:
    """Return the summary of the complete events of a trace that covers `steps` steps."""
    on_gpu = any(event.get("cat") in DEVICE_KINDS for event in events)
    work = _device_spans(events) if on_gpu else _operator_spans(events)
    waits = _waits(events)
    wall = _wall(events)
    busy = _covered((span.begin, span.begin + span.length) for span in work)
    classes = _classes(work, waits, wall, busy, on_gpu=on_gpu)
    summary: dict[str, Any] = {
        "device": "gpu" if on_gpu else "cpu",
        "steps": [first, first + steps - 1],
        "seconds": wall,
        "seconds_per_step": wall / steps,
        "busy_share": busy / wall if wall else 0.0,
        "classes": classes,
        "top": _top(work, wall),
        "small": _small(work),
    }
    return {**summary, "findings": findings_of(summary)}


def class_of(name: str) -> str:
    """Return the class of a kernel or operator.

    >>> [class_of(name) for name in ("aten::addmm", "ampere_sgemm_128x64_tn", "aten::_fused_adamw_", "aten::mul")]
    ['matrix products', 'matrix products', 'optimizer', 'elementwise']
    """
    return next(title for title, pattern in CLASSES if re.search(pattern, name, re.IGNORECASE))


def _device_spans(events: Iterable[dict[str, Any]]) -> list[Span]:
    return [_span(event, event["dur"] / 1e6) for event in events if event.get("cat") in DEVICE_KINDS]


def _operator_spans(events: Iterable[dict[str, Any]]) -> list[Span]:
    """Return the operators with the time that is not that of operators inside them; each thread by itself."""
    threads: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "cpu_op":
            threads[event.get("pid"), event.get("tid")].append(event)
    spans = []
    for thread in threads.values():
        thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [event["dur"] for event in thread]
        open_: list[int] = []
        for place, event in enumerate(thread):
            while open_ and _end(thread[open_[-1]]) <= event["ts"]:
                open_.pop()
            if open_:
                own[open_[-1]] -= event["dur"]
            open_.append(place)
        spans += [_span(event, max(0.0, micro) / 1e6) for event, micro in zip(thread, own, strict=True)]
    return spans


def _span(event: dict[str, Any], seconds: float) -> Span:
    dims = event.get("args", {}).get("Input Dims", [])
    shapes = " ".join("x".join(map(str, size)) for size in dims if size and all(isinstance(n, int) for n in size))
    return Span(event["name"], event["cat"], event["ts"] / 1e6, event["dur"] / 1e6, seconds, shapes)


def _waits(events: Iterable[dict[str, Any]]) -> float:
    """Return the seconds in which the training waited for its data loader."""
    waits = (event for event in events if event.get("cat") == "user_annotation" and "DataLoader" in event["name"])
    return _covered((event["ts"] / 1e6, _end(event) / 1e6) for event in waits)


def _wall(events: Sequence[dict[str, Any]]) -> float:
    timed = [event for event in events if event.get("cat") in (*DEVICE_KINDS, "cpu_op", "user_annotation")]
    if not timed:
        return 0.0
    return float(max(map(_end, timed)) - min(event["ts"] for event in timed)) / 1e6


def _end(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals.

    >>> _covered([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _classes(work: Sequence[Span], waits: float, wall: float, busy: float, *, on_gpu: bool) -> list[dict[str, Any]]:
    """Return the classes, most time first; the last is the time in which nothing ran, without the wait for data."""
    seconds, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for span in work:
        title = class_of(span.name)
        seconds[title] += span.seconds
        calls[title] += 1
    rest = max(0.0, wall - busy)
    if waits:
        seconds["data wait"] += min(waits, rest)
        rest = max(0.0, rest - waits)
    ordered = sorted(seconds, key=lambda title: -seconds[title])
    seconds["gaps" if on_gpu else "outside operators"] = rest
    return [
        {
            "name": title,
            "seconds": seconds[title],
            "share": seconds[title] / wall if wall else 0.0,
            "calls": calls[title],
        }
        for title in [*ordered, "gaps" if on_gpu else "outside operators"]
    ]


def _top(work: Sequence[Span], wall: float) -> list[dict[str, Any]]:
    """Return the kernels or operators with the most time, products by their shapes."""
    seconds, calls = defaultdict[tuple[str, str], float](float), defaultdict[tuple[str, str], int](int)
    for span in work:
        mark = (span.name, span.shapes if class_of(span.name) == "matrix products" else "")
        seconds[mark] += span.seconds
        calls[mark] += 1
    most = sorted(seconds, key=lambda mark: -seconds[mark])[:TOP]
    return [
        {
            "name": name,
            "shapes": shapes,
            "class": class_of(name),
            "seconds": seconds[name, shapes],
            "share": seconds[name, shapes] / wall if wall else 0.0,
            "calls": calls[name, shapes],
        }
        for name, shapes in most
    ]


def _small(work: Sequence[Span]) -> dict[str, Any]:
    """Return how many of the kernels or operators took less than 10 microseconds, and their share of the time."""
    small = [span for span in work if span.length < 1e-5]
    total = sum(span.seconds for span in work)
    time = sum(span.seconds for span in small)
    return {"calls": len(small), "of": len(work), "share_of_time": time / total if total else 0.0}
