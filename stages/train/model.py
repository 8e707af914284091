"""The model that trains: loaded from safetensors, with its adapter; and how the result is saved."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem
from stages.quantization import quantization
from stages.train.adapter import add_adapter, freeze_all_but
from stages.train.job import Job
from stages.train.kernels import use_liger
from stages.train.lora_kernels import use_lora_kernels
from stages.train.machine import VARLEN
from stages.train.rules import LORA_KERNEL_KEYS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def uses_autocast(job: Job) -> bool:
    """Return whether the computation is in a lower precision than the trained weights."""
    return job.precision != "fp32" and job.run.bf16 != "full"


def computed_in(model: PreTrainedModel) -> torch.dtype:
    """Return the precision in which a model computes here and now."""
    device = model.device.type
    dtype: torch.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return dtype


def load_model(job: Job, vocabulary: int, new_tokens: Sequence[str] = ()) -> PreTrainedModel:
    """Return the base model, with embeddings for `vocabulary` tokens at least, and its adapter if there is one.

    `new_tokens` are those that the base model's tokenizer does not have.
    Weights that are trained in mixed precision are kept in float32; frozen ones are loaded in the precision of the
    computation, and so are all with `bf16: full`.
    """
    model = _load_base(job)
    if torch.cuda.is_available():
        use_liger(model, job.run)
    if model.get_input_embeddings().num_embeddings < vocabulary:
        _grow_vocabulary(model, job.run, vocabulary, new_tokens)
    if job.run.recomputes_activations and (job.run.adapter or job.run.unfrozen_parameters):
        model.enable_input_require_grads()  # a recomputed block needs an input with a gradient; these are frozen
    if job.run.adapter is not None:
        adapted = add_adapter(model, job.run, job.adapter)
        use_lora_kernels(adapted, [key for key in LORA_KERNEL_KEYS if getattr(job.run, key)])
        return adapted
    if job.run.unfrozen_parameters:
        freeze_all_but(model, job.run.unfrozen_parameters)
    return model


def _load_base(job: Job) -> PreTrainedModel:
    frozen = job.run.adapter is not None
    dtype = torch.float32 if uses_autocast(job) and not frozen else DTYPES[job.precision]
    attention, bits = job.attention or job.run.attn_implementation, quantization(job.run, job.precision)
    options: dict[str, Any] = {"attn_implementation": "sdpa" if attention == VARLEN else attention} if attention else {}
    if job.run.experts_implementation is not None:
        options["experts_implementation"] = job.run.experts_implementation
    if bits is not None:
        options["quantization_config"] = BitsAndBytesConfig(**bits)
    options |= {"dtype": dtype, "trust_remote_code": job.run.trust_remote_code}
    try:
        model = _random_weights(job, options) if job.run.reinit_weights else _weights(job, options)
    except (ImportError, ValueError, OSError) as error:
        if attention and not isinstance(error, OSError):
            key, value, remedy = (
                "attn_implementation",
                attention,
                "Set attn_implementation: auto: the fastest that is there.",
            )
        else:
            key, value = "base_model", job.run.base_model
            remedy = "Check the folder: it must hold a causal language model with its weights in safetensors."
        rule = f"the model cannot be loaded: {error}"
        raise ConfigError([Problem("configuration", key, value, rule, remedy)]) from error
    _check_overrides(model.config, job.run.overrides_of_model_config)
    _keep_trainable_layout(model)
    return model


def _weights(job: Job, options: dict[str, Any]) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(job.model, use_safetensors=True, **options)
    return model


def _random_weights(job: Job, options: dict[str, Any]) -> PreTrainedModel:
    """Return a model of the same shape; every process has drawn the same weights, from `seed`."""
    config = AutoConfig.from_pretrained(job.model, trust_remote_code=job.run.trust_remote_code)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    return model


def _check_overrides(config: PretrainedConfig, overrides: Collection[str]) -> None:
    """Refuse keys that the configuration of this kind of model does not have: transformers takes any."""
    known = [*vars(type(config)()), "rope_scaling", "rope_theta"]
    unknown = [key for key in overrides if key not in known]
    if unknown:
        near = {key: ", ".join(difflib.get_close_matches(key, known, n=2)) or "none" for key in unknown}
        rule = f"config.json of {config.model_type} models has no such key; near it: "
        section = "overrides_of_model_config"
        remedy = "Correct it, or remove it."
        raise ConfigError(
            [Problem("configuration", f"{section}.{key}", "", rule + near[key], remedy) for key in unknown]
        )


def _keep_trainable_layout(model: PreTrainedModel) -> None:
    """Let 4-bit layers keep their layout when the model is evaluated.

    On CPUs with AVX512-BF16 bitsandbytes turns it, at the first pass in evaluation mode, into one for inference that no
    gradient goes through: the layers below would train no more, and only a warning of torch's tells.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _grow_vocabulary(model: PreTrainedModel, run: RunConfig, vocabulary: int, new_tokens: Sequence[str]) -> None:
    rows = model.get_input_embeddings().num_embeddings
    only_padding = run.special_tokens.only_pads(new_tokens) and vocabulary == rows + 1
    if run.adapter is not None and not run.lora_modules_to_save and not only_padding:
        rule = f"the vocabulary grew from {rows} to {vocabulary} tokens, and new ones must be trained"
        remedy = "Add lora_modules_to_save: [embed_tokens, lm_head]."
        raise ConfigError([Problem("configuration", "lora_modules_to_save", "", rule, remedy)])
    if run.resize_token_embeddings_to_32x:
        vocabulary += -vocabulary % 32
    model.resize_token_embeddings(vocabulary, mean_resizing=run.mean_resizing_embeddings)


def save_final(model: PreTrainedModel, job: Job, folder: Path, weights: dict[str, torch.Tensor] | None) -> None:
    """Write the adapter or the whole model, with the tokenizer and chat template that made the training data.

    Args:
        model: the model without what the Trainer put around it.
        job: the training.
        folder: where to; it is emptied first.
        weights: the weights by name, where the model itself holds only shards of them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=weights)
        (folder / "README.md").unlink(missing_ok=True)  # a model card of placeholders
        _settle_adapter_config(folder / "adapter_config.json", job)
    else:
        config = AutoConfig.from_pretrained(job.model, trust_remote_code=job.run.trust_remote_code)
        model.config.use_cache = getattr(config, "use_cache", True)  # it was off for the training alone
        dtype = DTYPES[job.precision]
        if weights is None:
            model.to(dtype).save_pretrained(folder)
        else:
            model.config.dtype = dtype
            model.save_pretrained(folder, state_dict={name: weight.to(dtype) for name, weight in weights.items()})
    for path in sorted((job.tokens / "tokenizer").iterdir()):
        shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        path.chmod(0o666 & ~_umask())  # the weights are written for their owner alone


def _settle_adapter_config(path: Path, job: Job) -> None:
    """Sort what PEFT writes in the order of a hash, and name the base model as others can find it."""
    config: dict[str, Any] = orjson.loads(path.read_bytes())
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[name] = sorted(value)
    config["base_model_name_or_path"], config["revision"] = job.model_name, job.model_commit
    path.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
