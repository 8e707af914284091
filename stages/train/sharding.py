"""FSDP2 and DeepSpeed in the Trainer's words; a look at what they really did; and whole tensors out of shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, ParallelismConfig
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem, StageError


def fsdp_arguments(run: RunConfig, processes: int, *, on_gpu: bool) -> dict[str, Any]:
    """Return the arguments of TrainingArguments that ask for FSDP2; none without it."""
    config, sharing = run.fsdp_config, run.sharing(processes)
    if config is None:
        return {}
    chosen: dict[str, Any] = {
        "version": 2,
        "reshard_after_forward": config.reshard_after_forward,
        "cpu_offload": config.offload_params and on_gpu,
        "state_dict_type": config.state_dict_type,
        "auto_wrap_policy": config.auto_wrap_policy,
    }
    if config.min_num_params is not None:
        chosen["min_num_params"] = config.min_num_params
    if config.transformer_layer_cls_to_wrap:
        chosen["transformer_layer_cls_to_wrap"] = list(config.transformer_layer_cls_to_wrap)
    mesh = ParallelismConfig(dp_replicate_size=processes // sharing, dp_shard_size=sharing)
    return {"fsdp": True, "fsdp_config": chosen, **({"parallelism_config": mesh} if sharing < processes else {})}


def deepspeed_arguments(run: RunConfig, precision: str, *, on_gpu: bool) -> dict[str, Any]:
    """Return the arguments of TrainingArguments that ask for DeepSpeed; none without it.

    Batch sizes, clipping, precision and optimizer are those of the run, whatever DeepSpeed's configuration says.

    Raises:
        ConfigError: a lower precision without a GPU.
    """
    if run.deepspeed is None:
        return {}
    config = {
        **run.deepspeed,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": run.max_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if on_gpu:
        return {"deepspeed": config}
    if precision != "fp32":
        rule, remedy = "DeepSpeed without a GPU computes in float32", "Set bf16: false, or use fsdp_config."
        raise ConfigError([Problem("configuration", "bf16", str(run.bf16).lower(), rule, remedy)])
    _form_cpu_group()
    return {"deepspeed": config, "use_cpu": False, "accelerator_config": {"use_configured_state": True}}


def _form_cpu_group() -> None:
    """Let processes without a GPU know each other before the Trainer looks: it would let each train on its own."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]


def shard_on_cpu(arguments: TrainingArguments) -> None:
    """Make processes without a GPU shard when FSDP is asked for.

    accelerate 1.15 lists the kinds of devices that FSDP works on, without CPUs, and falls back to DDP without a word;
    FSDP2 itself runs there. The state that the Trainer's own Accelerator will find is set to what was asked for.
    """
    if arguments.fsdp_plugin_args is None or arguments.device.type != "cpu":
        return
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    state = Accelerator(cpu=True, mixed_precision="bf16" if arguments.bf16 else "no").state
    state.fsdp_plugin = plugin
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def stay_alone(arguments: TrainingArguments, run: RunConfig) -> None:
    """Let a single process that shards nothing train without DDP, which would keep a second copy of its gradients."""
    if arguments.world_size == 1 and run.sharding == "none":
        PartialState().distributed_type = DistributedType.NO


def settle_precision(trainer: Trainer, computed_in: torch.dtype) -> None:
    """Let FSDP gather weights in the precision of the computation, and sum gradients over processes in float32.

    accelerate's own choice rounds the sums of gradients, and even the loss, to bfloat16.
    """
    if trainer.is_fsdp_enabled:
        policy = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32)
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def check_sharded(trainer: Trainer, wanted: str, world_size: int) -> None:
    """Refuse to train other than asked for.

    Raises:
        StageError: the processes do not share one model, or the weights are not spread over them.
    """
    found = trainer.accelerator.num_processes
    if found != world_size:
        raise StageError(f"{world_size} training processes were started, but they form groups of {found}")
    if wanted == "fsdp2":
        _check_fsdp(trainer.model, world_size)
    elif wanted.startswith("zero"):
        _check_zero(trainer, int(wanted.removeprefix("zero")), world_size)
    elif trainer.is_fsdp_enabled:
        raise StageError("the training is sharded by FSDP, which was not asked for")


def _check_fsdp(model: PreTrainedModel, world_size: int) -> None:
    whole = [name for name, weight in model.named_parameters() if not isinstance(weight, DTensor)]
    if whole:
        raise StageError(
            f"fsdp_config asks for sharded weights, but {len(whole)} weights are whole in every process, the first is "
            f"{whole[0]}. Check fsdp_config.transformer_layer_cls_to_wrap, or train with DDP: remove fsdp_config."
        )
    here = sum(weight.to_local().numel() for weight in model.parameters())
    there = sum(weight.numel() for weight in model.parameters())
    if world_size > 1 and here > 0.75 * there:
        raise StageError(f"fsdp_config asks for sharded weights, but this process holds {here:,} of {there:,} of them")


def _check_zero(trainer: Trainer, stage: int, world_size: int) -> None:
    engine = getattr(trainer, "deepspeed", None)
    if engine is None:
        raise StageError("deepspeed was asked for, but the training runs without it")
    found = engine.zero_optimization_stage(), engine.dp_world_size
    if found != (stage, world_size):
        raise StageError(
            f"deepspeed asks for ZeRO-{stage} over {world_size} processes, but runs ZeRO-{found[0]} over {found[1]}"
        )
    if stage == 3:
        whole = [name for name, weight in trainer.model.named_parameters() if not hasattr(weight, "ds_id")]
        if whole:
            raise StageError(
                f"ZeRO-3 was asked for, but {len(whole)} weights are not in shards, the first is {whole[0]}"
            )


def whole_weights(model: PreTrainedModel, *, trained_only: bool, is_first: bool) -> dict[str, torch.Tensor]:
    """Return the weights of a sharded model by name, whole and on the CPU, in the first process; nothing elsewhere.

    Every process must call it. One tensor is gathered at a time.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves the last layers gathered, in memory that FSDP takes back at will
    weights: dict[str, torch.Tensor] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    if not trained_only:
        tensors |= {name: buffer for name, buffer in model.state_dict().items() if name not in tensors}
    for name, tensor in tensors.items():
        if trained_only and not tensor.requires_grad:
            continue
        with _gathered(tensor) as whole:
            if is_first:
                weights[name] = whole.detach().to("cpu", copy=True)
    return weights


@contextmanager
def _gathered(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if isinstance(tensor, DTensor):
        yield tensor.full_tensor()
    elif hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor.data
    else:
        yield tensor
