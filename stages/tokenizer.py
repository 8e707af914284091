"""Resolves a tokenizer: loads it with Hugging Face's classes once, applies the configuration, writes plain files.

Run as `python -m stages.tokenizer`, with a JSON request on standard input and a JSON answer on standard output, so that
the heavy library is imported in a process of its own. What it writes can be read by the `tokenizers` library alone.

    request  {"source": folder, "out": folder, "special_tokens": {...}, "tokens": [text], "overrides": {id: text},
              "chat_template": text | null, "eot_tokens": [text], "tokenizer_type": class, "trust_remote_code": bool}
    answer   {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "eot_token_ids", "new_tokens": [text],
              "variables": {...}, "chat_template"}
             or {"error": text, "key": configuration key}

Tokens are set in the order of the original: overrides of added tokens, its padding by class, special tokens, plain
tokens, further special tokens, and where there is no padding yet, the end of sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson

VOLATILE_SETTINGS = ("name_or_path", "is_local", "local_files_only")
LLAMAS = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
SHOWN = 8


def resolve(request: dict[str, Any]) -> dict[str, Any]:
    """Write the tokenizer of a request into its `out` folder and return what workers need to know of it."""
    if not request["trust_remote_code"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # no tokenizer of the library needs it: 4 times as fast
    import transformers  # here, because the line above must come first

    kind = getattr(transformers, request["tokenizer_type"], None)
    if kind is None or "Tokenizer" not in request["tokenizer_type"]:
        return {"key": "tokenizer_type", "error": "is no class of transformers that loads a tokenizer"}
    load = partial(
        kind.from_pretrained,
        local_files_only=True,
        trust_remote_code=request["trust_remote_code"],
    )
    tokenizer = load(request["source"])
    if not tokenizer.is_fast:
        return {"key": "", "error": "has no fast form (a tokenizer.json), which is needed"}
    if request["overrides"]:
        tokenizer.save_pretrained(request["out"])
        unknown = override_added_tokens(Path(request["out"]), {int(k): v for k, v in request["overrides"].items()})
        if unknown:
            return {"key": "added_tokens_overrides", "error": unknown}
        tokenizer = load(request["out"])
    known = set(tokenizer.get_vocab())
    _set_tokens(tokenizer, request["special_tokens"], request["tokens"], transformers.AddedToken)
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
        "new_tokens": sorted(set(tokenizer.get_vocab()) - known, key=tokenizer.convert_tokens_to_ids),
        "eot_token_ids": [ids[0] for ids in ends.values()] or [tokenizer.eos_token_id],
        "variables": dict(tokenizer.special_tokens_map),
        "chat_template": template,
    }


def _set_tokens(tokenizer: Any, wanted: dict[str, Any], plain: list[str], added_token: Callable[..., Any]) -> None:
    kind = type(tokenizer).__name__
    if tokenizer.pad_token is None and kind in LLAMAS and "</s>" in tokenizer.get_vocab():
        tokenizer.pad_token = "</s>"  # noqa: S105  a token, no password
    exact = partial(added_token, lstrip=False, rstrip=False, normalized=False)
    named = {name: token for name, token in wanted.items() if token and name != "additional_special_tokens"}
    for name, token in named.items():
        tokenizer.add_special_tokens({name: exact(token)})
    if kind in LLAMAS and {"bos_token", "eos_token"} <= named.keys():
        tokenizer.update_post_processor()
    if plain:
        tokenizer.add_tokens([exact(token) for token in plain])
    if wanted["additional_special_tokens"]:
        tokenizer.add_tokens(wanted["additional_special_tokens"], special_tokens=True)


def override_added_tokens(folder: Path, overrides: dict[int, str]) -> str | None:
    """Give added tokens of a saved tokenizer other texts, by id; return what is wrong with the ids, None if nothing."""
    path = folder / "tokenizer.json"
    settings = orjson.loads(path.read_bytes())
    added = {token["id"]: token for token in settings["added_tokens"]}
    if unknown := sorted(overrides.keys() - added.keys()):
        return f"ids must be of added tokens, which {', '.join(map(str, unknown))} is not; they are {_told(added)}"
    old = {added[number]["content"]: text for number, text in overrides.items()}
    for number, text in overrides.items():
        added[number]["content"] = text
    vocabulary = settings["model"].get("vocab")
    if isinstance(vocabulary, dict):  # where it holds added tokens as well
        settings["model"]["vocab"] = {old.get(text, text): number for text, number in vocabulary.items()}
    path.write_bytes(orjson.dumps(_renamed(settings, old, ("post_processor",))))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            (folder / name).write_bytes(orjson.dumps(_renamed(orjson.loads((folder / name).read_bytes()), old)))
    return None


def _renamed(value: Any, old: dict[str, str], keys: tuple[str, ...] = ()) -> Any:
    """Return a JSON value with old tokens renamed, as texts and as keys of objects; with `keys` only below these."""
    if keys:
        return {key: _renamed(item, old) if key in keys else item for key, item in value.items()}
    if isinstance(value, dict):
        return {old.get(key, key): _renamed(item, old) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, old) for item in value]
    return old.get(value, value) if isinstance(value, str) else value


def _told(added: dict[int, Any]) -> str:
    shown = [f"{number} ({token['content']})" for number, token in sorted(added.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(added) - SHOWN} more" if len(added) > SHOWN else "")


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
