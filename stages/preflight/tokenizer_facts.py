"""What a tokenizer's files say, without loading the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig

MADE_BY_CLASS = ("PreTrainedTokenizerFast", "TokenizersBackend", "")
"""Tokenizer classes that have no special tokens but those in their files."""


@dataclass(frozen=True)
class TokenizerFacts:
    """What the files of a tokenizer say.

    Attributes:
        chat_template: whether it brings a chat template.
        bos_token: its beginning of sequence; None where the files do not say.
        eos_token: its end of sequence.
        pad_token: its pad token.
        says_all: whether a special token that is not in the files does not exist; a class of its own may add some.
        size: number of tokens; None where the run changes none, so that the large vocabulary file was not read.
        new_tokens: special tokens of the run that it does not have.
    """

    chat_template: bool
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    says_all: bool
    size: int | None
    new_tokens: frozenset[str]


def tokenizer_facts(folder: Path, run: RunConfig) -> TokenizerFacts:
    """Read what a tokenizer's folder says; the vocabulary only if the run sets tokens or takes another tokenizer."""
    config, special = _json(folder / "tokenizer_config.json"), _json(folder / "special_tokens_map.json")
    wanted = _wanted(run)
    size, known = _vocabulary(folder, wanted) if wanted or run.tokenizer_config else (None, wanted)
    return TokenizerFacts(
        chat_template=bool(config.get("chat_template"))
        or any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")),
        bos_token=_text(config.get("bos_token") or special.get("bos_token")),
        eos_token=_text(config.get("eos_token") or special.get("eos_token")),
        pad_token=_text(config.get("pad_token") or special.get("pad_token")),
        says_all=bool(config) and config.get("tokenizer_class", "") in MADE_BY_CLASS,
        size=size,
        new_tokens=frozenset(wanted) - frozenset(known),
    )


def _wanted(run: RunConfig) -> list[str]:
    tokens = run.special_tokens
    named = (tokens.bos_token, tokens.eos_token, tokens.pad_token, tokens.unk_token)
    renamed = set(run.added_tokens_overrides.values())  # which have their id already
    return [
        token for token in (*named, *tokens.additional_special_tokens, *run.tokens) if token and token not in renamed
    ]


def _vocabulary(folder: Path, wanted: Iterable[str]) -> tuple[int | None, list[str]]:
    """Return the number of tokens, and which of the wanted ones are among them; (None, all) if it cannot be read."""
    content = _json(folder / "tokenizer.json")
    model = content.get("model")
    learned = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(learned, dict | list):
        return None, list(wanted)
    words = learned if isinstance(learned, dict) else {item[0] for item in learned if isinstance(item, list) and item}
    added = [item for item in content.get("added_tokens") or () if isinstance(item, dict)]
    names = {str(item.get("content")) for item in added}
    size = max(len(learned), *(int(item.get("id", 0)) + 1 for item in added), 0)
    return size, [token for token in wanted if token in names or token in words]


def _text(value: Any) -> str | None:
    """Return a token written as text, or as `{"content": text}`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
