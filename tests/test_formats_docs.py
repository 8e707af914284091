"""The page of data formats: every YAML of it, with the row above it, gives trained tokens."""

from __future__ import annotations

import re
from pathlib import Path

import fetched
import orjson
import tiny
import yaml

from configs.load import load_run
from stages.formats import KNOWN
from stages.templates.choice import known_templates

PAGE = (Path(__file__).parent.parent / "infra" / "docs" / "formats.md").read_text()


def examples() -> list[tuple[bytes, dict[str, object]]]:
    """Return (row, data set) of each pair of blocks."""
    pairs = re.findall(r"```json\n(.*?)```\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    return [(orjson.dumps(orjson.loads(row)), yaml.safe_load(dataset)) for row, dataset in pairs]


def test_every_example_of_the_page_is_tokenized_and_trained(tmp_path: Path) -> None:
    for name, source in re.findall(r"`(\w+\.py)`[^`]*:\n\n```python\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(source)
    pairs = examples()
    assert len(pairs) == PAGE.count("```yaml") == PAGE.count("```json") > 10
    datasets = [{"path": f"{number}.jsonl", **dataset} for number, (_, dataset) in enumerate(pairs)]
    tokenizer = tiny.build_tokenizer(tmp_path / "base", tiny.CHATML, vocabulary=400)
    config = {**fetched.REQUIRED, "base_model": str(tokenizer), "datasets": datasets, "sequence_len": 4096}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    artifact = fetched.tokenize(tmp_path, load_run(tmp_path / "run.yaml").run, *([row] for row, _ in pairs))
    assert not fetched.rejected(artifact)
    found = fetched.tokenized_rows(artifact)
    assert [number for number, *_ in found] == list(range(len(pairs)))
    for number, _, _, labels in found:
        assert any(label != -100 for label in labels), pairs[number][1]


def test_the_page_names_every_type_and_every_template() -> None:
    written = {word.rstrip(".") for word in re.findall(r"[\w.:]+", PAGE)}
    plain = [name for name in KNOWN if ":" not in name]
    assert [name for name in plain if not {name, f".{name.rpartition('.')[2]}"} & written] == []
    assert [name for name in known_templates() if name not in written] == []
