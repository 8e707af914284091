"""Resolves a tokenizer: loads it with Hugging Face's classes once, applies the configuration, writes plain files.

Run as `python -m stages.tokenizer`, with a JSON request on standard input and a JSON answer on standard output, so that
the heavy library is imported in a process of its own. What it writes can be read by the `tokenizers` library alone.

    request  {"source": folder, "out": folder, "special_tokens": {...}, "chat_template": text | null,
              "eot_tokens": [text], "trust_remote_code": bool}
    answer   {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "eot_token_ids", "variables": {...},
              "chat_template"}
             or {"error": text, "key": configuration key}
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson

VOLATILE_SETTINGS = ("name_or_path", "is_local", "local_files_only")


def resolve(request: dict[str, Any]) -> dict[str, Any]:
    """Write the tokenizer of a request into its `out` folder and return what workers need to know of it."""
    if not request["trust_remote_code"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # no tokenizer of the library needs it: 4 times as fast
    import transformers  # here, because the line above must come first

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        request["source"], local_files_only=True, trust_remote_code=request["trust_remote_code"]
    )
    if not tokenizer.is_fast:
        return {"key": "", "error": "has no fast form (a tokenizer.json), which is needed"}
    _set_special_tokens(tokenizer, request["special_tokens"])
    if tokenizer.eos_token_id is None:
        return {"key": "special_tokens.eos_token", "error": "is not set, and the tokenizer has none of its own"}
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends = {token: tokenizer.encode(token, add_special_tokens=False) for token in request["eot_tokens"]}
    if several := [token for token, ids in ends.items() if len(ids) != 1]:
        return {"key": "eot_tokens", "error": f"must be single tokens of the tokenizer; not so: {', '.join(several)}"}
    template = request["chat_template"] or _own_template(tokenizer.chat_template)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(request["out"])
    _drop_volatile_settings(Path(request["out"]) / "tokenizer_config.json")
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eot_token_ids": [ids[0] for ids in ends.values()] or [tokenizer.eos_token_id],
        "variables": dict(tokenizer.special_tokens_map),
        "chat_template": template,
    }


def _set_special_tokens(tokenizer: Any, wanted: dict[str, Any]) -> None:
    named = {name: token for name, token in wanted.items() if token and name != "additional_special_tokens"}
    if named:
        tokenizer.add_special_tokens(named)
    if wanted["additional_special_tokens"]:
        tokenizer.add_tokens(wanted["additional_special_tokens"], special_tokens=True)


def _own_template(template: Any) -> str | None:
    """Return the tokenizer's own template; of several named ones the default."""
    if isinstance(template, dict):
        return template.get("default")
    return template or None


def _drop_volatile_settings(path: Path) -> None:
    """Remove what tells where the tokenizer came from, not what it is."""
    settings = orjson.loads(path.read_bytes())
    kept = {key: value for key, value in settings.items() if key not in VOLATILE_SETTINGS}
    path.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def main() -> None:
    """Answer the request on standard input."""
    try:
        answer = resolve(orjson.loads(sys.stdin.buffer.read()))
    except Exception as error:  # noqa: BLE001  the process's whole purpose; its caller words the error
        answer = {"key": "", "error": f"cannot be loaded: {type(error).__name__}: {error}"}
    sys.stdout.buffer.write(orjson.dumps(answer))


if __name__ == "__main__":
    main()
