"""Keys inside sections that our schema does not have: what becomes of each. As `configs.axolotl`, per section."""

from __future__ import annotations

from configs.axolotl import spread

_DATASET_WITHOUT_EFFECT = spread(
    {
        "part of knowledge distillation, which is not done here": "logprobs_field temperature",
        "no code of a data set is run": "trust_remote_code",
        "of axolotl's own prompters": "field_human field_model",
    }
)
_DATASET_REFUSED = spread(
    {
        "use message_property_mappings, roles and chat_template": "input_transform input_format",
    }
)

WITHOUT_EFFECT_IN: dict[str, dict[str, str]] = {
    "datasets": _DATASET_WITHOUT_EFFECT,
    "test_datasets": _DATASET_WITHOUT_EFFECT,
    "pretraining_dataset": spread({"no code of a data set is run": "trust_remote_code"}),
    "fsdp_config": spread(
        {
            "every process reads the same files by memory map": "sync_module_states cpu_ram_efficient_loading",
            "FSDP2 has no such setting": ("use_orig_params backward_prefetch forward_prefetch limit_all_gathers"),
        }
    ),
}

REFUSED_IN: dict[str, dict[str, str]] = {
    "datasets": _DATASET_REFUSED,
    "test_datasets": _DATASET_REFUSED,
    "pretraining_dataset": spread({"use split with a slice: train[1000:]": "skip"}),
}

ALIASES_IN: dict[str, dict[str, str]] = {
    "pretraining_dataset": {"text_column": "field"},
    "fsdp_config": {
        "version": "fsdp_version",
        "fsdp_version": "FSDP2, which is always run",
        "sharding_strategy": "reshard_after_forward",
    },
}
