"""Keys of axolotl that are not in our schema: what becomes of each.

Three classes besides "acted on" (a key of the schema): accepted without effect, replaced by another key, refused. A key
whose value asks for nothing (null, false, an empty list) is accepted whatever its class. Keys inside sections are in
`configs.axolotl_sections`.
"""

from __future__ import annotations

from collections.abc import Mapping


def spread(groups: Mapping[str, str]) -> dict[str, str]:
    """Return key -> text for groups of keys that share a text.

    >>> spread({"the reason": "a b"})
    {'a': 'the reason', 'b': 'the reason'}
    """
    return {key: text for text, keys in groups.items() for key in keys.split()}


_TRACKING = "metrics go to output_dir/metrics.jsonl, report.html and the trackers"
_STORE = "prepared data is kept in artifact_store under a content key, in memory-mapped shards"

WITHOUT_EFFECT: dict[str, str] = spread(
    {
        # data
        _STORE: "dataset_keep_in_memory num_dataset_shards_to_save",
        "rows are always prepared before training, by a stage of their own": "is_preprocess preprocess_iterable",
        "fetch streams in constant memory": "streaming_multipack_buffer_size pretrain_multipack_buffer_size",
        "packed samples are always isolated from each other": "pretrain_multipack_attn",
        "packing looks at all rows at once (best-fit decreasing), not at groups and bins": (
            "sample_packing_group_size sample_packing_bin_size sample_packing_mp_start_method"
        ),
        "every packed sequence is one row of a batch, isolated by its positions": "multipack_real_batches",
        "computed exactly from the packed data": "total_num_tokens total_supervised_tokens sample_packing_eff_est",
        "rows of padding fill the last batch and add nothing to the loss": "dataloader_drop_last",
        "batches hold only what the model reads": "remove_unused_columns",
        "set by this project for memory-mapped data": "dataloader_prefetch_factor dataloader_pin_memory",
        "the Hub's token is taken from HF_TOKEN or `hf auth login`": "hf_use_auth_token",
        # model and tokenizer
        "the tokenizer class is found from the tokenizer's own files": "tokenizer_legacy",
        "the fast tokenizer is always used": "tokenizer_use_fast",
        "the chat template is always written beside the tokenizer": "tokenizer_save_jinja_files",
        "weights are always read by memory map": "low_cpu_mem_usage experimental_skip_move_to_device lora_on_cpu",
        "found from config.json": (
            "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model"
        ),
        "the merge writes shard by shard and is checked against base + adapter": "merge_lora merge_method",
        "only text is trained here": (
            "image_size image_resize_algorithm role_boundaries freeze_mm_modules processor_kwargs"
        ),
        # speed and devices: another way to the same result
        "the same result without this kernel": (
            "lora_embedding_kernel fused_attn_kernel "
            "flash_optimum flex_attn_compile_kwargs sdpa_varlen "
            "gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 tiled_mlp tiled_mlp_num_shards "
            "tiled_mlp_use_original_mlp use_scattermoe use_sonicmoe use_dsv4_kernels "
            "use_glm_dsa_kernels dsv4_fp4_grouped_mode"
        ),
        "no code of the Hub is loaded when a training starts; liger_* have kernels that are installed": "use_kernels",
        "the model's plain operators are used; the loss never holds the logits of all positions": (
            "liger_rms_norm_gated chunked_cross_entropy_num_chunks"
        ),
        "the loss is always the mean over all trained tokens": "liger_use_token_scaling",
        "weights stay on the device; fsdp_config.offload_params takes them off it": "layer_offloading",
        "processes are started and placed by torchrun": (
            "device device_map world_size local_rank ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers "
            "accelerator_config use_ray ray_run_name ray_num_workers resources_per_worker"
        ),
        "memory is the allocator's business": "torch_empty_cache_steps gc_collect_steps gc_steps",
        "norms are computed in float32 under mixed precision": "fp32_norms fp32_norm_classes embeddings_skip_upcast",
        "an axolotl setting of torchdistx, which is no longer made": "torchdistx_path",
        # saving and following
        "a run always continues from its newest complete checkpoint": "auto_resume_from_checkpoints",
        "weights are always written as safetensors": "save_safetensors",
        "tokens per second are always in metrics.jsonl": "include_tokens_per_second include_tkps",
        "axolotl's own bookkeeping": "axolotl_config_path",
        _TRACKING: (
            "comet_experiment_config use_otel_metrics otel_metrics_host otel_metrics_port swanlab_log_completions"
        ),
        "a setting of axolotl's chat window": (
            "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature"
        ),
        "the loss on the evaluation set is the only measure": (
            "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split"
        ),
        # parts of something that is refused by its main key
        "`sft preprocess --debug` shows the label masks": "debug",
        "experts stay in the precision of the computation; `sft plan` says what that takes": "quantize_moe_experts",
        "part of gptq": "gptq_groupsize gptq_model_v1 gptq_disable_exllama",
        "part of qat": "nvfp4_merge_aware",
        "part of expert_parallel_size": "expert_parallel_num_nvl_bytes expert_parallel_token_capacity",
        "part of relora": (
            "relora_prune_ratio relora_prune_method relora_cpu_offload jagged_restart_warmup_steps "
            "jagged_restart_anneal_steps"
        ),
        "part of lisa_n_layers": "lisa_step_interval lisa_layers_attribute",
        "part of an optimizer that is not built in": (
            "dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap "
            "qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits qgalore_proj_group_size "
            "qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size adam_epsilon2 adam_beta3"
        ),
        "part of use_pose": "pose_split_on_token_ids pose_max_context_len pose_num_chunks",
        "part of use_eaft": "eaft_alpha eaft_k",
        "part of scaling_softmax": "scaling_softmax_factor scaling_softmax_bias",
        "torch.compile is set by its backend and mode": "torch_compile_options deepcompile",
        "part of context_parallel_size": "heads_k_stride ring_attn_func",
        "part of fp8": "fp8_enable_fsdp_float8_all_gather",
        "part of model_quantization_config": "model_quantization_config_kwargs",
        "part of spectrum": "spectrum_top_fraction spectrum_model_name",
        "quantised weights are sharded without it": "qlora_sharded_model_loading",
    }
)

