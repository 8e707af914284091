"""The old ways to ask for a precision, brought into `bf16` and `fp16`."""

from __future__ import annotations

from collections.abc import Iterator

from configs.document import Document

PRECISION_KEYS = {"bfloat16": "bf16", "float16": "fp16", "float32": "bf16"}
_MEANT: dict[str, dict[str, object]] = {
    "bfloat16": {"bf16": "full", "fp16": False},
    "float16": {"bf16": False, "fp16": True},
    "float32": {"bf16": False, "fp16": False},
}


def read_precision(document: Document) -> None:
    """Replace `bfloat16`, `float16` and `float32`, which keep all weights in one precision, by what is like them here.

    Weights that are trained in float16 do not learn: they are kept in float32, and only computed with in float16.
    """
    values = document.values
    asked = [key for key in PRECISION_KEYS if values.get(key) is True]
    for key in asked:
        meant = _MEANT[key]
        against = [*_against(document, meant), *(other for other in asked if other != key)]
        if against:
            document.problem((key,), True, f"{key} and {against[0]} exclude each other", f"Remove {key}.")
            continue
        new = ", ".join(f"{name}: {str(value).lower()}" for name, value in meant.items())
        document.notice((key,), True, f"is read as {new}", "Use the new names.")
        values |= meant
    for key in PRECISION_KEYS:
        values.pop(key, None)


def _against(document: Document, meant: dict[str, object]) -> Iterator[str]:
    """Yield the keys that ask for another precision."""
    for name, value in meant.items():
        if document.values.get(name) is True and not value:
            yield name
