"""publish: refused where inference would ask otherwise than training did; and what the model card says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.errors import StageError
from stages.fetch import STAGE as FETCH
from stages.publish import stage as publish
from stages.stage import Context, StageResult, run_stage
from stages.tokenize import STAGE as TOKENIZE
from tests.published import FACTS, upstream_of
from tests.tiny import CHATML, build_model

SAYS = ("Paris is the capital.", "hello world", "the lazy dog", "how are you today?")
CHATS = [
    [{"role": role, "content": f"{text} {number}"} for role in ("user", "assistant")]
    for number, text in enumerate(SAYS * 3)
]
WITH_SYSTEM = [[{"role": "system", "content": "be brief"}, *chat, *CHATS[0]] for chat in CHATS]
THINKING = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}",
)
SWITCHED = THINKING.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
DATED = CHATML.replace("{% for", "{{ strftime_now('%d %B %Y') }}\n{% for", 1)


class Made:
    """Rows that were fetched and tokenized, and a model that pretends to be trained on them."""

    def __init__(self, folder: Path, template: str | None, chats: list[Any] = CHATS, **keys: Any) -> None:
        base = build_model(folder / "base", template)
        (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
        lines = [json.dumps({"messages": chat, "instruction": "say", "output": "this"}) for chat in chats]
        (folder / "rows.jsonl").write_text("\n".join(lines))
        dataset = {"path": str(folder / "rows.jsonl"), "type": "chat_template", **keys.pop("dataset", {})}
        self.target, self.store = folder / "target", Store(folder / "store")
        values = {"base_model": str(base), "datasets": [dataset], "learning_rate": 1e-4, "micro_batch_size": 1}
        values |= {"gradient_accumulation_steps": 1, "publish": str(self.target), "template_date": "2024-05-17"}
        self.run = RunConfig.model_validate(values | keys)
        self.context = Context(self.run, FileDigests(folder / "digests.sqlite"))
        fetched = run_stage(FETCH, self.context, {}, self.store).artifact
        self.tokens = run_stage(TOKENIZE, self.context, {"fetch": fetched}, self.store).artifact
        self.upstream = {**upstream_of(self.store, self.model()), "fetch": fetched, "tokenize": self.tokens}
        with self.store.writer("train", {"base": str(base)}, {}) as writer:
            writer.write("nothing", b"")
            self.upstream["train"] = writer.commit(facts={**FACTS["train"], "base_model": {"files": {}}})

    def model(self, **changed: bytes) -> Artifact:
        """Return a merged model with the tokenizer, but for files that are changed."""
        with self.store.writer("merge", {"changed": sorted(changed)}, {}) as writer:
            for path in sorted(self.tokens.path("tokenizer").iterdir()):
                writer.write(f"model/{path.name}", changed.get(path.stem, path.read_bytes()))
            return writer.commit(facts={"kind": "model"})

    def publish(self) -> StageResult:
        return run_stage(publish.STAGE, self.context, self.upstream, self.store)

    @property
    def card(self) -> ModelCard:
        return ModelCard.load(self.target / "README.md")


@pytest.mark.parametrize(
    ("template", "chats", "keys"),
    [(DATED, WITH_SYSTEM, {}), (CHATML, WITH_SYSTEM, {"dataset": {"train_on_eos": "all"}})],
    ids=["the date of the training", "ends of prompts are trained"],
)
def test_what_is_asked_as_it_was_trained_is_published(
    tmp_path: Path, template: str, chats: list[Any], keys: dict[str, Any]
) -> None:
    made = Made(tmp_path, template, chats, **keys)
    assert made.publish().artifact.facts["prompts_compared"] >= 5
    assert "are token for token those of the training" in made.card.text


def test_a_prompt_that_is_rendered_otherwise_is_refused_with_both_texts(tmp_path: Path) -> None:
    made = Made(tmp_path, THINKING)
    with pytest.raises(StageError) as caught:
        made.publish()
    seen = r"datasets.0, (\d+) of \1 rows, row \d+: from token \d+ on inference asks .* where training has '.*<think>"
    assert re.search(seen, str(caught.value)), caught.value
    assert f"publish: {{to: {made.target}, allow_prompt_difference: true}}" in str(caught.value)
    assert not made.target.exists()
    allowed = {"to": str(made.target), "allow_prompt_difference": True}
    made.run = made.run.model_validate({**made.run.model_dump(exclude_unset=True), "publish": allowed})
    made.context = Context(made.run, made.context.digests)
    made.publish()
    assert "publish.allow_prompt_difference was set" in made.card.text


def test_what_inference_has_to_set_is_found_and_told(tmp_path: Path) -> None:
    made = Made(tmp_path, SWITCHED)
    made.publish()
    assert "They were rendered with `enable_thinking=False`." in made.card.text
    assert "return_dict=True, enable_thinking=False" in made.card.text


def test_a_template_of_the_data_set_alone_is_not_what_is_published(tmp_path: Path) -> None:
    made = Made(tmp_path, CHATML, dataset={"chat_template": "llama3"})
    with pytest.raises(StageError, match="asks otherwise than it was trained"):
        made.publish()


def test_rows_that_spell_control_tokens_as_text_are_not_compared(tmp_path: Path) -> None:
    spelled = [[{"role": "user", "content": "say <|im_end|>"}, *chat[1:]] for chat in CHATS]
    Made(tmp_path, CHATML, spelled, control_tokens_in_data="text").publish()


def test_another_tokenizer_than_that_of_the_training_is_refused_and_the_same_is_described(tmp_path: Path) -> None:
    made = Made(tmp_path, CHATML)
    model = made.upstream["merge"]
    for name in ("chat_template", "tokenizer"):
        made.upstream["merge"] = made.model(**{name: b"another"})
        with pytest.raises(StageError, match=f"{name}.* of the model is another one"):
            made.publish()
    made.upstream["merge"] = model
    check_card(made)


def check_card(made: Made) -> None:
    """Look for data, masks, lineage, licence and the way to repeat it."""
    made.publish()
    card, text = made.card, " ".join(made.card.text.split())
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a folder is no name on the Hub
    assert "rows.jsonl | content " in text
    assert "trained are the turns of assistant" in text
    assert all(made.upstream[stage].key in text for stage in ("fetch", "tokenize", "pack", "train", "merge"))
    written = yaml.safe_load(card.text.partition("```yaml")[2].partition("```")[0])
    assert written["learning_rate"] == 1e-4
    assert "publish" not in written
    made.run = made.run.model_copy(update={"dataset_num_proc": 1})
    made.context = Context(made.run, made.context.digests)
    assert made.publish().status == "reused"  # it changes nothing of the model


def test_a_format_without_chat_template_is_said_so(tmp_path: Path) -> None:
    made = Made(tmp_path, None, dataset={"type": "alpaca"})
    assert made.publish().artifact.facts["prompts_compared"] == 0
    assert "`rows.jsonl` has no chat template: its prompts are written as alpaca says." in made.card.text
