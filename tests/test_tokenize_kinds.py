"""Tokenizers of many kinds: whatever encodes a text, ids and masks are those of the tokenizer and its offsets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fetched
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stages.tokenize import encoder

CONTROL = ["<unk>", "<|im_start|>", "<|im_end|>"]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAID = [
    " the quick brown fox\njumps over 12 lazy dogs ",
    "naïve café, Straße; e\u0301 and ﬁne",
    "  indented\n\tcode()  # 2+2=4\n\n",
    "你好世界 こんにちは 😀👩\u200d👧 done",
    "don't <mask> stop  word sword  ABC abc <both> 1234567890",
    "Q",
]
EDGES = [
    AddedToken("<mask>", lstrip=True),
    AddedToken("word", single_word=True),
    AddedToken("<both>", lstrip=True, rstrip=True),
    AddedToken("abc", normalized=True),
    AddedToken("  "),
]


def byte_level(
    pre: Any = None, normalizer: Any = None, added: tuple[AddedToken, ...] = (), *, ignore_merges: bool = False
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet, special_tokens=CONTROL),
    )
    tokenizer.add_tokens(list(added))
    return tokenizer


def after(first: Any, use_regex: bool = True) -> Any:
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)])


def sentencepiece(normalizer: Any, pre: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=[*CONTROL, *bytes_], max_token_length=12
    )
    return with_plain_bytes(trained(tokenizer, trainer))


def unigram(scheme: str, *, byte_fallback: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trainer = trainers.UnigramTrainer(
        vocab_size=500, show_progress=False, special_tokens=[*CONTROL, *bytes_], unk_token="<unk>"
    )
    return with_plain_bytes(trained(tokenizer, trainer), byte_fallback=byte_fallback)


def wordpiece(*, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trained(
        tokenizer,
        trainers.WordPieceTrainer(vocab_size=500, show_progress=False, special_tokens=[*CONTROL, "[CLS]", "[SEP]"]),
    )
    edges = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=edges)
    return tokenizer


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(SAID * 3, trainer)
    return tokenizer


def with_plain_bytes(tokenizer: Tokenizer, **model: Any) -> Tokenizer:
    """Return a tokenizer whose tokens for bytes are tokens like others, as those of SentencePiece are."""
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] in CONTROL]
    settings["model"] |= model
    settings["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return Tokenizer.from_str(json.dumps(settings))


UNDERSCORES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "a space in front": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "NFC": lambda: byte_level(normalizer=normalizers.NFC()),
    "NFKC": lambda: byte_level(normalizer=normalizers.NFKC()),
    "single digits": lambda: byte_level(after(pre_tokenizers.Digits(individual_digits=True))),
    "Llama 3": lambda: byte_level(
        after(pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), use_regex=False), ignore_merges=True
    ),
    "added tokens": lambda: byte_level(added=tuple(EDGES)),
    "added and lower case": lambda: byte_level(normalizer=normalizers.Lowercase(), added=tuple(EDGES)),
    "no spaces": lambda: byte_level(after(pre_tokenizers.Whitespace())),
    "SentencePiece, prepended": lambda: sentencepiece(UNDERSCORES),
    "SentencePiece, always": lambda: sentencepiece(
        normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="always")
    ),
    "SentencePiece, first": lambda: sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "Unigram": lambda: unigram("always", byte_fallback=False),
    "Unigram with bytes": lambda: unigram("first", byte_fallback=True),
    "WordPiece": lambda: wordpiece(lowercase=True),
    "WordPiece, cased": lambda: wordpiece(lowercase=False),
}


@pytest.mark.parametrize("fast_after", [0, 10**9], ids=["fastest", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_tokenizer(kind: str, fast_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder.Encoder.__init__, "__defaults__", (fast_after,))
    tokenizer = KINDS[kind]()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}
        for asked in SAID
        for answered in SAID
    ]
    outcome, found = fetched.tokenize_here(tmp_path / "shard", tmp_path, fetched.make_run(tmp_path), rows)
    assert outcome.rejected == []
    for row, (ids, labels) in zip(rows, found, strict=True):
        expected = by_offsets(tokenizer, *(message["content"] for message in row["messages"]))
        assert (ids, labels) == expected, row


def by_offsets(tokenizer: Tokenizer, asked: str, answered: str) -> tuple[list[int], list[int]]:
    """Return ids and labels of a conversation in ChatML: the answer and the end behind it are trained."""
    front = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    encoding = tokenizer.encode(f"{front}{answered}<|im_end|>\n", add_special_tokens=False)
    start, stop = len(front), len(front) + len(answered) + len("<|im_end|>")
    labels = [
        token if first < stop and last > start else -100
        for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True)
    ]
    return encoding.ids, labels
