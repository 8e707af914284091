"""The schema of a run, with axolotl's names and meanings, and keys of our own beside them.

Below this module a configuration is never written to and never asked for a key that it may not have.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    model_validator,
)

from configs.secrets import redacted

BYTES_A_TOKEN = 8
MOST_PROCESSES = 8
"""What `streaming` reckons with: see `RunConfig.bytes_wanted`."""

Train = Literal["all", "turn", "last", "none"]


class Section(BaseModel):
    """A part of the configuration: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])]


def _as_no(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a bare `no` as false


def _as_pairs(value: Any) -> Any:
    """Read "betas=0.9,eps=1e-6" as a mapping of names to words."""
    if not isinstance(value, str):
        return value
    return {name.strip(): word.strip() for name, _, word in (pair.partition("=") for pair in value.split(",")) if name}


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    block = options.get("block")
    if block is not None and (not isinstance(block, str) or block.count("/") != 1):
        raise ValueError("block names a Prefect block as type/name; write, for example, block: secret/training-data")
    return options


StorageOptions = Annotated[dict[str, Any], AfterValidator(_checked_options), Field(exclude=True, repr=False)]
"""How to reach a place behind a URL. May hold secrets: it is in no key, and dumped and shown nowhere."""
Place = Annotated[str, PlainSerializer(redacted, return_type=str)]
"""A path or URL; dumped without the secrets that a URL may hold."""
Places = Annotated[Strings, PlainSerializer(lambda names: [redacted(name) for name in names], return_type=list)]
OPTIONS_HELP = (
    "How to reach %s: endpoint_url, region, profile, anonymous, block (Prefect block, type/name), and what the fsspec "
    "file system knows. Credentials come from the usual chains. Never written anywhere."
)


class PromptConfig(Section):
    """A user-defined instruction format: `type:` given as a dictionary."""

    system_prompt: str = Field("", description="Text of the system part when a row has none.")
    field_system: str = Field("system", description="Column of the system prompt.")
    field_instruction: str = Field("instruction", description="Column of the instruction.")
    field_input: str = Field("input", description="Column of the optional input.")
    field_output: str = Field("output", description="Column of the response that is trained.")
    format: str = Field("{instruction} {input} ", description="Prompt when the row has an input.")
    no_input_format: str = Field("{instruction} ", description="Prompt when the row has none.")
    system_format: str = Field("{system}", description="How the system prompt is written in front.")


class DatasetConfig(Section):
    """One data set: where its rows are, and how a row becomes text and a label mask."""

    path: Place = Field(description="Hub id, or a file, folder or pattern: local, s3://, gs://, https://.")
    storage_options: StorageOptions = Field({}, description=OPTIONS_HELP % "path")
    type: str | PromptConfig | None = Field(
        None,
        description="Format of a row: chat_template, alpaca, ..., a module or file of yours; empty: tokenized rows.",
    )
    conversation: Literal["instruct", "chat", "chatml", "phi"] | None = Field(
        None, description="alpaca_chat.load: style of the prompt; default chat."
    )
    split: str | None = Field(None, description="Split to read, with slices (`train[:20%]`); default train.")
    name: str | None = Field(None, description="Configuration name of a Hub data set.")
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub data set; pinned to its commit.")
    data_files: Places = Field((), description="Files to read, relative to `path` when that is a folder or Hub id.")
    max_decompression_ratio: float = Field(
        200.0, gt=0, description="Bytes that a byte of a compressed file may become, beyond the first 64 MiB."
    )
    ds_type: Literal["json", "csv", "parquet", "arrow", "text"] | None = Field(
        None, description="Format of the files; default: by their extension."
    )
    shards: int | None = Field(None, ge=1, description="Read one of this many parts of the shuffled rows.")
    shards_idx: int = Field(0, ge=0, description="Which of the `shards`, from 0.")
    preprocess_shards: int | None = Field(
        None, ge=1, description="Accepted without effect: rows are always prepared in parts, of constant memory."
    )
    weight: float = Field(
        1.0, gt=0, description="Share of the rows that is used, drawn with `seed`; with `mixture`: proportion in it."
    )
    field: str = Field("text", description="completion: column of the text.")
    field_messages: str = Field("messages", description="chat_template: column of the list of messages.")
    field_system: str = Field("system", description="chat_template: column of a system prompt beside the messages.")
    field_tools: str = Field("tools", description="chat_template: column of the tool schemas.")
    field_thinking: str | None = Field(None, description="chat_template: message key of the reasoning text.")
    template_thinking_key: str = Field(
        "reasoning_content", description="chat_template: name under which the template reads the reasoning text."
    )
    message_field_role: str | None = Field(None, description="Old form of message_property_mappings.role.")
    message_field_content: str | None = Field(None, description="Old form of message_property_mappings.content.")
    message_property_mappings: dict[str, str] = Field(
        {}, description="chat_template: template's message property -> key in the data's messages."
    )
    message_field_training: str | None = Field(None, description="chat_template: message key that says: train or not.")
    message_field_training_detail: str | None = Field(
        None, description="chat_template: message key with a list of {begin_offset, end_offset, train} (characters)."
    )
    split_thinking: bool = Field(False, description="chat_template: cut <think>...</think> out into the reasoning.")
    roles: dict[str, tuple[str, ...]] | None = Field(
        None, description="chat_template: role -> names for it in the data; replaces the default map."
    )
    roles_to_train: tuple[str, ...] = Field(("assistant",), description="chat_template: roles whose turns are trained.")
    train_on_eos: Train = Field("turn", description="chat_template: end-of-sequence tokens that are trained.")
    train_on_eot: Train | None = Field(
        None, description="chat_template: end-of-turn tokens that are trained; default as train_on_eos."
    )
    drop_system_message: bool = Field(False, description="chat_template: remove a leading system message.")
    chat_template: str | None = Field(None, description="Chat template of this data set; default: the run's.")
    chat_template_jinja: str | None = Field(None, description="Jinja text, or the path of a file with it.")

    @model_validator(mode="after")
    def _message_field_once(self) -> DatasetConfig:
        for old, prop in (("message_field_role", "role"), ("message_field_content", "content")):
            value, mapped = getattr(self, old), self.message_property_mappings.get(prop)
            if value and mapped and value != mapped:
                raise ValueError(
                    f"{old}: {value!r} contradicts message_property_mappings.{prop}: {mapped!r}; keep the mapping"
                )
        return self

    @property
    def shown(self) -> str:
        """Return `path` as people and files may see it: without the secrets that a URL may hold."""
        return redacted(self.path)

    @property
    def message_properties(self) -> dict[str, str]:
        """Return template property -> key in the data, with role and content always filled in."""
        old = {"role": self.message_field_role or "role", "content": self.message_field_content or "content"}
        thinking = {self.template_thinking_key: self.field_thinking} if self.field_thinking else {}
        return {**old, **thinking, **self.message_property_mappings}

    @model_validator(mode="after")
    def _shard_is_one_of_them(self) -> DatasetConfig:
        if self.shards_idx >= (self.shards or 1):
            raise ValueError(
                f"shards_idx: {self.shards_idx} is not one of {self.shards or 1} shards, counted from 0; lower it"
            )
        return self


class MixtureConfig(Section):
    """Proportions of the data sets, in place of all their rows."""

    unit: Literal["rows", "trained_tokens"] = Field(description="What `datasets[].weight` is a proportion of.")
    repeat: bool = Field(
        False, description="Repeat scarce data sets until all rows are used; false: leave out what is too much."
    )


def _as_mixture(value: Any) -> Any:
    return {"unit": value} if isinstance(value, str) else value


class SpecialTokensConfig(Section):
    """Special tokens to set on the tokenizer; new ones are added to its vocabulary."""

    bos_token: str | None = Field(None, description="Beginning of sequence.")
    eos_token: str | None = Field(None, description="End of sequence.")
    pad_token: str | None = Field(None, description="Padding; default: the tokenizer's, else its end of sequence.")
    unk_token: str | None = Field(None, description="Unknown.")
    additional_special_tokens: tuple[str, ...] = Field((), description="Further special tokens.")


class LrGroup(Section):
    """Parameters with a learning rate of their own."""

    name: str = Field(description="Name of the group.")
    modules: Strings = Field(min_length=1, description="Parts of parameter names; any of them puts it into the group.")
    lr: float = Field(gt=0, description="Peak learning rate of the group.")


class LauncherConfig(Section):
    """How training processes are started."""

    type: Literal["local", "ssh", "slurm", "kubernetes"] = Field(
        "local", description="What starts them: torchrun here, on hosts by SSH, as a Slurm job, as a Kubeflow TrainJob."
    )
    nodes: int = Field(1, ge=1, description="Machines that train together; they share a file system.")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Training processes per node; auto: one per GPU of this machine, one without a GPU."
    )
    threads: int = Field(0, ge=0, description="CPU threads per process (OMP_NUM_THREADS); 0: cores / processes.")
    restarts: int = Field(
        3, ge=0, description="ssh: how often all agents are started again after a process or host is lost."
    )
    port: int = Field(29400, ge=1, le=65535, description="Port on the first node where the nodes meet.")
    hosts: tuple[str, ...] = Field((), description="ssh: host of each node, as the others reach it.")
    remote_shell: str = Field("ssh -o BatchMode=yes", description="ssh: command that runs a command on a host.")
    slurm_options: tuple[str, ...] = Field((), description="slurm: options of sbatch, `--gres=gpu:8`, one each.")
    setup: str | None = Field(None, description="slurm: lines of shell in front of the training (`module load ...`).")
    namespace: str = Field("default", description="kubernetes: namespace of the TrainJob.")
    runtime: str = Field("torch-distributed", description="kubernetes: ClusterTrainingRuntime of the TrainJob.")
    image: str | None = Field(None, description="kubernetes: image with this project installed.")
    gpus: bool = Field(True, description="kubernetes: ask for a GPU per process.")
    volume_claim: str | None = Field(None, description="kubernetes: claim of the volume with the store.")
    mount_path: str = Field("/store", description="kubernetes: where that volume is, here and in the pods.")

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the machines that train are not this one, so that nothing follows from its GPUs."""
        return self.type in ("slurm", "kubernetes")

    @model_validator(mode="after")
    def _engine_knows_its_nodes(self) -> LauncherConfig:
        if self.type == "ssh" and len(self.hosts) != self.nodes:
            raise ValueError(f"ssh needs a host for each of {self.nodes} nodes and has {len(self.hosts)}; set hosts")
        if self.type == "local" and self.nodes > 1:
            raise ValueError("local is one node; set type: ssh, slurm or kubernetes, or nodes: 1")
        if self.is_elsewhere and self.processes == "auto":
            raise ValueError(f"{self.type} trains elsewhere: say how many processes a node has, processes: 8")
        if self.type == "kubernetes" and not (self.image and self.volume_claim):
            raise ValueError("kubernetes needs image and volume_claim: a container and the volume of the store")
        return self


class OrchestrationConfig(Section):
    """How a run is deployed: where its stages run, and when."""

    name: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9-]*$", description="Name of the deployments; default: the file's name."
    )
    executor: Literal["local", "ray"] = Field(
        "local", description="Where rows are tokenized: processes of this machine, or the workers of a Ray cluster."
    )
    address: str | None = Field(
        None, description="Ray cluster (host:port, ray://host:port); default: the one that this machine belongs to."
    )
    work_pool: str = Field("sft", description="Prefect work pool of the deployments.")
    data_queue: str = Field("data", description="Queue of the runs that need no GPU: preparing, publishing, watching.")
    gpu_queue: str = Field("gpu", description="Queue of the runs that train.")
    gpu_pool: str | None = Field(None, description="Work pool of the runs that train; default: work_pool.")
    cron: str | None = Field(None, description="Prepare, then train and publish, at these times (cron expression).")
    interval: int | None = Field(None, ge=60, description="The same every so many seconds.")
    timezone: str = Field("UTC", description="Time zone of `cron`.")
    watch: int | None = Field(None, ge=10, description="Look every so many seconds whether the data has changed.")
    hold_unhealthy: bool = Field(
        False, description="Publishing waits for a person when the training was judged sick (resume in the UI)."
    )

    @model_validator(mode="after")
    def _an_address_needs_ray(self) -> OrchestrationConfig:
        if self.address and self.executor != "ray":
            raise ValueError("address names a Ray cluster; set executor: ray, or remove address")
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> OrchestrationConfig:
        if self.cron and self.interval:
            raise ValueError("cron and interval exclude each other; remove interval")
        return self


class PublishConfig(Section):
    """Where the finished model goes."""

    to: str = Field(description="Folder or fsspec URL (s3://, gs://, memory excluded) that receives the model.")
    storage_options: StorageOptions = Field({}, description=OPTIONS_HELP % "the target")


StateDictType = Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT"]


class FsdpConfig(Section):
    """Sharding by FSDP2: every process holds a part of each weight, gradient and optimizer state."""

    reshard_after_forward: bool = Field(True, description="Give the gathered weights up after the forward pass.")
    offload_params: bool = Field(False, description="Keep the shards in CPU memory, and step the optimizer there.")
    cpu_offload_pin_memory: bool = Field(True, description="Pin the CPU memory of offloaded shards.")
    activation_checkpointing: bool = Field(False, description="Recompute activations: as gradient_checkpointing.")
    state_dict_type: StateDictType = Field(
        "FULL_STATE_DICT", description="Form of checkpoints: gathered by the first process, or a part by each."
    )
    final_state_dict_type: StateDictType | None = Field(
        None, description="Accepted without effect: the final model is always complete."
    )
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP"] = Field(
        "TRANSFORMER_BASED_WRAP", description="What is gathered at once: a layer, or modules of min_num_params."
    )
    transformer_layer_cls_to_wrap: Strings = Field((), description="Layer classes; default: the model's own.")
    min_num_params: int | None = Field(None, ge=1, description="SIZE_BASED_WRAP: parameters of a wrapped module.")
    cpu_ram_efficient_loading: bool = Field(
        False, description="Accepted without effect: each process maps the base model's files into memory."
    )
    mixed_precision_policy: str | None = Field(None, description="Accepted without effect: as bf16 and fp16 say.")

    @model_validator(mode="after")
    def _size_needs_a_number(self) -> FsdpConfig:
        if self.auto_wrap_policy == "SIZE_BASED_WRAP" and self.min_num_params is None:
            raise ValueError("SIZE_BASED_WRAP needs min_num_params; set fsdp_config.min_num_params: 100000000")
        return self


BYTES = r"(\d+\.?\d*) ?([KMGT]?)(i?)B"
Bytes = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=f"^{BYTES}$")]


def _as_bytes(value: Any) -> Any:
    """Read 50GB (powers of 1000) or 50GiB (of 1024) as a number of bytes."""
    match = re.fullmatch(BYTES, value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))


def _as_publish(value: Any) -> Any:
    return {"to": value} if isinstance(value, str) else value


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
    mixture: Annotated[
        MixtureConfig | None, BeforeValidator(_as_mixture, json_schema_input_type=str | MixtureConfig | None)
    ] = Field(None, description="Mix by proportions (datasets[].weight) of rows or trained_tokens. Our own key.")
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
    eval_sample_packing: bool | None = Field(None, description="The same for evaluation; default: as sample_packing.")
    pad_to_sequence_len: bool = Field(False, description="Pad every batch to sequence_len instead of its longest row.")
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
    optim_args: Annotated[dict[str, Any], BeforeValidator(_as_pairs, json_schema_input_type=str | dict[str, Any])] = (
        Field({}, description="Arguments of the optimizer, as a mapping or as name=value,name=value.")
    )
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
    save_strategy: Annotated[Literal["no", "steps", "epoch", "best"] | None, BeforeValidator(_as_no)] = Field(
        None, description="When checkpoints are written; best: when eval_loss is lower than ever. Default: each epoch."
    )
    save_first_step: bool = Field(False, description="A checkpoint after the first step as well.")
    save_only_model: bool = Field(
        False, description="Checkpoints without optimizer: smaller, but no training goes on from them."
    )
    resume_from_checkpoint: bool | str | None = Field(
        None, description="Folder of a checkpoint to start from. Its own newest one a training always goes on from."
    )
    eval_strategy: Annotated[Literal["no", "steps", "epoch"] | None, BeforeValidator(_as_no)] = Field(
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
    artifact_cache_size: Annotated[int, Field(ge=0), BeforeValidator(_as_bytes, json_schema_input_type=Bytes)] = Field(
        100_000_000_000, description="Bytes that the cache may hold, or a text as 50GB. Our own key."
    )
    launcher: LauncherConfig = Field(LauncherConfig(), description="How training is started. Our own key.")
    orchestration: OrchestrationConfig = Field(
        OrchestrationConfig(), description="How the run is deployed. Our own key."
    )
    publish: Annotated[
        PublishConfig | None, BeforeValidator(_as_publish, json_schema_input_type=str | PublishConfig | None)
    ] = Field(None, description="Where the model is published; default: a folder in output_dir. Our own key.")

    @model_validator(mode="after")
    def _batch_sizes(self) -> RunConfig:
        given = [self.micro_batch_size, self.gradient_accumulation_steps, self.batch_size]
        if sum(value is not None for value in given) < 2:
            raise ValueError(
                "give two of micro_batch_size, gradient_accumulation_steps and batch_size; "
                "usual: micro_batch_size: 2, gradient_accumulation_steps: 4"
            )
        if self.batch_size and self.gradient_accumulation_steps:
            raise ValueError("batch_size and gradient_accumulation_steps exclude each other; remove batch_size")
        if self.batch_size and self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size; change one of them")
        return self

    @model_validator(mode="after")
    def _data_sets_fit_together(self) -> RunConfig:
        if self.test_datasets and self.val_set_size:
            raise ValueError("test_datasets and val_set_size exclude each other; remove val_set_size")
        if self.eval_sequence_len is not None and not self.test_datasets:
            raise ValueError("eval_sequence_len is for test_datasets, and there are none; remove eval_sequence_len")
        if self.dataset_shard_idx >= (self.dataset_shard_num or 1):
            raise ValueError("dataset_shard_idx is not one of dataset_shard_num parts, counted from 0; lower it")
        if self.mixture is None and any(dataset.weight > 1 for dataset in self.datasets):
            raise ValueError("datasets[].weight above 1 is a proportion; set mixture: rows, or lower weight")
        if any(dataset.weight > 1 for dataset in self.test_datasets):
            raise ValueError("test_datasets[].weight is a share of the rows; lower weight to 1 or less")
        return self

    @property
    def sources(self) -> tuple[DatasetConfig, ...]:
        """Return every data set, those for training first: the position in it is the data set's number in artifacts."""
        return (*self.datasets, *self.test_datasets)

    def only_pads(self, new_tokens: Collection[str]) -> bool:
        """Return whether the one token that is new to a vocabulary is padding, which is never seen or predicted."""
        return list(new_tokens) == [self.special_tokens.pad_token]

    def source_key(self, number: int) -> str:
        """Return the key of a data set by its number in artifacts: `datasets.0`, or `test_datasets.0`."""
        own = len(self.datasets)
        return f"datasets.{number}" if number < own else f"test_datasets.{number - own}"

    @model_validator(mode="after")
    def _streaming_has_an_end(self) -> RunConfig:
        if self.streaming and self.max_steps is None:
            raise ValueError("streaming reads what max_steps can use; set max_steps: 1000, or remove streaming")
        return self

    @model_validator(mode="after")
    def _exclusive_keys(self) -> RunConfig:
        pairs = [("warmup_steps", "warmup_ratio"), ("eval_steps", "evals_per_epoch"), ("save_steps", "saves_per_epoch")]
        for first, second in pairs:
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ValueError(f"{first} and {second} exclude each other; remove {first}")
        return self

    @model_validator(mode="after")
    def _quantised_base_needs_an_adapter(self) -> RunConfig:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other; remove load_in_8bit")
        if self.adapter is None and (self.load_in_4bit or self.load_in_8bit):
            key, adapter = ("load_in_4bit", "qlora") if self.load_in_4bit else ("load_in_8bit", "lora")
            raise ValueError(f"quantised weights cannot be trained; set adapter: {adapter}, or remove {key}")
        if self.adapter == "qlora" and not self.load_in_4bit:
            raise ValueError("adapter: qlora keeps the base in 4 bits; set load_in_4bit: true, or adapter: lora")
        if self.bnb_config_kwargs and not (self.load_in_4bit or self.load_in_8bit):
            raise ValueError("bnb_config_kwargs needs a quantised base; set load_in_4bit: true, or remove it")
        return self

    @model_validator(mode="after")
    def _adapter_targets(self) -> RunConfig:
        named = self.lora_target_linear or self.lora_target_modules or self.lora_target_parameters
        if self.adapter and not (named or self.lora_model_dir):
            raise ValueError(f"adapter: {self.adapter} needs its targets; set lora_target_linear: true")
        if self.lora_target_parameters and self.lora_dropout:
            raise ValueError("lora_target_parameters takes no lora_dropout; set lora_dropout: 0")
        return self

    @model_validator(mode="after")
    def _adapter_keys_need_an_adapter(self) -> RunConfig:
        if self.adapter is not None and self.unfrozen_parameters:
            raise ValueError("unfrozen_parameters and adapter exclude each other; use lora_modules_to_save")
        for key in ("lora_model_dir", "peft_use_dora", "loraplus_lr_ratio"):
            if self.adapter is None and getattr(self, key):
                raise ValueError(f"{key} needs an adapter; set adapter: lora, or remove {key}")
        ranges = [pattern for pattern in self.unfrozen_parameters if re.search(r"\[-?\d*:-?\d*\]$", pattern)]
        if ranges:
            raise ValueError(f"unfrozen_parameters trains whole parameters, not {ranges[0]}; leave the range out")
        return self

    @model_validator(mode="after")
    def _one_way_to_set_a_learning_rate(self) -> RunConfig:
        for key, other in (
            ("lr_groups", "loraplus_lr_ratio"),
            ("embedding_lr", "loraplus_lr_ratio"),
            ("embedding_lr_scale", "loraplus_lr_ratio"),
            ("embedding_lr_scale", "embedding_lr"),
        ):
            if getattr(self, key) and getattr(self, other):
                raise ValueError(f"{key} and {other} exclude each other; remove {key}")
        return self

    @model_validator(mode="after")
    def _schedule_has_its_keys(self) -> RunConfig:
        for key, schedules in (
            ("cosine_min_lr_ratio", ("cosine", "rex")),
            ("cosine_constant_lr_ratio", ("cosine",)),
            ("lr_quadratic_warmup", ("cosine",)),
        ):
            if getattr(self, key) and self.lr_scheduler not in schedules:
                raise ValueError(f"{key} needs lr_scheduler: {' or '.join(schedules)}; remove {key}")
        return self

    @model_validator(mode="after")
    def _offloading_needs_recomputation(self) -> RunConfig:
        if self.activation_offloading and not self.gradient_checkpointing:
            raise ValueError(
                "activation_offloading moves what gradient_checkpointing keeps; set gradient_checkpointing: true"
            )
        return self

    @model_validator(mode="after")
    def _sharded_once(self) -> RunConfig:
        if self.fsdp_config is not None and self.deepspeed is not None:
            raise ValueError("fsdp_config and deepspeed exclude each other; remove deepspeed")
        return self

    @model_validator(mode="after")
    def _precision_elsewhere(self) -> RunConfig:
        if self.launcher.is_elsewhere and self.bf16 == "auto" and not self.fp16:
            raise ValueError(
                f"bf16: auto looks at this machine's GPUs, and launcher.type: {self.launcher.type} trains elsewhere; "
                "set bf16: true, or false"
            )
        return self

    @model_validator(mode="after")
    def _precision_once(self) -> RunConfig:
        if self.fp16 and self.bf16 is True:
            raise ValueError("bf16 and fp16 exclude each other; remove fp16")
        return self

    @model_validator(mode="after")
    def _evaluation_has_rows(self) -> RunConfig:
        if self.val_set_size or self.test_datasets:
            return self
        for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
            if getattr(self, key):
                raise ValueError(f"{key} asks for an evaluation set; set val_set_size: 0.05, or remove {key}")
        if self.save_strategy == "best" or self.eval_strategy not in (None, "no"):
            key = "save_strategy" if self.save_strategy == "best" else "eval_strategy"
            raise ValueError(f"{key} asks for an evaluation set; set val_set_size: 0.05, or remove {key}")
        return self

    @model_validator(mode="after")
    def _strategies(self) -> RunConfig:
        if self.save_strategy not in (None, "steps") and (self.save_steps or self.saves_per_epoch):
            raise ValueError("save_strategy contradicts save_steps and saves_per_epoch; remove save_strategy")
        if self.eval_strategy not in (None, "steps") and (self.eval_steps or self.evals_per_epoch):
            raise ValueError("eval_strategy contradicts eval_steps and evals_per_epoch; remove eval_strategy")
        if self.eval_strategy == "steps" and not (self.eval_steps or self.evals_per_epoch):
            raise ValueError("eval_strategy: steps needs their number; set eval_steps: 0.1")
        often = self.eval_steps or self.evals_per_epoch or self.eval_strategy == "epoch"
        if self.early_stopping_patience and not often:
            raise ValueError("early_stopping_patience needs several evaluations; set evals_per_epoch: 4")
        return self

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
    def bytes_wanted(self) -> int | None:
        """Return how much is read of each data set (bytes of its rows as JSON), None for all of it.

        Enough to fill every sequence of `max_steps`: a token seldom has more than `BYTES_A_TOKEN`. Where the number of
        processes is left to the machine, `MOST_PROCESSES` are reckoned with, so that it does not change the key.
        """
        if not self.streaming or self.max_steps is None:
            return None
        processes = MOST_PROCESSES if self.launcher.processes == "auto" else self.launcher.processes
        sequences = self.max_steps * self.sequences_per_pass * self.passes_per_step * processes
        return sequences * self.sequence_len * BYTES_A_TOKEN

    @property
    def publish_to(self) -> str:
        """Return the folder or URL that receives the complete model."""
        if self.publish is not None:
            return self.publish.to
        return f"{self.output_dir}/merged" if self.adapter else self.output_dir
