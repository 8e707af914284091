"""Configurations: every problem at once, each with place, key, rule and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError, Problem
from configs.load import LoadedRun, load_run

GOOD = """\
base_model: some/model
learning_rate: 2e-4
micro_batch_size: 2
gradient_accumulation_steps: 4
datasets:
  - path: data.jsonl
    type: chat_template
"""


def load(tmp_path: Path, text: str, *overrides: str) -> LoadedRun:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_run(path, overrides)


def problems(tmp_path: Path, text: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return caught.value.problems


def test_defaults_are_those_of_axolotl(tmp_path: Path) -> None:
    run = load(tmp_path, GOOD).run
    assert run.learning_rate == 2e-4  # YAML 1.1 reads it as text
    assert (run.sequence_len, run.seed, run.num_epochs, run.val_set_size) == (512, 42, 1.0, 0.0)
    assert (run.optimizer, run.lr_scheduler, run.train_on_inputs) == ("adamw_torch_fused", "cosine", False)
    assert run.datasets[0].roles_to_train == ("assistant",)
    assert run.publish_to == "./model-out"


def test_all_problems_come_at_once_with_their_places(tmp_path: Path) -> None:
    text = GOOD + "sequence_len: many\nadaptor: lora\nval_set_size: -1\ngptq: true\n"
    found = {problem.key: problem for problem in problems(tmp_path, text, "seed=-3")}
    assert set(found) == {"sequence_len", "adaptor", "val_set_size", "gptq", "seed"}
    assert found["sequence_len"].place.endswith("run.yaml:8:1")
    assert "integer" in found["sequence_len"].rule
    assert "Did you mean adapter" in found["adaptor"].remedy
    assert found["gptq"].place.endswith("run.yaml:11:1")
    assert found["seed"].place == "command line"


def test_unknown_keys_are_found_at_any_depth(tmp_path: Path) -> None:
    text = GOOD + "    typ: alpaca\n  - path: b.jsonl\n    type: {format: x, fromat: y}\n"
    found = {problem.key: problem for problem in problems(tmp_path, text)}
    assert found["datasets.0.typ"].place.endswith("run.yaml:8:5")
    assert "type" in found["datasets.0.typ"].remedy
    assert "format" in found["datasets.1.type.fromat"].remedy


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: [", "not valid YAML"),
        ("base_model: x\n\tlearning_rate: 1\n", "not valid YAML"),
        (GOOD + "seed: 1\nseed: 2\n", "stands twice"),
        ("- a\n- b\n", "a mapping of keys to values"),
        ("", "a mapping of keys to values"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
        ("base_model: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_broken_yaml_is_a_sentence(tmp_path: Path, text: str, rule: str) -> None:
    [problem] = problems(tmp_path, text)
    assert rule in problem.rule
    assert problem.remedy


def test_a_document_that_unfolds_for_ever_is_refused(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    [problem] = problems(tmp_path, bomb)
    assert "unfolds" in problem.rule


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run(tmp_path / "absent.yaml")


def test_null_is_no_key_and_asking_for_nothing_is_accepted(tmp_path: Path) -> None:
    text = GOOD + "adapter:\nload_in_8bit: false\nwandb_project:\ndeepspeed:\nfsdp: []\nresume_from_checkpoint:\n"
    assert load(tmp_path, text).notices == ()


def test_a_key_that_nobody_knows_is_not_silent_even_without_a_value(tmp_path: Path) -> None:
    [notice] = load(tmp_path, GOOD + "    splt:\n").notices
    assert (notice.key, notice.remedy) == ("datasets.0.splt", "Did you mean split?")


def test_secrets_are_not_repeated(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, GOOD + "comet_api_keys: hunter2\n")
    assert "hunter2" not in str(problem)


def test_keys_without_effect_say_so(tmp_path: Path) -> None:
    [notice] = load(tmp_path, GOOD + "dataset_keep_in_memory: true\n").notices
    assert (notice.key, notice.rule) == ("dataset_keep_in_memory", "has no effect here")
    assert "artifact_store" in notice.remedy


def test_prepared_data_are_where_the_file_says(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD + "dataset_prepared_path: prepared\n")
    assert (loaded.run.artifact_store, loaded.notices[0].key) == ("prepared", "dataset_prepared_path")
    assert load(tmp_path, GOOD + "dataset_prepared_path: old\nartifact_store: new\n").run.artifact_store == "new"


def test_the_names_of_other_tools_are_told_here(tmp_path: Path) -> None:
    found = {p.key: p.remedy for p in problems(tmp_path, GOOD + "per_device_train_batch_size: 4\neta_min: 1e-6\n")}
    assert found["per_device_train_batch_size"] == "Did you mean micro_batch_size?"
    assert "cosine_with_min_lr" in found["eta_min"]


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        (GOOD + "tokens: {pad_token: <pad>}\n", "tokens", "Did you mean special_tokens?"),
        (GOOD + "warmup_steps: 0.1\n", "warmup_steps", "Did you mean warmup_ratio: 0.1?"),
        (GOOD + "adapter: loraa\n", "adapter", "Did you mean lora?"),
        (GOOD + "base_model: 3\n", "base_model", "Put it in quotes: '3'."),
        (GOOD.replace("  - path", "    path"), "datasets", "Put `- ` in front"),
    ],
)
def test_what_is_meant_is_told_where_it_can_be_guessed(tmp_path: Path, text: str, key: str, remedy: str) -> None:
    text = text.replace("base_model: some/model\n", "") if key == "base_model" else text
    [problem] = problems(tmp_path, text)
    assert problem.key == key
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("extra", "bf16", "fp16"),
    [
        ("bfloat16: true\nbf16: true\n", "full", False),
        ("float16: true\nbf16: false\nfp16: false\n", False, True),
        ("float16: true\nbf16: auto\n", False, True),
        ("float32: true\n", False, False),
    ],
)
def test_old_names_of_precisions(tmp_path: Path, extra: str, bf16: object, fp16: bool) -> None:
    loaded = load(tmp_path, GOOD + extra)
    assert (loaded.run.bf16, loaded.run.fp16, len(loaded.notices)) == (bf16, fp16, 1)


def test_precisions_exclude_each_other_by_any_name(tmp_path: Path) -> None:
    assert "float16 and bf16 exclude" in problems(tmp_path, GOOD + "float16: true\nbf16: true\n")[0].rule
    assert len(problems(tmp_path, GOOD + "float16: true\nbfloat16: true\n")) == 2


def test_strict_lets_only_keys_of_the_file_be_overridden(tmp_path: Path) -> None:
    text = GOOD + "strict: true\nseed:\n"
    assert load(tmp_path, text, "seed=1", "learning_rate=1").run.seed == 1
    [problem] = problems(tmp_path, text, "max_steps=3")
    assert (problem.key, problem.place) == ("max_steps", "command line")


def test_deepspeed_files_of_the_original_need_not_be_there(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD + "deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_all.json\n")
    zero = (loaded.run.deepspeed or {})["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]["device"]) == (3, "cpu")
    assert "ZeRO-3" in loaded.notices[0].rule
    assert "zero3_bf16" in problems(tmp_path, GOOD + "deepspeed: mine.json\n")[0].remedy
    (tmp_path / "zero2.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert load(tmp_path, GOOD + "deepspeed: zero2.json\n").run.sharding == "zero1"


def test_what_has_no_effect_on_weights_in_shards_is_told(tmp_path: Path) -> None:
    text = GOOD + "save_only_model: true\n"
    assert load(tmp_path, text).notices == ()
    [notice] = load(tmp_path, text + "fsdp_config: {reshard_after_forward: true}\nfsdp_version: 2\n").notices
    assert (notice.key, notice.rule) == ("save_only_model", "has no effect with weights in shards")


def test_a_plugin_turns_its_keys_on_and_they_work_without_it(tmp_path: Path) -> None:
    plugin = "axolotl.integrations.liger.LigerPlugin"
    loaded = load(tmp_path, GOOD + f"plugins: [{plugin}]\nliger_rope: true\n")
    assert loaded.run.plugins == (plugin,)
    assert [use.kind for use in loaded.keys if use.key == "plugins"] == ["acted on"]
    assert load(tmp_path, GOOD + "liger_rope: true\n").run == loaded.run.model_copy(update={"plugins": ()})


def test_old_names_are_read(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD + "flash_attention: true\n")
    assert loaded.run.attn_implementation == "flash_attention_2"
    assert loaded.notices[0].key == "flash_attention"
    assert "both are given" in str(problems(tmp_path, GOOD + "flash_attention: true\nattn_implementation: sdpa\n")[0])


@pytest.mark.parametrize(
    ("extra", "rule"),
    [
        ("batch_size: 8\n", "batch_size and gradient_accumulation_steps exclude each other"),
        ("warmup_steps: 3\nwarmup_ratio: 0.1\n", "warmup_steps and warmup_ratio exclude each other"),
        ("adapter: lora\n", "needs its targets"),
        ("bf16: true\nfp16: true\n", "bf16 and fp16 exclude each other"),
        ("eval_steps: 10\n", "asks for an evaluation set"),
    ],
)
def test_keys_that_cannot_both_hold(tmp_path: Path, extra: str, rule: str) -> None:
    [problem] = problems(tmp_path, GOOD + extra)
    assert rule in problem.rule
    assert problem.remedy


def test_relative_paths_are_read_from_here_or_from_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    assert load(tmp_path, GOOD).run.datasets[0].path == str(tmp_path / "data.jsonl")


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    run = load(tmp_path, GOOD).run
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 1  # type: ignore[misc]


@given(
    st.dictionaries(
        st.sampled_from([*yaml.safe_load(GOOD), "seed", "adapter", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_any_mapping_is_valid_or_a_list_of_problems(tmp_path_factory: pytest.TempPathFactory, values: object) -> None:
    path = tmp_path_factory.mktemp("any") / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    found: tuple[Problem, ...] = ()
    try:
        load_run(path)
    except ConfigError as error:
        found = error.problems or (Problem("", "", "", "", ""),)
    assert all(problem.rule and problem.remedy for problem in found)


@pytest.mark.parametrize(
    ("name", "read_as", "noticed"),
    [
        ("auto", None, False),
        ("xformers", None, True),
        ("sage", None, True),
        ("flash", "flash_attention_2", True),
        ("sdpa", "sdpa", False),
        ("kernels-community/flash-attn3", "kernels-community/flash-attn3", False),
    ],
)
def test_names_of_attention(tmp_path: Path, name: str, read_as: str | None, noticed: bool) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + f"attn_implementation: {name}\n")
    loaded = load_run(tmp_path / "run.yaml")
    assert loaded.run.attn_implementation == read_as
    assert [notice.key for notice in loaded.notices] == ["attn_implementation"] * noticed


def test_experts_by_kernels_of_axolotl_s_are_computed_as_transformers_does(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD + "experts_implementation: scattermoe\n")
    assert loaded.run.experts_implementation is None
    assert [notice.key for notice in loaded.notices] == ["experts_implementation"]
    assert load(tmp_path, GOOD + "experts_implementation: grouped_mm\n").run.experts_implementation == "grouped_mm"


def test_losses_of_other_names_ask_for_the_one_by_chunks(tmp_path: Path) -> None:
    for key in ("cut_cross_entropy", "liger_fused_linear_cross_entropy", "flash_attn_cross_entropy"):
        assert load(tmp_path, GOOD + f"{key}: true\n").run.chunked_cross_entropy
        assert not load(tmp_path, GOOD + f"{key}: false\n").run.chunked_cross_entropy
    plugin = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
    assert load(tmp_path, GOOD + f"plugins: [{plugin}]\n").run.chunked_cross_entropy
