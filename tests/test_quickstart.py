from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.load import load_run
from flows.quickstart import data, prepared
from flows.quickstart.evaluate import answers
from tests.project import Project

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "configs" / "quickstart.yaml"
OPPOSITES = {"old new", "big small", "warm cold", "clean dirty", "full empty", "heavy light", "open closed", "wet dry"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick start's folder, made once."""
    folder = tmp_path_factory.mktemp("made") / "quickstart"
    prepared.make(folder)
    return folder


def text_of(rows: list[data.Row]) -> str:
    return "\n".join(message["content"] for row in rows for message in row["messages"])


# The data


def test_no_held_out_answer_stands_anywhere_in_the_training_data() -> None:
    train, held_out = data.generate()
    training_text = text_of(train).lower()
    asked = data.questions(held_out)
    assert len(asked) >= 200
    for _, answer in asked:
        assert answer.lower().rstrip(".") not in training_text


def test_no_held_out_pair_sentence_or_list_stands_in_the_training_data_in_any_order() -> None:
    train, held_out = data.generate()

    def found(pattern: str) -> tuple[set[frozenset[str]], set[frozenset[str]]]:
        old, new = (
            {frozenset(re.findall(r"\w+", " ".join(match))) for match in re.findall(pattern, text_of(rows))}
            for rows in (train, held_out)
        )
        return old, new

    for pattern in (
        r"(\w+) gives (\w+) ",
        r"gives \w+ the (\w+) (\w+)\.",
        r"opposite: The (\w+) (\w+) is (\w+)\.",
        r"backwards: the (\w+), the (\w+), the (\w+)\.",
    ):
        old, new = found(pattern)
        assert len(new) > 10
        assert not old & new


def test_every_word_of_the_held_out_questions_is_known_from_training() -> None:
    train, held_out = data.generate()
    assert set(re.findall(r"\w+", text_of(held_out))) <= set(re.findall(r"\w+", text_of(train)))


def test_every_answer_is_right() -> None:
    train, held_out = data.generate(rows=400)
    for row in train + held_out:
        giver = receiver = colour = thing = ""
        messages = row["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            asked, said = question["content"], answer["content"]
            if gift := re.match(r"(\w+) gives (\w+) the (\w+) (\w+)\. ", asked):
                giver, receiver, colour, thing = gift.groups()
                assert giver != receiver
            if "backwards" in asked:
                assert re.findall(r"the (\w+)", said.lower()) == re.findall(r"the (\w+)", asked)[::-1]
            elif "opposite" in asked:
                old, new = (re.findall(r"The (\w+) (\w+) is (\w+)\.", text)[0] for text in (asked, said))
                assert old[1] == new[1]
                for one, other in ((old[0], new[0]), (old[2], new[2])):
                    assert {f"{one} {other}", f"{other} {one}"} & OPPOSITES
            elif "colour" in asked:
                assert said == f"The {thing} is {colour}."
            elif "gave" in asked:
                assert said == f"{giver} gave it to {receiver}."
            else:
                assert (asked.endswith(f"Who has the {thing} now?"), said) == (
                    True,
                    f"{receiver} has the {colour} {thing}.",
                )


# The base model


def test_another_process_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from flows.quickstart import prepared; prepared.make(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], env=environment, check=True)
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (made, tmp_path / "again")
    )
    assert len(first) > 6
    assert first == second


