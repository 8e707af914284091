"""Keys of axolotl that are not in our schema: what becomes of each.

A key whose value asks for nothing (null, false, an empty list) is accepted whatever its class.
"""

from __future__ import annotations

_TRACKING = "experiment trackers are not connected yet; metrics are in output_dir/metrics.jsonl and report.html"
_STORE = "prepared data is kept in artifact_store under a content key, so it needs no folder of its own"
_MULTIMODAL = "only text is trained here"
_PREFERENCE = "only supervised fine-tuning is done here"
_QUANTISED = "set adapter: lora without quantisation, or a smaller base_model"
_SHARDED = "remove it; several processes train with DDP: launcher: {processes: 2}"

WITHOUT_EFFECT: dict[str, str] = {
    "dataset_prepared_path": _STORE,
    "dataset_keep_in_memory": _STORE,
    "strict": "this reader is always strict: an unknown key is an error",
    "model_type": "the model class is found from config.json",
    "tokenizer_type": "the tokenizer class is found from the tokenizer's own files",
    "low_cpu_mem_usage": "weights are always read by memory map",
    "auto_resume_from_checkpoints": "a run always continues from its newest complete checkpoint",
    "save_safetensors": "weights are always written as safetensors",
    "remove_unused_columns": "batches hold only what the model reads",
    "ddp_find_unused_parameters": "every trained parameter takes part in every step",
    "group_by_length": "packing leaves no padding that grouping could save",
    "wandb_project": _TRACKING,
    "wandb_entity": _TRACKING,
    "wandb_name": _TRACKING,
    "wandb_watch": _TRACKING,
    "wandb_log_model": _TRACKING,
    "wandb_run_id": _TRACKING,
    "wandb_mode": _TRACKING,
    "use_wandb": _TRACKING,
    "use_mlflow": _TRACKING,
    "mlflow_experiment_name": _TRACKING,
    "mlflow_tracking_uri": _TRACKING,
    "use_tensorboard": _TRACKING,
    "use_comet": _TRACKING,
    "use_trackio": _TRACKING,
    "trackio_project_name": _TRACKING,
    "trackio_run_name": _TRACKING,
}

REFUSED: dict[str, str] = {
    "gptq": _QUANTISED,
    "deepspeed": _SHARDED,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "lora_model_dir": "remove it; training starts from base_model",
    "resume_from_checkpoint": "remove it; a run always continues from its newest complete checkpoint",
    "pretraining_dataset": "use datasets with type: completion",
    "streaming": "use datasets; fetch reads in constant memory anyway",
    "test_datasets": "use val_set_size",
    "rl": _PREFERENCE,
    "reward_model": _PREFERENCE,
    "process_reward_model": _PREFERENCE,
    "processor_type": _MULTIMODAL,
    "plugins": "remove it; no plugin is needed for what this reader accepts",
    "unfrozen_parameters": "remove it; train an adapter or the full model",
    "max_packed_sequence_len": "use sequence_len and sample_packing",
    "rope_scaling": "set it in the base model's config.json",
    "push_dataset_to_hub": "remove it; the tokenized rows are in artifact_store",
    "hub_model_id": "publish to a folder or fsspec URL: publish: s3://bucket/model",
    "torch_compile": "remove it",
    "early_stopping_patience": "remove it; watch eval_loss in metrics.jsonl",
}

ALIASES: dict[str, tuple[str, str | None]] = {
    # old key -> (key, the value it stands for when true; None: the same value)
    "flash_attention": ("attn_implementation", "flash_attention_2"),
    "sdp_attention": ("attn_implementation", "sdpa"),
    "flex_attention": ("attn_implementation", "flex_attention"),
    "eager_attention": ("attn_implementation", "eager"),
    "dataset_processes": ("dataset_num_proc", None),
    "noisy_embedding_alpha": ("neftune_noise_alpha", None),
}
