"""Memory and time of the loss head, forward and backward: the plain loss against ours, each in a process of its own.

python infra/bench/train_loss.py [--vocabulary 151936] [--tokens 1024] [--size 576] [--trained 0.45] [--frozen]

Prints one JSON document. `peak_mib` is what a case needs beyond its inputs and the gradients that every case returns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = ("plain", "checkpointed_chunks", "ours")


def main() -> None:
    """Measure every case, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--size", type=int, default=576)
    parser.add_argument("--trained", type=float, default=0.45, help="share of trained tokens")
    parser.add_argument("--frozen", action="store_true", help="the head is not trained, as with LoRA")
    parser.add_argument("--case", choices=CASES)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options)))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--case"]
    found = {case: json.loads(subprocess.check_output([*command, case], cwd=ROOT)) for case in CASES}
    for case in CASES:
        found[case]["speed_against_plain"] = round(found["plain"]["seconds"] / found[case]["seconds"], 2)
    print(json.dumps({"options": vars(options), **found}, indent=2))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the time of the second pass, the memory of both, and what shows that all cases compute the same."""
    sys.path.insert(0, str(ROOT))
    import torch

    from stages.tokens import IGNORED

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(1, options.tokens, options.size, requires_grad=True)
    weight = (torch.randn(options.vocabulary, options.size) * 0.02).requires_grad_(not options.frozen)
    labels = torch.randint(0, options.vocabulary, (1, options.tokens))
    labels[:, : int(options.tokens * (1 - options.trained))] = IGNORED
    loss_of = _losses()[options.case]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, seconds = _peak_mib(), 0.0
    for _ in range(2):
        hidden.grad = weight.grad = None
        started = time.perf_counter()
        loss = loss_of(hidden, weight, labels)
        loss.backward()
        seconds = time.perf_counter() - started
    gradients = [tensor.grad for tensor in (hidden, weight) if tensor.grad is not None]
    peak = _peak_mib()
    returned = sum(gradient.numel() * gradient.element_size() for gradient in gradients) / 2**20
    return {
        "seconds": round(seconds, 2),
        "peak_mib": round(peak - before - returned),
        "loss": loss.item(),
        "gradient_norm": float(sum(gradient.norm() ** 2 for gradient in gradients)) ** 0.5,
    }


def _losses() -> dict[str, Callable[..., object]]:
    from torch.nn import functional
    from torch.utils.checkpoint import checkpoint

    from stages.tokens import IGNORED
    from stages.train.loss import summed_loss

    def plain(hidden, weight, labels):  # type: ignore[no-untyped-def]
        logits = (hidden @ weight.T).float()[0, :-1]
        return functional.cross_entropy(logits, labels[0, 1:])

    def part(states, weight, targets):  # type: ignore[no-untyped-def]
        return functional.cross_entropy((states @ weight.T).float(), targets, reduction="sum")

    def checkpointed_chunks(hidden, weight, labels):  # type: ignore[no-untyped-def]
        pairs = zip(hidden[0, :-1].split(128), labels[0, 1:].split(128), strict=True)
        total = sum(checkpoint(part, states, weight, targets, use_reentrant=False) for states, targets in pairs)
        return total / (labels[0, 1:] != -100).sum()

    def ours(hidden, weight, labels):  # type: ignore[no-untyped-def]
        return summed_loss(hidden, weight, labels) / (labels[0, 1:] != IGNORED).sum()

    return {"plain": plain, "checkpointed_chunks": checkpointed_chunks, "ours": ours}


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
