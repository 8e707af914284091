"""GPUs by name: how much memory a process can use there, and what they can compute."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.errors import ConfigError, Problem


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: as `--gpu` takes it.
        gib: memory that a process can use, GiB.
        capability: compute capability.
        tflops: dense products in bfloat16, else float16, in TFLOP/s by the maker's data sheet.
    """

    name: str
    gib: float
    capability: tuple[int, int]
    tflops: float

    @property
    def bytes(self) -> int:
        """Return the memory in bytes."""
        return int(self.gib * 2**30)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 14.6, (7, 5), 65),
        Gpu("v100-16gb", 15.8, (7, 0), 112),
        Gpu("v100-32gb", 31.7, (7, 0), 112),
        Gpu("rtx3060", 11.6, (8, 6), 51),
        Gpu("rtx3090", 23.6, (8, 6), 71),
        Gpu("rtx4060ti", 15.6, (8, 9), 88),
        Gpu("rtx4080", 15.6, (8, 9), 97),
        Gpu("rtx4090", 23.6, (8, 9), 165),
        Gpu("rtx5090", 31.4, (12, 0), 209),
        Gpu("a10", 22.1, (8, 6), 125),
        Gpu("a10g", 22.1, (8, 6), 70),
        Gpu("a30", 23.6, (8, 0), 165),
        Gpu("a40", 44.4, (8, 6), 150),
        Gpu("l4", 22.0, (8, 9), 121),
        Gpu("l40s", 44.4, (8, 9), 362),
        Gpu("a6000", 47.4, (8, 6), 155),
        Gpu("a100-40gb", 39.4, (8, 0), 312),
        Gpu("a100-80gb", 79.2, (8, 0), 312),
        Gpu("h100", 79.2, (9, 0), 989),
        Gpu("gh200", 94.5, (9, 0), 989),
        Gpu("h200", 139.8, (9, 0), 989),
        Gpu("b200", 178.0, (10, 0), 2250),
    )
}
DEFAULTS = {"a100": "a100-80gb", "v100": "v100-16gb"}
"""What a name without its memory means."""


def gpus_named(text: str) -> tuple[Gpu, int | None]:
    """Return a GPU and how many of them, None if the text does not say; the maker's way of writing is understood.

    >>> gpu, count = gpus_named("8xH100")
    >>> gpu.name, count
    ('h100', 8)
    >>> gpus_named("NVIDIA A100-SXM4-40GB")[0].name
    'a100-40gb'

    Raises:
        ConfigError: it is not in the table.
    """
    many = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\S.*)", text)
    count, name = (int(many[1]), many[2]) if many else (None, text)
    found = _find(name)
    if found is None or count == 0:
        rule = f"this GPU is not in the table: {', '.join(GPUS)}"
        raise ConfigError([Problem("command line", "--gpu", text, rule, "Name the one with the nearest memory.")])
    return found, count


def gpu_called(model: str) -> Gpu | None:
    """Return the GPU that a driver calls `model`, None if it is not in the table."""
    return _find(model)


def _find(name: str) -> Gpu | None:
    words = re.sub(r"[-_ ]+", " ", name.lower())
    words = re.sub(r"\b(nvidia|geforce|tesla|sxm\d?|pcie|hbm\d?e?|gpu)\b", "", words)
    memory = re.search(r"\b\d+ ?gb\b", words)
    model = words.replace(memory[0], "") if memory else words
    plain = model.replace(" ", "")
    for candidate in (f"{plain}-{memory[0].replace(' ', '')}" if memory else "", DEFAULTS.get(plain, ""), plain):
        if candidate in GPUS:
            return GPUS[candidate]
    return None
