"""Good configurations made wrong in every way that people make them wrong, always the same ones."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.schema import DatasetConfig, RunConfig

GOOD = """\
base_model: some/model
datasets:
  - path: data.jsonl
    type: chat_template
    roles_to_train: [assistant]
special_tokens:
  pad_token: "<|pad|>"
sequence_len: 2048
sample_packing: true
val_set_size: 0.05
adapter: lora
lora_r: 16
lora_target_modules: [q_proj, "v_proj"]
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
learning_rate: 2e-4
output_dir: ./out  # of this run
"""


@dataclass(frozen=True)
class Mutation:
    """A wrong file.

    Attributes:
        content: what is in it.
        key: the dotted key that must be named; empty where the file as a whole is wrong.
        says: what the sentence must hold.
    """

    content: bytes
    key: str = ""
    says: str = ""


def typos() -> Iterator[Mutation]:
    """Every key of the schema, misspelled."""
    for model, indent, prefix in ((RunConfig, "", ""), (DatasetConfig, "    ", "datasets.0.")):
        for number, key in enumerate(model.model_fields):
            middle = len(key) // 2
            wrong = (
                key[:middle] + key[middle + 1 :],
                key[:middle] + key[middle] + key[middle:],
                key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :],
                key.replace("_", "-") if "_" in key else key.upper(),
                key.title(),
            )[number % 5]
            if wrong in model.model_fields or wrong == key:
                wrong = f"{key}{key[-1]}"
            yield Mutation(_with(f"{wrong}: 1", indent), f"{prefix}{wrong}", key)


def wrong_types() -> Iterator[Mutation]:
    """Every key of the schema with a value of another kind."""
    for key, info in RunConfig.model_fields.items():
        yield Mutation(_with(f"{key}: {_wrong_value(info)}"), key)
    for key, info in DatasetConfig.model_fields.items():
        yield Mutation(_with(f"{key}: {_wrong_value(info)}", "    "), f"datasets.0.{key}")


def out_of_range() -> Iterator[Mutation]:
    """Every key that has limits, just over each."""
    for key, info in RunConfig.model_fields.items():
        for limit in _limits(info):
            beyond = {Ge: -1, Gt: 0, Lt: 0, Le: 1}[type(limit)]
            edge: Any = next(iter(vars_of(limit)))
            yield Mutation(_with(f"{key}: {edge + beyond}"), key)
    for key, value in (
        ("learning_rate", ".nan"),
        ("weight_decay", ".inf"),
        ("num_epochs", "1e999"),
        ("seed", "9" * 30),
    ):
        yield Mutation(_with(f"{key}: {value}"), key)


CONTRADICTIONS = {
    "batch_size: 8": "batch_size",
    "warmup_steps: 5\nwarmup_ratio: 0.1": "warmup_steps",
    "eval_steps: 5\nevals_per_epoch: 1": "eval_steps",
    "save_steps: 5\nsaves_per_epoch: 1": "save_steps",
    "load_in_4bit: true\nload_in_8bit: true": "load_in_4bit",
    "adapter: qlora": "adapter",
    "adapter: dora": "adapter",
    "adapter:\nload_in_4bit: true": "load_in_4bit",
    "adapter:\nload_in_8bit: true": "load_in_8bit",
    "lora_target_modules:": "adapter",
    "bf16: true\nfp16: true": "bf16",
    "deepspeed: {zero_optimization: {stage: 2}}\nfsdp_config: {reshard_after_forward: true}": "fsdp_config",
    "deepspeed: ds.json": "deepspeed",
    "fsdp: [full_shard]\nfsdp_config: 3": "fsdp_config",
    "fsdp: [hybrid_shard]": "fsdp",
    "fsdp_config: {auto_wrap_policy: SIZE_BASED_WRAP}": "fsdp_config",
    "flash_attention: true\nattn_implementation: sdpa": "flash_attention",
    "val_set_size: 0\neval_steps: 10": "eval_steps",
    "bnb_config_kwargs: {bnb_4bit_quant_type: fp4}": "bnb_config_kwargs",
    "plugins: [my.own.Plugin]": "plugins.0",
    "orchestration: {cron: '0 2 * * *', interval: 60}": "orchestration",
    "rl: dpo": "rl",
    "processor_type: AutoProcessor": "processor_type",
    "gptq: true": "gptq",
}


def contradictions() -> Iterator[Mutation]:
    """Keys that cannot both hold, and what is not done here."""
    for text, key in CONTRADICTIONS.items():
        yield Mutation(_with(text), key)


def missing() -> Iterator[Mutation]:
    """Each required line left out."""
    for key in ("base_model", "learning_rate"):
        yield Mutation(_without(key), key)
    yield Mutation(GOOD.replace("micro_batch_size: 2\n", "").encode(), "", "two of micro_batch_size")
    yield Mutation(GOOD.replace("    type: chat_template\n", "").encode(), "datasets.0.type")
    yield Mutation(GOOD.replace("path: data.jsonl\n    ", "").encode(), "datasets.0.path")


def duplicates() -> Iterator[Mutation]:
    """Each line once more, with the same value."""
    for line in GOOD.splitlines():
        key, colon, _ = line.partition(":")
        if colon and key[0] not in " ":
            yield Mutation((GOOD + (line if line[-1] != ":" else f"{key}: []") + "\n").encode(), key, "stands twice")


BROKEN = (
    *(
        "a: [1, 2",
        "a: {b: 1",
        'a: "b',
        "a: 'b",
        "a: *b",
        "a: @b",
        "a: `b",
        "a: b: c",
        "a: %x",
        "a: !x 1",
        "a",
        "a: |x\n",
    ),
    *("- a", "}", "a: !!python/object/apply:os.system [ls]", "%YAML 9", "a: &", 'a: "\\q"', "a: ]", "---\nb: 1"),
    *("? [x]\n: 1", "{a: 1}: 2", "a: 1\n b: 2", "a:\n- 1\n  b: 2", "a: 'x' y", "a: 1\n\tb: 2", "a: >9x\n"),
)


def broken_yaml() -> Iterator[Mutation]:
    """What is not YAML, or not a mapping of keys to values."""
    for number, line in enumerate(GOOD.splitlines()):
        if not line.startswith("  "):
            yield Mutation(_line(number, "\t" + line), "", "run.yaml")
            yield Mutation(_line(number, line.replace(":", "", 1)), "", "run.yaml")
    for text in BROKEN:
        yield Mutation((GOOD + text + "\n").encode(), "", "run.yaml")


def no_text() -> Iterator[Mutation]:
    """Files that are something else."""
    yield from (
        Mutation(content) for content in (b"", b"\n\n", b"# nothing\n", b"- a\n", b"word", b"3", b"null", b"[]")
    )
    yield from (Mutation(GOOD.encode(coding)) for coding in ("utf-16", "utf-16-le", "utf-32"))
    yield Mutation(GOOD.replace("out", "für").encode("latin-1"), "", "run.yaml:18")
    yield from (
        Mutation(bytes(range(256)) * 8),
        Mutation(b"\x89PNG\r\n\x1a\n\0\0\0"),
        Mutation(b"PK\x03\x04" + b"\0" * 99),
    )
    for code in (0, 1, 8, 27, 127):
        yield Mutation((GOOD + f"seed: {chr(code)}1\n").encode(), "", f"U+{code:04X}")
    for escape in ("\\0", "\\ud800", "\\udfff"):
        yield Mutation(_with(f'output_dir: "{escape}"'), "output_dir")


def too_much() -> Iterator[Mutation]:
    """Files that grow, or go down, without end."""
    names = "abcdefghi"
    for times in (9, 20):
        inner = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * times)}]\n" for a, b in itertools.pairwise(names))
        yield Mutation(f"a: &a [{', '.join('x' * times)}]\n{inner}".encode(), "", "unfolds")
    merged = "".join(f"b{n}: &b{n}\n  <<: [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 12))
    yield Mutation(f"b0: &b0 {{x: 1}}\n{merged}".encode(), "", "unfolds")
    yield from (Mutation(text.encode()) for text in ("a: &a [*a]\n", "a: &a {b: *a}\n", "a: &a\n  <<: *a\n"))
    for opening in ("[", "{", "- ", "? ", "{a: ", "!!x "):
        yield Mutation((opening * (20_000 // len(opening))).encode())
    yield Mutation("".join(f"{'  ' * depth}a:\n" for depth in range(290)).encode())
    yield Mutation((GOOD + "x" * 200_000).encode(), "", "more than a configuration holds")
    yield Mutation((GOOD + "seed: 1\n" * 30_000).encode(), "", "more than a configuration holds")
    yield Mutation((GOOD + "".join(f"key{n}: {n}\n" for n in range(6_000))).encode(), "", "not known")
    yield Mutation((GOOD + f"seed: {'9' * 6_000}\n").encode())
    yield Mutation((GOOD + f"{'k' * 3_000}: 1\n").encode())


KINDS = {
    "typos": typos,
    "wrong types": wrong_types,
    "out of range": out_of_range,
    "contradictions": contradictions,
    "missing keys": missing,
    "duplicate keys": duplicates,
    "broken YAML": broken_yaml,
    "no text": no_text,
    "too much": too_much,
}


def _with(line: str, indent: str = "") -> bytes:
    """Return the good file with lines in it, in place of those that set the same keys."""
    keys = {text.partition(":")[0] for text in line.splitlines()}
    lines: list[str] = []
    skipping = False
    for text in GOOD.splitlines():
        deeper = text.startswith("  ")
        if indent:
            skipping = text.strip().removeprefix("- ").partition(":")[0] in keys
            lines += [text.replace(text.strip().removeprefix("- "), line) if skipping else text]
            continue
        skipping = skipping if deeper else text.partition(":")[0] in keys
        lines += [] if skipping else [text]
    if indent and not any(line in text for text in lines):
        lines.insert(4, f"{indent}{line}")
    return "\n".join([*lines, *([] if indent else [line]), ""]).encode()


def _without(key: str) -> bytes:
    return "".join(f"{line}\n" for line in GOOD.splitlines() if not line.startswith(f"{key}:")).encode()


def _line(number: int, text: str) -> bytes:
    lines = GOOD.splitlines()
    return "\n".join([*lines[:number], text, *lines[number + 1 :], ""]).encode()


def _wrong_value(info: FieldInfo) -> str:
    return "3.5" if any(kind is dict or issubclass(kind, BaseModel) for kind in _kinds(info.annotation)) else "{x: [1]}"


def _kinds(annotation: Any) -> Iterator[type]:
    origin = typing.get_origin(annotation)
    if isinstance(origin or annotation, type):
        yield origin or annotation
    for argument in typing.get_args(annotation):
        yield from _kinds(argument)


def _limits(info: FieldInfo) -> list[Any]:
    return [limit for limit in info.metadata if isinstance(limit, Ge | Gt | Le | Lt)]


def vars_of(limit: Any) -> list[Any]:
    return [getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)]