_PREFERENCE = "only supervised fine-tuning is done here; use a library for preference training"
_QUANTISED = "name the model with ordinary weights as base_model; adapter: qlora and load_in_4bit: true quantise it"
_TARGETS = "use lora_target_modules, a list of names or one regular expression"

REFUSED: dict[str, str] = spread(
    {
        _PREFERENCE: "rl reward_model process_reward_model",
        "only text is trained here; use a text-only base_model": "processor_type",
        _QUANTISED: "gptq use_onebitllms",
        "train with adapter: qlora, or in bf16 and quantise the published model": "qat quantization",
        "name a copy of the model with weights in bf16 as base_model": "model_quantization_config",
        "name the original model as base_model; its experts need no other form": "llama4_linearized_experts",
        "remove it; for long sequences set gradient_checkpointing: offload, or lower sequence_len": (
            "context_parallel_size"
        ),
        "remove it; fsdp_config shards the weights, experts too, over all processes": (
            "tensor_parallel_size expert_parallel_size"
        ),
        "use sample_packing: true": "pretraining_sample_concatenation batch_flattening",
        "use datasets with type chat_template or completion; rows are always prepared": "skip_prepare_dataset",
        "remove it; the tokenized rows are in artifact_store": "push_dataset_to_hub",
        "use pad_to_sequence_len: true": "pad_to_multiple_of",
        "use sequence_len and sample_packing": "max_packed_sequence_len",
        "put the text into a system message of the data, or use chat_template_jinja": "default_system_message",
        "remove it; the model's tokenizer.json is used, or that of another model by tokenizer_config": (
            "tokenizer_use_mistral_common"
        ),
        "write it into config.json of a copy of the base model": (
            "model_kwargs overrides_of_model_kwargs base_model_config cls_model_config"
        ),
        "remove it; the vocabulary grows by itself where the tokenizer has more tokens": (
            "shrink_embeddings fix_untrained_tokens"
        ),
        _TARGETS: ("peft_layer_replication peft_trainable_token_indices"),
        "remove it; the keys lora_* and peft_* say what the adapter is": "peft",
        "remove it; for more than one adapter learns, raise lora_r or train in full": "relora jagged_restart_steps",
        "name the layers that are trained in unfrozen_parameters": "lisa_n_layers",
        "use lr_scheduler: one_cycle and lr_scheduler_kwargs: {div_factor: 25}": "lr_div_factor",
        "set micro_batch_size; `sft plan` says what fits": "auto_find_batch_size",
        "use bf16: true": "fp8",
        "use gradient_checkpointing: true": "selective_checkpointing dynamic_checkpoint",
        "remove it; `sft plan` says what fits": "max_memory gpu_memory_limit",
        "use attn_implementation: sdpa": "s2_attention scaling_softmax",
        "use overrides_of_model_config: {rope_scaling: ...}": "rope_scaling",
        "remove it; plain cross-entropy is the loss": "use_eaft use_pose",
        "remove it; models are trained to predict the next token": "diffusion",
        "name a dense model as base_model, and compress the published one": "llmcompressor",
        "remove it; the Trainer is this project's": "trainer_cls",
        "set the environment variable COMET_API_KEY; this file is copied into output_dir": "comet_api_key",
        "publish to a folder or fsspec URL: publish: s3://bucket/model": "hub_model_id hub_strategy hub_revision",
        "use lora_target_linear: true; the kernels of unsloth are not used": (
            "unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope unsloth_cross_entropy_loss"
        ),
    }
)

