"""Looking at rows: which are chosen, how they are told turn by turn, and the page that shows them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from configs.schema import RunConfig
from stages.artifacts import Artifact, Store
from stages.inspection.page import page
from stages.inspection.rows import picks
from stages.inspection.terminal import show_masks
from stages.inspection.turns import RowReader
from stages.tokens import TokenRows
from tests import fetched, tiny

CHATS: list[Any] = [
    {"messages": [
        {"role": "system", "content": "Be kind </script><script>alert(1)</script>"},
        {"role": "user", "content": f"what is {'very ' * n}nice? 你好 👩‍👩‍👧"},
        {"role": "assistant", "content": f"it is {n}."},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "done"},
    ]}
    for n in range(20)
]  # fmt: skip
BROKEN = [b"<b>not JSON</b>", {"messages": []}, {"messages": []}, {"text": "a"}]


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Artifact, Artifact]:
    folder = tmp_path_factory.mktemp("looked")
    tokenizer = tiny.build_tokenizer(folder / "tokenizer")
    run = fetched.make_run(tokenizer)
    run = run.model_copy(update={"datasets": (*run.datasets, run.datasets[0].model_copy(update={"type": "alpaca"}))})
    alpaca = [{"instruction": f"say {n}", "output": str(n)} for n in range(3)]
    tokens = fetched.tokenize(folder, run, [*CHATS, *BROKEN], alpaca)
    raw = Store(folder / "store").find("fetch", tokens.manifest.parents["fetch"])
    assert raw is not None
    return run, raw, tokens


@pytest.fixture(scope="module")
def html(looked: tuple[RunConfig, Artifact, Artifact]) -> str:
    return page(*looked, 5)


def data_of(html: str) -> Any:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def test_the_page_says_the_tokens_and_masks_of_the_artifact(
    looked: tuple[RunConfig, Artifact, Artifact], html: str
) -> None:
    rows = {(dataset, row): (ids, labels) for dataset, row, ids, labels in fetched.tokenized_rows(looked[2])}
    tokenizer = Tokenizer.from_file(str(looked[2].path("tokenizer/tokenizer.json")))
    shown = [row for row in data_of(html)["rows"] if "turns" in row]
    assert len(shown) > 10
    for row in shown:
        ids, labels = rows[row["dataset"], row["row"]]
        cells = [cell for turn in row["turns"] for cell in turn["cells"]]
        assert [token for _, tokens, _ in cells for token in tokens] == ids
        assert [bool(flags & 1) for _, tokens, flags in cells for _ in tokens] == [label != -100 for label in labels]
        assert "".join(text for text, _, _ in cells) == tokenizer.decode(ids, skip_special_tokens=False)
        marked = [text for text, _, flags in cells if flags & 2]
        assert marked == re.findall(r"<\|im_(?:start|end)\|>", "".join(text for text, _, _ in cells))
    cells = [cell for row in shown for turn in row["turns"] for cell in turn["cells"]]
    assert any(len(ids) > 1 and "👩" in text for text, ids, _ in cells), "one character of several tokens"


def test_rows_are_told_turn_by_turn(html: str) -> None:
    rows = data_of(html)["rows"]
    chat = next(row for row in rows if row["dataset"] == 0 and "turns" in row)
    assert [turn["role"] for turn in chat["turns"]] == ["system", "user", "assistant", "assistant"]
    texts = ["".join(text for text, _, _ in turn["cells"]) for turn in chat["turns"]]
    assert all(text.startswith("<|im_start|>") and text.endswith("<|im_end|>\n") for text in texts)
    assert [bool(turn["trained"]) for turn in chat["turns"]] == [False, False, True, True]
    alpaca = next(row for row in rows if row["dataset"] == 1)
    assert [turn["role"] for turn in alpaca["turns"]] == ["read", "trained"]


def test_what_is_chosen(looked: tuple[RunConfig, Artifact, Artifact], html: str) -> None:
    rows = TokenRows(looked[2])
    chosen = picks(rows, 2, 5)
    assert chosen == picks(rows, 2, 5), "the same each time"
    assert {pick.why for pick in chosen if pick.dataset == 0} == {"random", "longest", "shortest"}
    shown = data_of(html)["rows"]
    assert {0, 19} <= {row["row"] for row in shown if row["dataset"] == 0}
    refused = {row["reason"]: row for row in shown if "reason" in row}
    assert {reason: (row["row"], row["count"]) for reason, row in refused.items()} == {
        "bad_json": (20, 1),
        "no_messages": (21, 2),
        "missing_field": (23, 1),
    }
    assert refused["bad_json"]["raw"] == "<b>not JSON</b>"


def test_the_page_is_complete_in_itself_and_its_data_ends_no_script(html: str) -> None:
    assert html.count("</script>") == 2
    assert "alert(1)" in html
    assert not re.search(r"(?:src|href)=", html)
    assert not re.search(r"https?://", html)


def test_a_row_that_its_template_does_not_tell_is_told_by_its_mask(
    looked: tuple[RunConfig, Artifact, Artifact],
) -> None:
    reader = RowReader(looked[0], looked[2])
    turns = reader.turns(0, b'{"messages": [{"role": "user", "content": "other"}]}', [5, 6, 7], [-100, 6, 7])
    assert [(turn.role, [cell.ids for cell in turn.cells]) for turn in turns] == [
        ("read", [(5,)]),
        ("trained", [(6,), (7,)]),
    ]


def test_the_terminal_shows_a_mask_with_and_without_colours(looked: tuple[RunConfig, Artifact, Artifact]) -> None:
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        console = Console(width=120, record=True, file=nowhere)
        for block in show_masks(*looked, 1):
            console.print(block)
    text = console.export_text(clear=False)
    assert "│ <|im_start|>assistant↵" in text
    assert "⟦it is 0.<|im_end|>⟧" in text
    assert re.search(r"assistant  \d+ of \d+ trained", text)
    assert "datasets.0 rows.jsonl row 0" in text
    assert "datasets.1 rows.jsonl row 0" in text
    assert "4 rows rejected (no_messages 2, bad_json 1, missing_field 1)" in text
    assert "color" in console.export_html()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_a_browser_shows_it(html: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'home'}"]
    done = subprocess.run(
        [*browser, "--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.count("<article>") == len(data_of(html)["rows"])
    assert 'data-tip="id 1, token 0 of the row' in done.stdout
    assert "alert(1)&lt;/script&gt;" in done.stdout
    assert 'aria-pressed="true"' in done.stdout