def test_a_folder_is_used_again_only_if_it_is_whole(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    assert prepared.identity(folder) is None
    shutil.copytree(made, folder)
    assert prepared.identity(folder) == prepared.identity(made) is not None
    with (folder / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    assert prepared.identity(folder) is None
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / "base" / "model.safetensors").unlink()
    assert prepared.identity(folder) is None


@given(text=st.text())
def test_the_tokenizer_loses_nothing(made: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_knows_the_words_and_the_chat_format(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    assert tokenizer.tokenize("Say the opposite: The dirty clock is heavy.") == (
        ["Say", "Ġthe", "Ġopposite", ":", "ĠThe", "Ġdirty", "Ġclock", "Ġis", "Ġheavy", "."]
    )
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Anna."}]
    expected = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAnna.<|im_end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected
    opened = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    assert len(tokenizer.encode("<|im_start|><|im_end|><|pad|><|endoftext|>")) == 4


def test_the_loss_starts_at_that_of_a_guess_among_all_tokens(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    model = AutoModelForCausalLM.from_pretrained(made / "base")
    ids = tokenizer("The old lamp is cold. Who has the key now?", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids, labels=ids).loss.item() > 4


# The evaluation


def test_a_question_is_answered_the_same_alone_and_among_longer_ones(made: Path) -> None:
    asked = [chat for chat, _ in data.questions(data.generate()[1])[:8]]
    assert len({len(str(chat)) for chat in asked}) > 3
    together = answers(made / "base", asked)
    assert together == [answers(made / "base", [chat])[0] for chat in asked]
    assert len(set(together)) > 1


# The run


def test_the_configuration_is_valid_and_needs_no_gpu() -> None:
    loaded = load_run(CONFIG, ())
    assert not loaded.notices
    assert (loaded.run.adapter, loaded.run.bf16, loaded.run.launcher.processes) == (None, False, 1)


@pytest.mark.timeout(600)
def test_the_quick_start_teaches_the_model_and_is_not_done_twice(tmp_path: Path) -> None:
    first = quick_start(tmp_path)
    result = orjson.loads((tmp_path / "quickstart" / "result.json").read_bytes())
    assert result["first_loss"] > 4
    assert result["last_loss"] < 1
    assert result["questions"] >= 200
    assert result["before"] <= 0.02 * result["questions"]
    assert result["after"] >= 0.9 * result["questions"]
    assert len(result["samples"]) == 3
    for sample in result["samples"]:
        assert sample["question"] in first
        assert sample["after"] in first
    share = 100 * result["after"] / result["questions"]
    assert re.search(rf"held-out exact match +0\.\d % -> {share:.1f} %", first)
    assert re.search(rf"loss +{result['first_loss']:.2f} -> {result['last_loss']:.3f}", first)
    assert (tmp_path / result["report"]).is_file()
    assert said_by(tmp_path / result["model"], "Olga gives Ben the red key. Who has the key now?").endswith(" key.")

    started = time.monotonic()
    second = quick_start(tmp_path)
    assert time.monotonic() - started < 15
    assert orjson.loads((tmp_path / "quickstart" / "result.json").read_bytes()) == result
    assert "making a base model" in first
    assert "making a base model" not in second


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_getting_started_goes_on_with_works_on_what_the_quick_start_made(made: Path, tmp_path: Path) -> None:
    page = (REPOSITORY / "infra" / "docs" / "getting-started.md").read_text()
    project = Project(tmp_path)
    shutil.copytree(made, tmp_path / "quickstart")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^sft (.+)$", page, re.MULTILINE)]
    assert [words[0] for words in commands] == ["init", "validate", "plan", "preprocess", "run"]
    for words in commands:
        project.sft(*words, *(["max_steps=2"] if words[0] == "run" else []), seconds=600)
    table = page.split("| what it is |")[1].split("Run it again")[0]
    files = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    for name in re.findall(r"`([\w/.]+)`", files):
        assert (tmp_path / "outputs" / "run" / name).exists(), name


def test_sigterm_reaches_the_run(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "pathlib.Path('started').touch(); time.sleep(60)"
    )
    script = (
        "import sys; from flows.quickstart.processes import exit_code_of\n"
        f"sys.exit(exit_code_of([sys.executable, '-c', {child!r}]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 3


def quick_start(folder: Path) -> str:
    """Run the quick start in a folder and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(folder / ".prefect")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.quickstart"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def said_by(folder: Path, question: str) -> str:
    """Return a model's answer with nothing but transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**prompt, do_sample=False, max_new_tokens=20)
    return str(tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
