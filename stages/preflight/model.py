"""Adapter and base model: names that match nothing, tokens that nobody trains, weights that cannot be trained."""

from __future__ import annotations

from collections.abc import Iterator

from stages.estimate.activations import kernel_layers
from stages.preflight.finding import Finding
from stages.preflight.scene import Scene, error, note


def check_model(scene: Scene) -> Iterator[Finding]:
    """Yield what is wrong with the adapter and the base model."""
    yield from _class(scene)
    yield from _targets(scene)
    yield from _new_tokens(scene)
    yield from _quantised_base(scene)
    yield from _nothing_to_speed_up(scene)


def _class(scene: Scene) -> Iterator[Finding]:
    wanted, shape = scene.run.model_type, scene.shape
    if wanted in (None, "AutoModelForCausalLM") or shape is None or not shape.classes or wanted in shape.classes:
        return
    rule = f"the base model is a {shape.classes[0]}, which is what is loaded"
    yield error("model-class", "model_type", wanted, rule, f"Set model_type: {shape.classes[0]}, or remove it.")


def _targets(scene: Scene) -> Iterator[Finding]:
    run, shape = scene.run, scene.shape
    if run.adapter is None or shape is None or shape.is_rough or not shape.sized:
        return
    names = sorted({linear.name for linear in shape.linears if not linear.expert})
    missing = [target for target in run.lora_target_modules if not shape.matches(target)]
    for target in missing:
        rule = f"this {shape.family} model has no such layer; its linear layers are {', '.join(names)}"
        if any(linear.expert for linear in shape.linears):
            rule += " (experts are one parameter, which an adapter cannot be put on)"
        remedy = "Correct the name, or set lora_target_linear: true."
        yield error("target-matches-nothing", "lora_target_modules", target, rule, remedy)


def _new_tokens(scene: Scene) -> Iterator[Finding]:
    run, shape, tokenizer = scene.run, scene.shape, scene.tokenizer
    if run.adapter is None or run.lora_modules_to_save or shape is None or tokenizer is None or tokenizer.size is None:
        return
    grown = tokenizer.size + len(tokenizer.new_tokens)
    if run.special_tokens.only_pads(tokenizer.new_tokens) and grown == shape.vocabulary + 1:
        return
    if shape.vocabulary and grown > shape.vocabulary:
        new = ", ".join(sorted(tokenizer.new_tokens)[:4]) or "those of tokenizer_config"
        rule = f"the vocabulary grows from {shape.vocabulary:,} to {grown:,} ({new}), and new tokens must be trained"
        remedy = "Set lora_modules_to_save: [embed_tokens, lm_head]."
        yield error("new-tokens-not-trained", "lora_modules_to_save", "[]", rule, remedy)


def _quantised_base(scene: Scene) -> Iterator[Finding]:
    run, shape = scene.run, scene.shape
    if shape is None or not shape.quantised:
        return
    if run.adapter is None:
        rule = f"this model is quantised ({shape.quantised}), and quantised weights cannot be trained"
        remedy = "Set adapter: lora, or name the model that it was made from."
        yield error("quantised-base", "base_model", run.base_model, rule, remedy)
    elif (run.load_in_4bit or run.load_in_8bit) and shape.quantised != "bitsandbytes":
        key = "load_in_4bit" if run.load_in_4bit else "load_in_8bit"
        rule = f"the base model is quantised already ({shape.quantised})"
        yield error("quantised-base", key, True, rule, f"Set {key}: false, or name the model that it was made from.")


def _nothing_to_speed_up(scene: Scene) -> Iterator[Finding]:
    run, shape = scene.run, scene.shape
    if shape is None or shape.is_rough or not shape.sized:
        return
    if run.experts_implementation is not None and not shape.experts:
        rule, value = "this model has no experts", run.experts_implementation
        yield note("nothing-to-speed-up", "experts_implementation", value, rule, "Remove it.")
    reached = kernel_layers(run, shape)
    names = {
        "lora_mlp_kernel": shape.build.gate,
        "lora_qkv_kernel": shape.build.qkv,
        "lora_o_kernel": (shape.build.out,),
    }
    for key, layers in names.items():
        if getattr(run, key) and reached.isdisjoint(layers):
            rule = "no layer is computed by it: it is for LoRA on linear layers, without lora_dropout and DoRA"
            if key == "lora_mlp_kernel":
                rule += ", on gate, up and down alike"
            yield note(
                "nothing-to-speed-up",
                key,
                True,
                rule,
                f"Set lora_dropout: 0 and lora_target_linear: true, or remove {key}.",
            )
