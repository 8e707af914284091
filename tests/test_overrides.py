"""Overrides: the same key in every spelling, at any place of the command line, into sections and lists."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from configs.errors import ConfigError
from configs.load import load_run
from configs.overrides import read_words
from flows.cli import cli
from tests.test_config import GOOD, load, problems


@pytest.mark.parametrize(
    "words",
    [
        "run.yaml learning_rate=1e-5 sample_packing=true tf32=false",
        "run.yaml --learning_rate 1e-5 --sample_packing true --tf32 false",
        "--learning_rate=1e-5 run.yaml --sample_packing=true --tf32=false",
        "--learning-rate 1e-5 --sample-packing run.yaml tf32=false",
        "run.yaml --learning-rate=1e-5 --sample-packing --no-fp16 --tf32 false",
    ],
)
def test_every_spelling_says_the_same(tmp_path: Path, words: str) -> None:
    read = read_words(words.split())
    assert read.config == "run.yaml"
    assert not read.problems
    (tmp_path / "run.yaml").write_text(GOOD)
    run = load_run(tmp_path / "run.yaml", read.overrides).run
    assert (run.learning_rate, run.sample_packing, run.tf32) == (1e-5, True, False)


def test_a_switch_takes_no_word_that_is_not_its_own() -> None:
    read = read_words(["--sample_packing", "run.yaml", "--eval_sample_packing", "no", "--seed", "-1"])
    assert (read.config, read.overrides) == ("run.yaml", ("sample_packing=true", "eval_sample_packing=no", "seed=-1"))


def test_what_is_neither_option_nor_key_names_the_nearest_of_both() -> None:
    read = read_words(["run.yaml", "--optimzer", "x", "--untill=pack", "-q", "--seed"], ["--until", "--json"])
    remedies = {problem.key: problem.remedy for problem in read.problems}
    assert "--optimizer" in remedies["--optimzer"]
    assert "--until?" in remedies["--untill"]
    assert remedies["-q"].startswith("Look at --help")
    assert "seed=VALUE" in remedies["seed"]


def test_lists_are_reached_by_position_and_grow_at_their_end(tmp_path: Path) -> None:
    overrides = (
        "datasets.0.split=train[:10%]",
        "datasets.1.path=b.jsonl",
        "datasets.1.type=alpaca",
        "eot_tokens.0=</s>",
    )
    run = load(tmp_path, GOOD, *overrides, "launcher.processes=2").run
    assert (run.datasets[0].split, run.datasets[1].path, run.datasets[1].type) == ("train[:10%]", "b.jsonl", "alpaca")
    assert (run.eot_tokens, run.launcher.processes) == (("</s>",), 2)


def test_what_is_wrong_in_an_override_stands_on_the_command_line(tmp_path: Path) -> None:
    """Also inside of it, and not where the file had something else."""
    text = GOOD + "plugins:\n  - axolotl.integrations.liger.LigerPlugin\n"
    for override in ("plugins=[some.Plugin]", "plugins.0=some.Plugin", "lora_dropou.x=1", "datasets.0.tpe=alpaca"):
        [problem] = problems(tmp_path, text, override)
        assert problem.place == "command line", override


def test_null_takes_a_key_away(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD + "seed: 7\nwarmup_steps: 3\n", "seed=", "warmup_steps=null").run.seed == 42


def test_an_anchor_is_overridden_at_one_place(tmp_path: Path) -> None:
    text = GOOD.replace("  - path", "  - &first\n    path") + "  - *first\n"
    run = load(tmp_path, text, "datasets.1.split=test").run
    assert [dataset.split for dataset in run.datasets] == [None, "test"]


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("datasets.7.split=x", "datasets.1 adds one"),
        ("datasets.first.split=x", "datasets.0"),
        ("base_model.name=x", "'some/model', which has no parts"),
        ("seed", "learning_rate=1e-4"),
        ("a..b=1", "learning_rate=1e-4"),
    ],
)
def test_a_place_that_is_not_there_is_a_sentence(tmp_path: Path, override: str, remedy: str) -> None:
    [problem] = problems(tmp_path, GOOD, override)
    assert problem.place == "command line"
    assert remedy in problem.remedy


def test_options_of_the_command_are_not_taken_for_keys(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD)
    words = ["plan", "--seed", "-1", "--json", str(tmp_path / "run.yaml"), "--until", "pack", "--val-set-size=7x"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert {problem["key"] for problem in orjson.loads(done.stdout)["problems"]} == {"seed", "val_set_size"}


def test_a_command_without_a_file_says_so() -> None:
    done = CliRunner().invoke(cli, ["plan", "seed=1"])
    assert done.exit_code == 2
    assert "Missing argument CONFIG" in done.stderr


def test_lenient_gives_unknown_keys_no_effect(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + "sed: 3\n    \n")
    with pytest.raises(ConfigError):
        load_run(tmp_path / "run.yaml")
    [notice] = load_run(tmp_path / "run.yaml", lenient=True).notices
    assert (notice.key, notice.remedy) == ("sed", "Did you mean seed?")
