"""The schema of a run, with axolotl's names and meanings, and keys of our own beside them.

Its keys stand side by side, as they do in the file; sections and kinds of values have modules of their own, and so have
the rules between keys. Below this module a configuration is never written to and never asked for a key that it may not
have.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from configs.dataset import DatasetConfig, Mixture, PromptConfig
from configs.operation import LauncherConfig, OrchestrationConfig, Publish
from configs.rules import RULES
from configs.training import FsdpConfig, LrGroup, SpecialTokensConfig
from configs.values import OPTIONS_HELP, ByteCount, NoIsText, Pairs, Place, Section, StorageOptions, Strings, Train

__all__ = [
    "DatasetConfig",
    "FsdpConfig",
    "OrchestrationConfig",
    "PromptConfig",
    "RunConfig",
    "SpecialTokensConfig",
    "Train",
]


class RunConfig(Section):
    """A whole run."""

    # Model and tokenizer
    base_model: Place = Field(description="Hub id or folder (local, s3://, gs://) of the model, or a .gguf file.")
    base_model_storage_options: StorageOptions = Field({}, description=OPTIONS_HELP % "base_model")
    gguf_file: str | None = Field(None, description="GGUF file of base_model to train from; needs sft-flow[gguf].")
    allow_pickled_weights: bool = Field(
        False, description="Load weights from pickles (*.bin, *.pt), which can run code, where there is no safetensors."
    )
    model_revision: str | None = Field(None, description="Branch, tag or commit of the base model on the Hub.")
    reinit_weights: bool = Field(False, description="Train a model of base_model's shape from random weights.")
    overrides_of_model_config: dict[str, Any] = Field(
        {}, description="Other values for keys of the base model's config.json (axolotl's model_config)."
    )
    model_type: str | None = Field(
        None, description="Class that loads it: AutoModelForCausalLM, or the one its config.json names; else an error."
    )
    tokenizer_config: Place | None = Field(None, description="Hub id or folder of the tokenizer; default: base_model.")
    tokenizer_type: str | None = Field(
        None, description="Class of transformers that loads the tokenizer; default: AutoTokenizer."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the base model.")
    special_tokens: SpecialTokensConfig = Field(SpecialTokensConfig(), description="Special tokens to set.")
    tokens: tuple[str, ...] = Field((), description="Plain tokens to add to the vocabulary.")
    added_tokens_overrides: dict[int, str] = Field(
        {}, description="Other texts for added (reserved) tokens of the tokenizer: id -> text."
    )
    resize_token_embeddings_to_32x: bool = Field(
        False, description="Grow embeddings to a multiple of 32 tokens, where new tokens need them to grow."
    )
    mean_resizing_embeddings: bool = Field(
        False, description="Start the embeddings of new tokens near the mean of the others, not at random."
    )
    control_tokens_in_data: Literal["special", "text", "reject"] = Field(
        "special",
        description="What the text of a special token (`<|im_end|>`) in the data's contents becomes: that token, plain "
        "text, or a rejected row. Our own key.",
    )

    # Data
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1, description="The training data sets.")
    streaming: bool = Field(
        False, description="Read no more of each data set than max_steps can use, in the order of its files."
    )
    test_datasets: tuple[DatasetConfig, ...] = Field(
        (), description="Data sets for evaluation alone, each with its own loss; excludes val_set_size."
    )
    mixture: Mixture = Field(
        None, description="Mix by proportions (datasets[].weight) of rows or trained_tokens. Our own key."
    )
    chat_template: str | None = Field(
        None, description="Chat template: tokenizer_default, jinja, or a name; default: the tokenizer's own."
    )
    chat_template_jinja: str | None = Field(None, description="Jinja text, or the path of a file with it.")
    chat_template_kwargs: dict[str, Any] = Field({}, description="Extra variables for every rendering.")
    template_date: date | None = Field(
        None, description="Date that a chat template sees (strftime_now), as 2026-01-31; default: today. Our own key."
    )
    eot_tokens: tuple[str, ...] | None = Field(None, description="End-of-turn tokens; default: the end of sequence.")
    train_on_inputs: bool = Field(False, description="Train on prompts as well.")
    shuffle_merged_datasets: bool = Field(True, description="Shuffle the rows with `seed` before the split.")
    shuffle_before_merging_datasets: bool = Field(False, description="Shuffle each data set alone with `seed` first.")
    dataset_exact_deduplication: bool = Field(
        False, description="Use rows with the same tokens and mask once; train on none that is in test_datasets."
    )
    dataset_shard_num: int | None = Field(None, ge=1, description="Use one of this many parts of the merged rows.")
    dataset_shard_idx: int = Field(0, ge=0, description="Which of the `dataset_shard_num` parts, from 0.")
    val_set_size: float = Field(0.0, ge=0, description="Held-out part: a fraction below 1, or a number of rows.")
    sequence_len: int = Field(512, ge=1, description="Longest sequence, in tokens.")
    eval_sequence_len: int | None = Field(
        None, ge=1, description="Longest sequence of test_datasets, in tokens; default: sequence_len."
    )
    excess_length_strategy: Literal["drop", "truncate", "raise"] = Field(
        "drop", description="What happens to rows longer than sequence_len."
    )
    min_sample_len: int = Field(2, ge=1, description="Shortest row that is kept, in tokens.")
    max_rejected_ratio: float = Field(
        0.01, ge=0, le=1, description="Share of rows that may be rejected as broken before the run stops. Our own key."
    )
    sample_packing: bool = Field(False, description="Put several rows into one sequence, isolated from each other.")
    sample_packing_sequentially: bool = Field(
        False, description="Pack rows in their order, each beside the one before it; leaves more room unused."
    )
    curriculum_sampling: bool = Field(
        False, description="Train on the rows in the order of the data in each epoch: no shuffle, packed in order."
    )
    eval_sample_packing: bool | None = Field(None, description="The same for evaluation; default: as sample_packing.")
    pad_to_sequence_len: bool = Field(False, description="Pad every batch to sequence_len instead of its longest row.")
    group_by_length: bool = Field(
        False, description="Without packing: a step is made of rows that cost the same. Packs always are ordered so."
    )
    dataset_num_proc: int | None = Field(None, ge=1, description="Processes that tokenize; default: all cores.")

    # Adapter
    adapter: Literal["lora", "qlora"] | None = Field(
        None, description="lora, qlora (needs load_in_4bit), or nothing for full fine-tuning."
    )
    load_in_4bit: bool = Field(False, description="Keep the frozen base in 4 bits (NF4); needs adapter: qlora.")
    load_in_8bit: bool = Field(False, description="Keep the frozen base in 8 bits (LLM.int8); needs adapter: lora.")
    bnb_config_kwargs: dict[str, Any] = Field({}, description="Arguments of BitsAndBytesConfig, in place of ours.")
    lora_r: int = Field(16, ge=1, description="Rank of the adapter.")
    lora_alpha: int = Field(32, ge=1, description="Scale of the adapter: alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the adapter.")
    lora_target_modules: Strings = Field((), description="Modules to adapt: names, or one regular expression.")
    lora_target_linear: bool = Field(False, description="Adapt every linear layer but the output head.")
    lora_modules_to_save: tuple[str, ...] = Field((), description="Modules trained in full beside the adapter.")
    lora_target_parameters: Strings = Field((), description="Parameters to adapt, for experts that are no modules.")
    lora_fan_in_fan_out: bool = Field(False, description="Weights are stored as (in, out), as in GPT-2.")
    lora_rank_pattern: dict[str, PositiveInt] = Field({}, description="Ranks of modules: name or expression -> rank.")
    lora_alpha_pattern: dict[str, PositiveInt] = Field({}, description="The same for lora_alpha.")
    lora_model_dir: str | None = Field(None, description="Folder or Hub id of an adapter whose training goes on.")
    peft_use_dora: bool = Field(False, description="DoRA: train the length of each weight row by itself.")
    peft_use_rslora: bool = Field(False, description="Rank-stabilised LoRA: scale by alpha / sqrt(r).")
    peft_init_lora_weights: bool | Literal["gaussian", "orthogonal"] = Field(
        True, description="How an adapter begins; true: B is zero. false: at random, for tests."
    )
    peft_layers_to_transform: tuple[int, ...] = Field((), description="Numbers of the layers to adapt; default: all.")
    peft_layers_pattern: Strings = Field((), description="Name of the list of layers, if it is an unusual one.")
    peft_ensure_weight_tying: bool = Field(False, description="Keep tied weights tied in lora_modules_to_save.")
    peft_autocast_adapter_dtype: bool = Field(True, description="Keep the adapter in float32 on a 16-bit base.")
    unfrozen_parameters: Strings = Field(
        (), description="Full fine-tuning of these parameters alone: expressions for the beginning of their names."
    )

    # Optimisation
    micro_batch_size: int | None = Field(None, ge=1, description="Sequences per process and forward pass.")
    gradient_accumulation_steps: int | None = Field(None, ge=1, description="Forward passes per optimizer step.")
    batch_size: int | None = Field(None, ge=1, description="Micro batch times accumulation, instead of one of them.")
    eval_batch_size: int | None = Field(None, ge=1, description="Sequences per process in evaluation.")
    num_epochs: float = Field(1.0, gt=0, description="Passes over the data.")
    max_steps: int | None = Field(None, ge=1, description="Most optimizer steps.")
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    lr_scheduler: str = Field("cosine", description="Schedule: a name of Hugging Face's, one_cycle or rex.")
    lr_scheduler_kwargs: dict[str, Any] = Field({}, description="Arguments of the schedule.")
    cosine_min_lr_ratio: float | None = Field(
        None, ge=0, le=1, description="cosine and rex end at this share of learning_rate instead of 0."
    )
    cosine_constant_lr_ratio: float | None = Field(
        None, ge=0, le=1, description="cosine is at its end after this share of all steps, and stays there."
    )
    lr_quadratic_warmup: bool = Field(False, description="cosine: warm up with the square of the step.")
    warmup_steps: int | None = Field(None, ge=0, description="Steps of warm-up.")
    warmup_ratio: float | None = Field(None, ge=0, le=1, description="Warm-up as a share of all steps.")
    optimizer: str = Field("adamw_torch_fused", description="Optimizer, a name of Hugging Face's.")
    optim_args: Pairs = Field({}, description="Arguments of the optimizer, as a mapping or as name=value,name=value.")
    optim_target_modules: Literal["all_linear"] | Strings = Field(
        (), description="GaLore, APOLLO: modules whose gradients are projected."
    )
    loraplus_lr_ratio: float | None = Field(None, gt=0, description="LoRA+: learning rate of B over that of A.")
    loraplus_lr_embedding: float = Field(1e-6, gt=0, description="LoRA+: learning rate of adapted embeddings.")
    embedding_lr: float | None = Field(None, gt=0, description="Learning rate of embeddings and output head.")
    embedding_lr_scale: float | None = Field(None, gt=0, description="The same, as a multiple of learning_rate.")
    lr_groups: tuple[LrGroup, ...] = Field((), description="Parameters with a learning rate of their own.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first decay rate.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second decay rate.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0: not at all.")
    neftune_noise_alpha: float | None = Field(None, gt=0, description="NEFTune noise on the embeddings.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of shuffling, dropout and initialisation.")

    # Sharding
    fsdp_config: FsdpConfig | None = Field(None, description="Shard over the processes with FSDP2.")
    deepspeed: dict[str, Any] | None = Field(
        None, description="Shard over the processes with DeepSpeed: its configuration, or the path of its JSON file."
    )

    dp_shard_size: int | None = Field(
        None, ge=1, description="FSDP2: processes that share a copy of the model; default: all, or those of a copy."
    )
    dp_replicate_size: int | None = Field(
        None, ge=1, description="FSDP2: copies of the model, each in shards, say one a node (HSDP); default: one."
    )
    ddp_find_unused_parameters: bool = Field(
        False, description="Processes look in each step for weights that took no part, such as experts; slower."
    )

    # Precision and speed
    bf16: bool | Literal["auto", "full"] = Field("auto", description="bfloat16; auto: where the GPU has it.")
    fp16: bool = Field(False, description="float16 mixed precision.")
    tf32: bool | Literal["auto"] = Field("auto", description="TensorFloat-32 matrix products; auto: where there are.")
    attn_implementation: str | None = Field(
        None,
        description="eager, sdpa, flash_attention_2, flash_attention_3, flex_attention, a kernel of the Hub, or auto.",
    )
    gradient_checkpointing: bool | Literal["offload"] = Field(
        False, description="Recompute activations in the backward pass; offload: and keep their beginnings on the CPU."
    )
    activation_offloading: bool | Literal["legacy", "hidden_states"] = Field(
        False, description="gradient_checkpointing: offload in other words; needs gradient_checkpointing."
    )
    gradient_checkpointing_kwargs: dict[str, Any] = Field({}, description="Arguments of checkpointing.")
    liger_rope: bool = Field(False, description="Liger's kernel for rotary positions, on GPUs.")
    liger_rms_norm: bool = Field(False, description="Liger's kernel for RMSNorm, on GPUs.")
    liger_layer_norm: bool = Field(False, description="Liger's kernel for LayerNorm, on GPUs.")
    liger_glu_activation: bool = Field(False, description="Liger's kernel for SwiGLU or GeGLU, on GPUs.")
    chunked_cross_entropy: bool = Field(
        False,
        description="Insist on the loss that never holds all logits: a model that computes another one is an error. "
        "Without it such a model computes its own.",
    )
    experts_implementation: Literal["eager", "batched_mm", "grouped_mm"] | None = Field(
        None, description="How the products of experts are computed; default: what transformers chooses."
    )
    torch_compile: bool | Literal["auto"] = Field(False, description="Compile the model; auto: on GPUs.")
    torch_compile_backend: str | None = Field(None, description="Backend of torch.compile; default: inductor.")
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None, description="How long torch.compile looks for fast kernels."
    )
    lora_mlp_kernel: bool = Field(
        False,
        description="Compute adapted gated feed-forward parts in one operator, which keeps half as much for gradients.",
    )
    lora_qkv_kernel: bool = Field(
        False, description="Compute adapted query, key and value layers in one operator each."
    )
    lora_o_kernel: bool = Field(False, description="Compute the adapted output layer of attention in one operator.")
    dataloader_num_workers: int = Field(0, ge=0, description="Processes that assemble batches.")

    # Samples
    generate_samples: bool = Field(
        False, description="Let the model answer held-out prompts: before training, at evaluations, and at the end."
    )
    num_generation_samples: int = Field(3, ge=1, description="Held-out prompts that are answered.")
    generation_max_new_tokens: int = Field(50, ge=1, description="Longest answer, in tokens.")
    generation_do_sample: bool = Field(True, description="Draw the answers' tokens; false: the likeliest ones.")
    generation_temperature: float = Field(0.7, gt=0, description="Temperature of the draw.")
    generation_top_p: float | None = Field(None, gt=0, le=1, description="Draw from the likeliest tokens of this sum.")
    generation_top_k: int | None = Field(None, ge=1, description="Draw from so many likeliest tokens.")
    generation_prompt_ratio: float = Field(
        0.5, gt=0, lt=1, description="Share of a row that is its prompt, where no answer has a beginning (completion)."
    )

    # Health
    loss_watchdog_threshold: float | None = Field(
        None, gt=0, description="Training stops when the loss stays above this for loss_watchdog_patience steps."
    )
    loss_watchdog_patience: int = Field(3, ge=1, description="Steps in a row above loss_watchdog_threshold.")

    # Profile
    profiler_steps: int | None = Field(None, ge=1, description="Steps that are recorded in profiler_trace.json.")
    profiler_steps_start: int = Field(0, ge=0, description="Steps before the recorded ones; 5 leave the warm-up out.")

    # Logging, evaluation, saving
    logging_steps: int | None = Field(None, ge=1, description="Steps between log lines; default: 0.5 % of all, 1-10.")
    eval_steps: float | None = Field(None, gt=0, description="Steps between evaluations, or a fraction of all.")
    evals_per_epoch: int | None = Field(None, ge=0, description="Evaluations per epoch.")
    save_steps: float | None = Field(None, gt=0, description="Steps between checkpoints, or a fraction of all.")
    saves_per_epoch: int | None = Field(None, ge=0, description="Checkpoints per epoch.")
    save_total_limit: int = Field(4, ge=1, description="Checkpoints that are kept.")
    save_strategy: Annotated[Literal["no", "steps", "epoch", "best"] | None, NoIsText] = Field(
        None, description="When checkpoints are written; best: when eval_loss is lower than ever. Default: each epoch."
    )
    save_first_step: bool = Field(False, description="A checkpoint after the first step as well.")
    save_only_model: bool = Field(
        False, description="Checkpoints without optimizer: smaller, but no training goes on from them."
    )
    resume_from_checkpoint: bool | str | None = Field(
        None, description="Folder of a checkpoint to start from. Its own newest one a training always goes on from."
    )
    eval_strategy: Annotated[Literal["no", "steps", "epoch"] | None, NoIsText] = Field(
        None, description="When to evaluate, besides the end: as eval_steps says, or after each epoch."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Training ends after so many evaluations that are no better; the best weights are kept."
    )
    load_best_model_at_end: bool = Field(False, description="The model is that of the lowest eval_loss, not the last.")
    metric_for_best_model: Literal["loss", "eval_loss"] | None = Field(
        None, description="What the best model is judged by: the loss on the evaluation set."
    )
    greater_is_better: Literal[False] | None = Field(None, description="Of a loss, less is better.")
    output_dir: str = Field("./model-out", description="Receives the final files of the run.")

    # The file itself
    plugins: Strings = Field(
        (), description="axolotl's plugins whose keys are used; their keys are read without it as well."
    )
    strict: bool = Field(False, description="Only keys of the file can be overridden on the command line.")

    # Experiment trackers
    use_tensorboard: bool | None = Field(None, description="Write TensorBoard's event files into output_dir/runs.")
    use_wandb: bool | None = Field(None, description="Weights & Biases; default: if wandb_project is set.")
    wandb_project: str | None = Field(None, description="Project at Weights & Biases.")
    wandb_entity: str | None = Field(None, description="User or team there.")
    wandb_name: str | None = Field(None, description="Name of the run there.")
    wandb_run_id: str | None = Field(None, description="Id of a run there that goes on.")
    wandb_mode: str | None = Field(None, description="online, offline or disabled.")
    wandb_watch: str | None = Field(None, description="gradients, parameters or all: send histograms of them.")
    wandb_log_model: str | None = Field(None, description="checkpoint or end: send the model, too.")
    use_mlflow: bool | None = Field(None, description="MLflow; default: if mlflow_experiment_name is set.")
    mlflow_tracking_uri: str | None = Field(None, description="MLflow's server, or a folder.")
    mlflow_experiment_name: str | None = Field(None, description="Experiment at MLflow.")
    mlflow_run_name: str | None = Field(None, description="Name of the run there.")
    hf_mlflow_log_artifacts: bool | None = Field(None, description="Send checkpoints to MLflow, too.")
    use_comet: bool | None = Field(None, description="Comet; default: if comet_project_name is set.")
    comet_workspace: str | None = Field(None, description="Workspace at Comet.")
    comet_project_name: str | None = Field(None, description="Project there.")
    comet_experiment_key: str | None = Field(None, description="Key of an experiment there that goes on.")
    comet_mode: Literal["get_or_create", "get", "create"] | None = Field(None, description="Go on, or begin.")
    comet_online: bool | None = Field(None, description="false: write an archive that is uploaded later.")
    use_trackio: bool | None = Field(None, description="Trackio; default: if trackio_project_name is set.")
    trackio_project_name: str | None = Field(None, description="Project at Trackio.")
    trackio_run_name: str | None = Field(None, description="Name of the run there.")
    trackio_space_id: str | None = Field(None, description="Hugging Face Space that shows it.")
    use_swanlab: bool | None = Field(None, description="SwanLab; default: if swanlab_project is set.")
    swanlab_project: str | None = Field(None, description="Project at SwanLab.")
    swanlab_experiment_name: str | None = Field(None, description="Name of the experiment there.")
    swanlab_description: str | None = Field(None, description="Its description.")
    swanlab_mode: str | None = Field(None, description="cloud, local, offline or disabled.")

    # Our own
    artifact_store: Place = Field(
        "./artifacts",
        description="The artifact store: a folder, s3://bucket/prefix or gs://bucket/prefix. Our own key.",
    )
    artifact_store_options: StorageOptions = Field({}, description=OPTIONS_HELP % "artifact_store")
    artifact_cache: str | None = Field(
        None, description="Folder for files of a remote store; default: ~/.cache/sft-flow/artifacts. Our own key."
    )
    artifact_cache_size: ByteCount = Field(
        100_000_000_000, description="Bytes that the cache may hold, or a text as 50GB. Our own key."
    )
    launcher: LauncherConfig = Field(LauncherConfig(), description="How training is started. Our own key.")
    orchestration: OrchestrationConfig = Field(
        OrchestrationConfig(), description="How the run is deployed. Our own key."
    )
    publish: Publish = Field(
        None, description="Where the model is published; default: a folder in output_dir. Our own key."
    )

    @model_validator(mode="after")
    def _rules_hold(self) -> RunConfig:
        for rule in RULES:
            rule(self)
        return self

    @property
    def sources(self) -> tuple[DatasetConfig, ...]:
        """Return every data set, those for training first: the position in it is the data set's number in artifacts."""
        return (*self.datasets, *self.test_datasets)

    def source_key(self, number: int) -> str:
        """Return the key of a data set by its number in artifacts: `datasets.0`, or `test_datasets.0`."""
        own = len(self.datasets)
        return f"datasets.{number}" if number < own else f"test_datasets.{number - own}"

    @property
    def picks_best(self) -> bool:
        """Return whether the final weights are those of the lowest loss on the evaluation set."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    @property
    def keeps_best(self) -> bool:
        """Return whether there is always a checkpoint of these weights."""
        return self.picks_best or self.save_strategy == "best"

    @property
    def sharding(self) -> Literal["none", "fsdp2", "zero0", "zero1", "zero2", "zero3"]:
        """Return how weights, gradients and optimizer states are spread over the processes."""
        if self.fsdp_config is not None:
            return "fsdp2"
        if self.deepspeed is None:
            return "none"
        stage = self.deepspeed.get("zero_optimization", {}).get("stage", 0)
        names: dict[Any, Literal["zero1", "zero2", "zero3"]] = {1: "zero1", 2: "zero2", 3: "zero3"}
        return names.get(stage, "zero0")

    @property
    def shuffles(self) -> bool:
        """Return whether the rows of all data sets are shuffled together before the split."""
        return self.shuffle_merged_datasets and not self.curriculum_sampling

    @property
    def packs_in_order(self) -> bool:
        """Return whether rows are packed beside those that come before them."""
        return self.sample_packing_sequentially or self.curriculum_sampling

    def sharing(self, processes: int) -> int:
        """Return how many of so many processes share one copy of a model in shards."""
        return self.dp_shard_size or max(1, processes // (self.dp_replicate_size or 1))

    @property
    def offloads_activations(self) -> bool:
        """Return whether what recomputation begins with is kept in the memory of the CPU."""
        return self.gradient_checkpointing == "offload" or bool(self.activation_offloading)

    @property
    def recomputes_activations(self) -> bool:
        """Return whether activations are recomputed in the backward pass."""
        return bool(self.gradient_checkpointing) or bool(self.fsdp_config and self.fsdp_config.activation_checkpointing)

    @property
    def sequences_per_pass(self) -> int:
        """Return the sequences per process and forward pass."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        return (self.batch_size or 1) // (self.gradient_accumulation_steps or 1)

    @property
    def passes_per_step(self) -> int:
        """Return the forward passes per optimizer step."""
        if self.gradient_accumulation_steps is not None:
            return self.gradient_accumulation_steps
        return (self.batch_size or 1) // self.sequences_per_pass

    @property
    def publish_options(self) -> dict[str, Any]:
        """Return how the place that receives the model is reached."""
        return self.publish.storage_options if self.publish is not None else {}

    @property
    def publish_to(self) -> str:
        """Return the folder or URL that receives the complete model."""
        if self.publish is not None:
            return self.publish.to
        return f"{self.output_dir}/merged" if self.adapter else self.output_dir
