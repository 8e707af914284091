"""Template, tokens and lengths: what would go wrong with the data."""

from __future__ import annotations

from collections.abc import Iterator

from stages.errors import ConfigError
from stages.estimate.shapes import has_learned_positions
from stages.formats import check_format, is_chat
from stages.preflight.finding import Finding
from stages.preflight.scene import Scene, error, note, refused, warning
from stages.templates.choice import choose_template


def check_data(scene: Scene) -> Iterator[Finding]:
    """Yield what is wrong with template, special tokens, evaluation set and lengths."""
    yield from _types(scene)
    yield from _chat_template(scene)
    yield from _tokens(scene)
    yield from _evaluation(scene)
    yield from _positions(scene)


def _types(scene: Scene) -> Iterator[Finding]:
    for number in range(len(scene.run.sources)):
        try:
            check_format(scene.run, number)
        except ConfigError as found:
            yield from (refused("unknown-type", wrong, stage="tokenize") for wrong in found.problems)


def _chat_template(scene: Scene) -> Iterator[Finding]:
    """A missing template: no conversation could be rendered."""
    run, of_tokenizer = scene.run, scene.tokenizer
    for number, dataset in enumerate(run.sources):
        if not is_chat(dataset):
            continue
        try:
            choice = choose_template(run, dataset, run.source_key(number))
        except ConfigError as found:
            yield from (refused("unknown-chat-template", wrong, stage="tokenize") for wrong in found.problems)
            return
        own = None if of_tokenizer is None or not of_tokenizer.chat_template else "its own"
        if of_tokenizer is not None and choice.resolve(own) is None:
            rule = "the tokenizer has no chat template, and none is set: conversations cannot be rendered"
            remedy = "Set chat_template: chatml, or the name of the model's family."
            yield error("missing-chat-template", "chat_template", run.chat_template, rule, remedy, stage="tokenize")
            return


def _tokens(scene: Scene) -> Iterator[Finding]:
    tokenizer, wanted = scene.tokenizer, scene.run.special_tokens
    if tokenizer is None:
        return
    eos, pad = wanted.eos_token or tokenizer.eos_token, wanted.pad_token or tokenizer.pad_token
    if eos is None and tokenizer.says_all:
        rule = "the tokenizer has no end of sequence, so the model would never learn to stop"
        remedy = 'Set special_tokens: {eos_token: "<|im_end|>"}, or the token that ends an answer of this model.'
        yield error("missing-eos-token", "special_tokens.eos_token", None, rule, remedy, stage="tokenize")
    if pad is None and tokenizer.says_all:
        rule = "the tokenizer has no pad token; its end of sequence stands in, and padding is never trained"
        remedy = "Programs that mask by token would not train the end: set special_tokens: {pad_token: <a free token>}."
        yield warning("missing-pad-token", "special_tokens.pad_token", None, rule, remedy, stage="tokenize")
    trained = {eos, *(scene.run.eot_tokens or ())} - {None}
    if pad is not None and pad in trained:
        rule = "this token also ends answers; masks go by position here, so the end is still trained"
        remedy = "Programs that mask by token would lose it: set special_tokens: {pad_token: <a free token>} for them."
        yield note("pad-token-is-trained", "special_tokens.pad_token", pad, rule, remedy, stage="tokenize")


def _evaluation(scene: Scene) -> Iterator[Finding]:
    run = scene.run
    if not run.val_set_size and not run.test_datasets and (run.evals_per_epoch or run.eval_steps):
        key = "evals_per_epoch" if run.evals_per_epoch else "eval_steps"
        rule = "there is no evaluation set, so nothing is evaluated"
        yield warning("no-evaluation-set", key, getattr(run, key), rule, f"Set val_set_size: 0.05, or remove {key}.")


def _positions(scene: Scene) -> Iterator[Finding]:
    shape, length = scene.shape, scene.run.sequence_len
    if shape is None or shape.max_positions is None or length <= shape.max_positions:
        return
    remedy = f"Set sequence_len: {shape.max_positions}, or take a base_model for longer texts."
    if has_learned_positions(shape):
        rule = f"the model has a table of {shape.max_positions:,} positions, and none beyond them"
        yield error("sequence-over-positions", "sequence_len", length, rule, remedy)
    else:
        rule = f"the model was trained on {shape.max_positions:,} positions; what lies beyond them it has never seen"
        yield warning("sequence-over-positions", "sequence_len", length, rule, remedy)
