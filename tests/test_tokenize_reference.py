"""Random conversations, against `apply_chat_template` of transformers itself, for several templates and tokenizers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fetched
import orjson
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from stages.formats import Rejected, make_format
from stages.formats.rows import read_row
from stages.templates.choice import ChatTemplate, choose_template
from stages.tokenize.encoder import Encoder, Tokenized

GENERATION = """\
{% for m in messages %}
    {% if m.role == 'assistant' %}
<|im_start|>{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}

    {% else %}
{{ m.role ~ ': ' ~ m.content | tojson }}
    {% endif %}
    {% if loop.index > 7 %}
        {% break %}
    {% endif %}
{% endfor %}
"""
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}### {{ m.role }}:\n{{ m.content | trim }}{{ eos_token }}\n\n{% endfor %}"
)
TEMPLATES = {
    "chatml": tiny.CHATML,
    "trimming": TRIMMING,
    "generation": GENERATION,
    **{name: choose_template(fetched.make_run(Path("m"), chat_template=name)).text for name in ("llama3", "qwen_25")},
}
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet=" \n\t[]ab<|>é日🙂", max_size=12),
    st.sampled_from(["<|im_end|>", "x<|im_end|>y", "[[a]]", "user", "", " ", "\n", "\ue000", "👩‍👩‍👧", "e\u0301x"]),
)
CONVERSATIONS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), min_size=1, max_size=7)


def byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def byte_level_trimming_offsets(tokenizer: Tokenizer) -> None:
    byte_level(tokenizer)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)


def metaspace(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])


def build(kind: Callable[[Tokenizer], None], folder: Path) -> PreTrainedTokenizerFast:
    fallback = kind is metaspace
    tokenizer = Tokenizer(models.BPE(byte_fallback=fallback, unk_token="<unk>" if fallback else None))
    kind(tokenizer)
    tokens = [*tiny.SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256) if fallback)]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(tiny.SPECIAL),
        initial_alphabet=[] if fallback else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny.SENTENCES, trainer)
    settings_ = orjson.loads(tokenizer.to_str())
    if fallback:
        vocabulary = settings_["model"]["vocab"]
        vocabulary |= {token: len(vocabulary) + n for n, token in enumerate(t for t in tokens if t not in vocabulary)}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(orjson.dumps(settings_).decode()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.fixture(
    scope="module", params=[byte_level, byte_level_trimming_offsets, metaspace], ids=lambda kind: kind.__name__
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Encoder]:
    """Give a tokenizer as transformers has it, and ours of the same files."""
    folder = tmp_path_factory.mktemp("tokenizer")
    reference = build(request.param, folder)
    return reference, Encoder(folder, reference.bos_token_id, reference.eos_token_id, [reference.eos_token_id], 0)


def encode(encoder: Encoder, template: str, reference: Any, row: dict[str, Any]) -> Tokenized | Rejected:
    form = make_format(fetched.make_run(Path("m")), 0, ChatTemplate(template, reference.special_tokens_map))
    try:
        pieces = form.pieces(read_row(orjson.dumps(row)))
    except Rejected as rejected:
        return rejected
    result = encoder.encode([pieces], form).of(0)
    return result if isinstance(result, Rejected) else result[0]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60)
@given(conversation=CONVERSATIONS)
@example(conversation=[("user", "e\u0301"), ("assistant", "e\u0301x e\u0301"), ("assistant", "\u0301 \n")])
def test_ids_are_those_of_transformers_and_the_trained_text_is_the_contents(
    pair: tuple[Any, Encoder], name: str, conversation: list[tuple[str, str]]
) -> None:
    reference, encoder = pair
    template = TEMPLATES[name] or ""
    messages = [{"role": role, "content": content} for role, content in conversation]
    result = encode(encoder, template, reference, {"messages": messages})
    expected = reference.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=False)
    if not expected:
        assert isinstance(result, Rejected)
        assert result.reason == "no_text"
        return
    assert isinstance(result, Tokenized), result
    assert result.ids.tolist() == expected
    said = reference.decode(result.ids[result.trained].tolist(), skip_special_tokens=False)
    assert re.fullmatch(trained_text(reference, messages, name), without_spaces(reference, said)), said


def trained_text(reference: Any, messages: list[dict[str, str]], name: str) -> str:
    """Return a pattern of what has to be trained: the contents of the assistant, each with the end token if it has one.

    A content that starts with white space may have its first token in common with the line break of the header.
    """
    end = (
        "" if name == "llama3" else "<|im_end|>"
    )  # llama3 ends turns with <|eot_id|>, which is not the end of sequence
    shown = messages[:8] if name == "generation" else messages
    contents = [message["content"] for message in shown if message["role"] == "assistant"]
    if name in ("trimming", "llama3"):
        contents = [content.strip() for content in contents]
    normalizer = reference.backend_tokenizer.normalizer
    texts = [(normalizer.normalize_str(content) if normalizer else content) + end for content in contents if content]
    return "".join(f"\n*{re.escape(without_spaces(reference, text))}" for text in texts)


def without_spaces(reference: Any, text: str) -> str:
    """Return text without white space, if the tokenizer is one that does not give it back."""
    if isinstance(reference.backend_tokenizer.decoder, decoders.ByteLevel):
        return text
    return re.sub(r"[\s▁]+", "", text)


def test_a_beginning_of_sequence_stands_once_in_front(tmp_path: Path) -> None:
    reference = build(byte_level, tmp_path)
    reference.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", reference.bos_token_id)]
    )
    reference.save_pretrained(tmp_path)
    encoder = Encoder(tmp_path, reference.bos_token_id, reference.eos_token_id, [reference.eos_token_id])
    form = make_format(fetched.make_run(Path("m"), {"type": "alpaca"}), 0, None)
    row = {"instruction": "Add 1 and 1", "output": "2"}
    result = encoder.encode([form.pieces(row)], form).of(0)
    assert not isinstance(result, Rejected)
    text = reference.decode(result[0].ids.tolist(), skip_special_tokens=False)
    assert text.startswith("<|im_start|>Below is")
    assert text.endswith("### Response:\n2<|im_end|>")
    assert text.count("<|im_start|>") == 1
    assert reference.decode(result[0].ids[result[0].trained].tolist()) == "2<|im_end|>"


@pytest.mark.parametrize(
    ("mode", "ends"), [("all", [1, 1, 1, 1]), ("turn", [0, 1, 0, 1]), ("last", [0, 0, 0, 1]), ("none", [0, 0, 0, 0])]
)
def test_which_end_tokens_are_trained(tmp_path: Path, mode: str, ends: list[int]) -> None:
    reference = build(byte_level, tmp_path)
    encoder = Encoder(tmp_path, 1, 2, [2])
    run = fetched.make_run(Path("m"), {"train_on_eos": mode})
    form = make_format(run, 0, ChatTemplate(tiny.CHATML, {}))
    row = {"messages": [{"role": ("user", "assistant")[n % 2], "content": "abc"} for n in range(4)]}
    result = encoder.encode([form.pieces(row)], form).of(0)
    assert not isinstance(result, Rejected)
    (tokens,) = result
    assert tokens.trained[tokens.ids == reference.eos_token_id].tolist() == [bool(end) for end in ends]


def test_a_completion_is_cut_into_rows(tmp_path: Path) -> None:
    reference = build(byte_level, tmp_path)
    encoder = Encoder(tmp_path, 1, 2, [2])
    form = make_format(fetched.make_run(Path("m"), {"type": "completion"}, sequence_len=5), 0, None)
    result = encoder.encode([form.pieces({"text": "0123456789 abc é"})], form).of(0)
    assert not isinstance(result, Rejected)
    assert [len(part.ids) for part in result][:-1] == [5] * (len(result) - 1)
    assert all(part.trained.all() for part in result)
    joined = [number for part in result for number in part.ids.tolist()]
    assert reference.decode(joined) == "0123456789 abc é<|im_end|>"


def test_a_mask_that_cannot_be_proven_is_rejected(tmp_path: Path) -> None:
    """A tokenizer that throws characters away: what would be trained is not what the row says."""
    reference = build(byte_level, tmp_path)
    backend = reference.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("b", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    reference.save_pretrained(tmp_path)
    encoder = Encoder(tmp_path, 1, 2, [2])
    row = {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a b c"}]}
    result = encode(encoder, tiny.CHATML, reference, row)
    assert isinstance(result, Rejected)
    assert result.reason == "mask_not_proven"
    kept = encode(
        encoder,
        tiny.CHATML,
        reference,
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]},
    )
    assert isinstance(kept, Tokenized)
