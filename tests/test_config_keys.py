"""Every key of the original has a class, at any depth, and the reader does with it what its class says."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from configs.axolotl import ALIASES, READ_INTO, REFUSED, WITHOUT_EFFECT
from configs.errors import ConfigError
from configs.keys import key_class
from configs.load import load_run
from configs.schema import RunConfig
from tests.test_config import GOOD

USES = Path(__file__).parent / "data" / "axolotl_key_uses.tsv"
KEYS = [
    line
    for line in (Path(__file__).parent / "data" / "axolotl_keys.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def test_every_key_of_the_original_has_a_class() -> None:
    assert len(KEYS) > 480
    unknown = [name for name in KEYS if key_class(*_split(name)) is None]
    assert not unknown, "give each a class in configs/axolotl.py or configs/axolotl_sections.py"


def test_no_key_is_in_two_classes() -> None:
    """A key that begins to act leaves configs/axolotl.py."""
    tables = [
        set(RunConfig.model_fields),
        set(WITHOUT_EFFECT),
        set(REFUSED),
        set(ALIASES),
        set(READ_INTO) - {"fsdp_config"},
    ]
    seen: set[str] = set()
    for table in tables:
        assert not seen & table
        seen |= table


@pytest.mark.parametrize("key", sorted(WITHOUT_EFFECT.keys() - {"plugins"}))
def test_a_key_without_effect_says_so_once(tmp_path: Path, key: str) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + f"{key}: 7\n")
    [notice] = load_run(tmp_path / "run.yaml").notices
    assert notice.key == key
    assert notice.remedy.startswith("Reason: ")
    assert notice.place.endswith("run.yaml:8:1")


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_refused_key_says_what_to_do_instead(tmp_path: Path, key: str) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + f"{key}: 7\n")
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path / "run.yaml")
    [problem] = caught.value.problems
    assert (problem.key, problem.value) == (key, "***" if "api_key" in key else "7")
    assert problem.remedy.startswith("Instead: ")


def _split(name: str) -> tuple[str, str]:
    section, _, key = name.rpartition(".")
    return section, key


def test_nearly_all_uses_in_the_original_s_examples_are_acted_on() -> None:
    """Keys with a value, in its 198 examples of SFT on text; an old name counts as what it is read as."""
    uses: Counter[str] = Counter()
    for row in csv.DictReader(USES.read_text().splitlines(), delimiter="\t"):
        found = key_class("", row["key"])
        if found is not None and found.kind == "replaced by":
            found = key_class("", found.text)
        uses[found.kind if found is not None else "unknown"] += int(row["uses"])
    assert uses.total() == 6322
    assert uses["unknown"] == 9, "typos, and keys of long ago that the original does not know"
    known = uses.total() - uses["unknown"]
    assert uses["acted on"] / known >= 0.97
    assert uses["refused"] / known < 0.01