ALIASES: dict[str, tuple[str, str | None]] = {
    # old key -> (key, the value it stands for when true; None: the same value)
    "flash_attention": ("attn_implementation", "flash_attention_2"),
    "sdp_attention": ("attn_implementation", "sdpa"),
    "flex_attention": ("attn_implementation", "flex_attention"),
    "eager_attention": ("attn_implementation", "eager"),
    "xformers_attention": ("attn_implementation", "xformers"),
    "sage_attention": ("attn_implementation", "sage"),
    "dataset_processes": ("dataset_num_proc", None),
    "noisy_embedding_alpha": ("neftune_noise_alpha", None),
    "evaluation_strategy": ("eval_strategy", None),
    "sequence_parallel_degree": ("context_parallel_size", None),
    "revision_of_model": ("model_revision", None),
    "type_of_model": ("model_type", None),
    "model_config": ("overrides_of_model_config", None),
    "liger_swiglu": ("liger_glu_activation", None),
    "flash_attn_fuse_mlp": ("liger_glu_activation", None),
    "flash_attn_rms_norm": ("liger_rms_norm", None),
    "liger_cross_entropy": ("chunked_cross_entropy", None),
    "liger_fused_linear_cross_entropy": ("chunked_cross_entropy", None),
    "flash_attn_cross_entropy": ("chunked_cross_entropy", None),
    "cut_cross_entropy": ("chunked_cross_entropy", None),
    "eval_table_size": ("generate_samples", "true"),
    "dataset_prepared_path": ("artifact_store", None),
    "eval_max_new_tokens": ("generation_max_new_tokens", None),
}

GIVES_WAY = {"dataset_prepared_path"}
"""Old keys beside which the new one may stand, and holds."""

NEUTRAL: dict[str, object] = {
    # values that ask for nothing
    "context_parallel_size": 1,
    "tensor_parallel_size": 1,
    "expert_parallel_size": 1,
    "gpu_memory_limit": 0,
}

ATTENTION: dict[str, tuple[str | None, str]] = {
    # value of attn_implementation -> (what it is read as; None: the fastest that there is, why)
    "auto": (None, ""),
    "flash": ("flash_attention_2", "it is a short name"),
    "flex": ("flex_attention", "it is a short name"),
    "sdp": ("sdpa", "it is a short name"),
    "xformers": (None, "the fastest attention that is there gives the same result"),
    "sage": (None, "the fastest attention that is there gives the exact result"),
    "fp8": (None, "the fastest attention that is there gives the exact result"),
}

EXPERTS = ("scattermoe", "sonicmoe")
"""Values of experts_implementation that name kernels of axolotl's: transformers' own way gives the same result."""

READ_INTO: dict[str, str] = {
    # key -> the key that a reader of its own fills from it
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "bf16",
    "fsdp": "fsdp_config",
    "pretraining_dataset": "datasets",
    "fsdp_version": "fsdp_config",
    "fsdp_final_state_dict_type": "fsdp_config",
}

PLUGINS: dict[str, str] = {
    # what may stand under `plugins:` -> the key that it turns on
    "axolotl.integrations.liger.LigerPlugin": "",
    "axolotl.integrations.kernels.KernelsPlugin": "",
    "axolotl.integrations.swanlab.SwanLabPlugin": "",
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin": "chunked_cross_entropy",
}
