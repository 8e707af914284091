"""Templates that only copy contents: which are taken for such, and that their skeletons give what rendering gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fetched
import orjson
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.formats import Piece, PlainChats, Rejected, RowFormat, make_format, make_plain
from stages.formats.rows import read_row
from stages.templates.choice import ChatTemplate, choose_template, known_templates
from stages.templates.proof import Needs

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<p>", "unk_token": "<u>"}
TEXTS = st.one_of(
    st.text(" \n<>/abé🙂", min_size=1, max_size=8),
    st.sampled_from(
        ["", "a<think>b</think>c", "</think>", "<tool_response>x</tool_response>", "\ue0000\ue001", "{{ x }}"]
    ),
)
LOOK_INSIDE = ("command_a", "command_a_rag", "command_a_tool_use", "deepseek", "exaone4", "gemma4", "gemma4_unified",
               "llama4", "mistral")  # fmt: skip
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "gpt"])
CONVERSATIONS = st.one_of(
    st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=6),
    st.lists(TEXTS, min_size=1, max_size=6).map(
        lambda said: [(("user", "assistant")[n % 2], t) for n, t in enumerate(said)]
    ),
)


def compiled(body: str) -> ChatTemplate:
    return ChatTemplate(body, VARIABLES)


def needs(inside: str) -> Needs | None:
    """Return what a template needs whose loop has this body."""
    return compiled("{% for message in messages %}" + inside + "{% endfor %}").copying_needs()


@pytest.mark.parametrize(
    ("inside", "clean_edges", "without"),
    [
        ("{{ message.content }}", False, set()),
        ("{{ '<' + message['role'] + '>' ~ message.get('content') }}", False, set()),
        ("{{ message.content | trim }}{{ message.content.strip() }}", True, set()),
        ("{% set text = message.content %}{% if text is string and text %}{{ text }}{% endif %}", False, set()),
        ("{% if '</x>' in message.content %}{{ message.content | length }}{% endif %}", False, {"</x>"}),
        ("{% if message.content is not string %}{{ message.content | tojson }}{% endif %}", False, set()),
        ("{% if message.tool_calls %}{{ message | tojson }}{% endif %}{{ message.content }}", False, set()),
        ("{% if loop.first and messages[0].content.startswith('!') %}!{% endif %}", False, {"!"}),
        ("{% if loop.previtem and loop.previtem.role == 'user' %}{{ loop.previtem.content }}{% endif %}", False, set()),
    ],
)
def test_copying_is_seen(inside: str, clean_edges: bool, without: set[str]) -> None:
    assert needs(inside) == Needs(clean_edges, frozenset(without))


@pytest.mark.parametrize(
    "inside",
    [
        "{{ message.content | upper }}",
        "{{ message.content | length }}",
        "{{ message.content[:3] }}",
        "{{ message.content.split('x') | first }}",
        "{{ message | tojson }}",
        "{{ message }}",
        "{{ messages }}",
        "{{ '%s' % message.content }}",
        "{{ [message.content] | join }}",
        "{{ message.values() | list }}",
        "{{ ('a' ~ message.content) | trim }}",
        "{{ message.content | trim('a') }}",
        "{% if message.content == 'x' %}x{% endif %}",
        "{% if message.content in ['x'] %}x{% endif %}",
        "{% if message.role in message.content %}x{% endif %}",
        "{% if message.content is lower %}x{% endif %}",
        "{% if messages[0].content | length > 3 %}x{% endif %}",
        "{% for character in message.content %}{{ character }}{% endfor %}",
        "{% for key in message %}{{ message[key] }}{% endfor %}",
        "{% set ns = namespace(x='') %}{% set ns.x = message.content %}{{ ns.x | upper }}",
        "{% set text %}{{ message.content }}{% endset %}{{ text | length }}",
        "{% macro m(text) %}{{ text | length }}{% endmacro %}{{ m(message.content) }}",
        "{% set other = message %}{{ other['con' ~ 'tent'] | length }}",
        "{% if x %}{% set t = message.content %}{% endif %}{% if not t %}{{ message.content | upper }}{% endif %}",
        "{% filter upper %}{{ message.content }}{% endfilter %}",
        "{{ loop.changed(message.content) }}",
        "{{ dict(a=message.content) }}",
        "{{ messages | map(attribute='content') | join }}",
        "{{ message.content if message.content > 'b' else '' }}",
    ],
)
def test_what_looks_into_contents_is_not_taken_for_copying(inside: str) -> None:
    assert needs(inside) is None


def both(template: str, **options: Any) -> tuple[PlainChats | None, RowFormat]:
    run, chat = fetched.make_run(Path("model"), options), compiled(template)
    return make_plain(run, 0, chat), make_format(run, 0, chat)


def exact(form: RowFormat, raw: bytes) -> list[Piece] | None:
    try:
        return form.pieces(read_row(raw))
    except Rejected:
        return None


@pytest.mark.parametrize("name", known_templates())
@pytest.mark.parametrize("options", [{}, {"train_on_eos": "all", "roles_to_train": ["user", "assistant"]}])
def test_a_skeleton_gives_the_text_and_the_turns_of_a_rendering(name: str, options: dict[str, Any]) -> None:
    text = choose_template(fetched.make_run(Path("model"), chat_template=name)).text
    plain, form = both(text or "", **options)
    if plain is None:
        assert name.partition("_v")[0] in LOOK_INSIDE
        return

    @settings(max_examples=40)
    @given(conversation=CONVERSATIONS)
    def check(conversation: list[tuple[str, str]]) -> None:
        raw = orjson.dumps({"messages": [{"role": role, "content": said} for role, said in conversation]})
        found = plain.pieces(raw)
        assert found is None or found == exact(form, raw)

    check()
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    assert plain.pieces(orjson.dumps({"messages": chat})) is not None


@pytest.mark.parametrize(
    "row",
    [
        b"{",
        b"[]",
        {"messages": []},
        {"messages": None},
        {"messages": "x"},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"messages": [{"role": ["user"], "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "name": "y"}]},
        {"messages": [{"role": "user"}]},
        {"messages": ["user"]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"a": 1}]},
        {"messages": [{"role": "user", "content": "x"}], "system": "y"},
    ],
)
def test_rows_that_are_not_plain_are_left_to_the_exact_way(row: Any) -> None:
    plain, _ = both(tiny.CHATML)
    assert plain is not None
    assert plain.pieces(row if isinstance(row, bytes) else orjson.dumps(row)) is None


def test_names_and_roles_of_the_data_are_mapped() -> None:
    mapping = {"field_messages": "turns", "message_property_mappings": {"role": "from", "content": "value"}}
    plain, form = both(tiny.CHATML, **mapping)
    assert plain is not None
    raw = orjson.dumps({"turns": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "n": 10**18})
    found = plain.pieces(raw)
    assert found == exact(form, raw)
    assert found is not None
    (turn,) = found[0].turns
    assert found[0].text[turn.span.start : turn.span.end] == "Ho"
