"""A model whose weights stay in their files: it runs, and is merged with its adapter, in the memory of one layer.

The model is built without memory for its weights (PyTorch's meta device). Each layer's tensors are read by memory map
when it is called, and given up when it has answered. Merging reads each tensor once, lets PEFT merge its layer, and
writes the files of the result under the names of the base's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from stages.errors import StageError

INDEX = "model.safetensors.index.json"
WRAPPER = "base_model.model."  # what peft puts in front of the base model's names
Read = Callable[[str], torch.Tensor]
Shard = tuple[str, dict[str, torch.Tensor]]


class WeightFiles:
    """The safetensors files of a model folder.

    Attributes:
        place: name of a tensor -> file that holds it, in the order of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / INDEX
        if index.is_file():
            files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        else:
            files = sorted(path.name for path in folder.glob("*.safetensors"))
        self.place: dict[str, str] = {}
        for name in files:
            with safe_open(folder / name, "pt") as file:
                self.place |= dict.fromkeys(file.keys(), name)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor. Its file is mapped for as long as the tensor lives: no pages of others stay behind."""
        with safe_open(self.folder / self.place[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model without memory for its weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    model.tie_weights()
    return model.eval()


def empty_adapted(folder: Path, adapter: Path, dtype: torch.dtype) -> PeftModel:
    """Return an empty model with an adapter that has its weights.

    Raises:
        StageError: the adapter does not fit the model.
    """
    adapted = PeftModel(empty_model(folder, dtype), PeftConfig.from_pretrained(adapter), "default")
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, parameter in list(adapted.named_parameters()):
        if ".lora_" not in name:
            continue
        plain = name.replace(".default", "")
        weight = weights.pop(plain, None)
        if weight is None:
            weight = weights.pop(plain.removesuffix(".weight"), None)  # DoRA's lengths
        if weight is None or weight.shape != parameter.shape:
            raise StageError(f"the adapter does not fit the base model at {plain}. Train again on this base model.")
        owner, _, own = name.rpartition(".")
        adapted.get_submodule(owner).register_parameter(own, nn.Parameter(weight, requires_grad=False))
    if weights:
        raise StageError(
            f"the adapter does not fit the base model: {len(weights)} of its tensors have no place or are missing, "
            f"the first is {min(weights)}. Train again on this base model."
        )
    return adapted.eval()


def can_stream(folder: Path, adapter: Path, tokens: int) -> bool:
    """Return whether files and model have the same names, and the adapter holds nothing but low-rank layers.

    Grown vocabularies, modules trained in full, and models whose files are rearranged when they are loaded are merged
    in memory.
    """
    try:
        files, model = WeightFiles(folder), empty_model(folder, torch.float32)
    except (OSError, ValueError, ImportError):
        return False
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        plain = all(".lora_" in name for name in file.keys())
    config = PeftConfig.from_pretrained(adapter)
    extras = (config.target_parameters, config.trainable_token_indices, config.layer_replication)
    rows = model.get_input_embeddings().weight.shape[0]
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in _saved_buffers(model)}
    special = getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None)
    tied = set(model.all_tied_weights_keys)
    return plain and not any(extras) and not special and tokens <= rows and files.place.keys() - tied == names - tied


def as_trained(
    model: PreTrainedModel,
    read: Read,
    *,
    trained: torch.dtype,
    merged: torch.dtype,
    quantization: dict[str, Any] | None,
) -> Read:
    """Return a reader of the base's weights as training saw them: taken to their bits and back if it was quantised.

    It gives them in the type of the merged weights, as `merge_whole` has them.
    """
    if quantization is None:
        return lambda name: read(name).to(merged)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**quantization)
    kept = HfQuantizer.get_modules_to_not_convert(model, config.llm_int8_skip_modules, model._keep_in_fp32_modules)
    quantised = {
        f"{name}.weight": type(module)
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and should_convert_module(name, kept)
    }

    def read_rounded(name: str) -> torch.Tensor:
        tensor, kind = read(name), quantised.get(name)
        if kind is Conv1D:  # it is quantised the other way round, as the linear layer that it is
            return _round(tensor.T.to(trained).contiguous(), config).T.to(merged)
        return (_round(tensor.to(trained), config) if kind else tensor).to(merged)

    return read_rounded


def _round(weight: torch.Tensor, config: Any) -> torch.Tensor:
    """Return a weight after bitsandbytes took it to its bits and back."""
    from bitsandbytes import functional

    if config.load_in_4bit:
        packed, state = functional.quantize_4bit(
            weight, compress_statistics=config.bnb_4bit_use_double_quant, quant_type=config.bnb_4bit_quant_type
        )
        result: torch.Tensor = functional.dequantize_4bit(packed, state)
        return result
    packed, scale, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    dequantised: torch.Tensor = packed.float() * scale[:, None] / 127
    return dequantised


@contextmanager
def streamed(model: nn.Module, read: Read, dtype: torch.dtype) -> Iterator[None]:
    """Let a model without weights run: each layer reads its own when it is called."""
    tied = _tied_source(model)
    hooks = []
    for name, module in _units(model):
        hooks.append(module.register_forward_pre_hook(_filler(name.removeprefix(WRAPPER), read, dtype, tied)))
        hooks.append(module.register_forward_hook(_emptier))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def merged_shards(adapted: PeftModel, files: WeightFiles, read: Read, dtype: torch.dtype) -> Iterator[Shard]:
    """Yield (file name, its tensors) of base + adapter, one file at a time, each tensor rounded once."""
    modules = ((name.removeprefix(WRAPPER), module) for name, module in adapted.named_modules())
    layers = {name: module for name, module in modules if isinstance(module, LoraLayer)}
    for file in dict.fromkeys(files.place.values()):
        shard = {}
        for name in (name for name, place in files.place.items() if place == file):
            tensor = read(name)
            layer = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            if layer is not None:
                tensor = _merge(layer, tensor.to(torch.float32))
            shard[name] = tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
        yield file, shard


def write_shards(shards: Iterator[Shard], folder: Path) -> None:
    """Write the files of a model, with their index if there are several."""
    place: dict[str, str] = {}
    size = 0
    for file, tensors in shards:
        save_file(tensors, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(tensors, file)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(set(place.values())) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(place.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _merge(layer: LoraLayer, weight: torch.Tensor) -> torch.Tensor:
    """Return what PEFT makes of a layer's weight."""
    base = layer.get_base_layer()
    empty, base.weight = base.weight, nn.Parameter(weight, requires_grad=False)
    try:
        layer.merge(safe_merge=False)
        merged: torch.Tensor = base.weight.data
        return merged
    finally:
        base.weight = empty
        layer.merged_adapters.clear()


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what is filled at once: adapted layers, and other modules with weights of their own."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, LoraLayer):
            inside |= {id(part) for part in module.modules()}
            yield name, module
        elif any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _filler(name: str, read: Read, dtype: torch.dtype, tied: dict[str, str]) -> Callable[[nn.Module, Any], None]:
    def fill(module: nn.Module, arguments: Any) -> None:
        owner = module.get_base_layer() if isinstance(module, LoraLayer) else module
        for own, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.is_meta:
                full = f"{name}.{own}"
                setattr(owner, own, nn.Parameter(read(tied.get(full, full)).to(dtype), requires_grad=False))

    return fill


def _emptier(module: nn.Module, arguments: Any, output: Any) -> None:
    owner = module.get_base_layer() if isinstance(module, LoraLayer) else module
    for own, parameter in list(owner.named_parameters(recurse=False)):
        setattr(owner, own, nn.Parameter(parameter.to("meta"), requires_grad=False))


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    state = model.state_dict()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in state)


def _tied_source(model: nn.Module) -> dict[str, str]:
    """Return name of a tied weight -> name under which it is in the files."""
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return dict(causal.all_tied_weights_keys)
