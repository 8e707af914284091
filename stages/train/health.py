"""Is this training healthy? Four things that are watched, each judged from the records of all steps so far.

    row             healthy                                       what else it may show
    train_loss      falls, from no more than a guess costs        flat, rising, zero too soon, spikes
    eval_loss       falls with train_loss                         rises while train_loss falls: memorising
    grad_norm       0.1 to 10, steady                             0: frozen weights; over 100: unstable
    learning_rate   follows its schedule                          flat, never at its peak, not a number

Nothing here knows files, torch or the trainer: records go in, rows come out, the same for the same records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median, pstdev
from typing import Any, Literal

Status = Literal["healthy", "watch", "sick", "unknown"]
"""`watch`: unusual, look at it; `sick`: this training does not do what it should; `unknown`: too little to tell."""

SEVERITY: tuple[Status, ...] = ("healthy", "unknown", "watch", "sick")

TELLING, SLIGHT = 0.05, 0.005
"""A change of the loss by the first share is one, by less than the second none; between them, if over the noise."""
ENOUGH_STEPS = 20
"""Steps after the warm-up from which on a loss that does not fall is an illness."""
EDGE = 0.1
"""Share of the steps at either end, at most 50 steps, whose mean is compared."""
MEMORISED = 0.02
"""A loss this low says that every trained token is known by heart."""
LEARNED_SHARE = 0.5
"""Loss below MEMORISED before this share of the training is too soon."""
SPIKE_FACTOR, SPIKE_WINDOW = 3.0, 20
"""A spike is this many times the median of so many steps before it."""
USUAL_NORM = (0.1, 10.0)
UNSTABLE_NORM = 100.0
FLAT_SCHEDULES = ("constant", "constant_with_warmup")
FALLING_SCHEDULES = ("linear", "cosine")


@dataclass(frozen=True)
class Setting:
    """What a judgement needs to know of a training.

    Attributes:
        steps: steps of the whole training.
        warmup_steps: steps in which the learning rate rises.
        learning_rate: the peak that was asked for.
        lr_scheduler: name of the schedule.
        vocabulary: tokens of the vocabulary: guessing among them costs its logarithm.
    """

    steps: int
    warmup_steps: int
    learning_rate: float
    lr_scheduler: str
    vocabulary: int


@dataclass(frozen=True)
class Finding:
    """The state of one row, with its evidence.

    Attributes:
        row: `train_loss`, `eval_loss`, `grad_norm` or `learning_rate`.
        status: how it is.
        sign: a short name of what was seen, such as `flat`.
        step: where it shows best; None if nowhere in particular.
        value: what was found there; None if there is nothing or it is not a finite number.
        expected: the healthy range, in words.
        text: what was found, a sentence.
        remedy: what to do; empty when there is nothing to do.
    """

    row: str
    status: Status
    sign: str
    step: int | None
    value: float | None
    expected: str
    text: str
    remedy: str = ""


Record = Mapping[str, Any]
Points = Sequence[tuple[int, float]]


def judge(records: Iterable[Record], setting: Setting) -> list[Finding]:
    """Return the state of every row, from the records of steps and evaluations in order."""
    records = list(records)
    loss, held_out = _points(records, "loss"), _points(records, "eval_loss")
    return [
        _train_loss(loss, setting),
        _eval_loss(held_out, loss),
        _grad_norm(_points(records, "grad_norm")),
        _learning_rate(_points(records, "learning_rate"), setting),
    ]


def worst(findings: Iterable[Finding]) -> Status:
    """Return the most severe status."""
    return max((finding.status for finding in findings), key=SEVERITY.index, default="unknown")


def as_record(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return findings as JSON-ready data: the overall status and the rows."""
    return {"status": worst(findings), "rows": [asdict(finding) for finding in findings]}


def _train_loss(points: Points, setting: Setting) -> Finding:
    expected = "falls; a chat model starts at about 2 to 4"
    broken = _first_broken(points)
    if broken is not None:
        return _not_finite("train_loss", broken, expected)
    if not points:
        return Finding("train_loss", "unknown", "none", None, None, expected, "No step was recorded.")
    start_step, start = points[0]
    guess = math.log(max(setting.vocabulary, 2))
    if start > guess + 1:
        return Finding(
            "train_loss", "sick", "worse_than_guessing", start_step, start, f"at most {guess:.1f}, a guess",
            f"The loss starts at {start:.3g}, where guessing among {setting.vocabulary:,} tokens costs {guess:.1f}: "
            "the model is sure of something else than the labels.",
            "Look at the label mask with `sft inspect`; compare the chat template and the tokenizer with the model's.",
        )  # fmt: skip
    return _course(points, setting, expected) or _spike(points, expected) or _fall(points, expected)


def _course(points: Points, setting: Setting, expected: str) -> Finding | None:
    """Return what is wrong with where the loss goes, if anything is."""
    first, last, step = _ends(points)
    early = _first_memorised(points)
    if early is not None and early <= LEARNED_SHARE * setting.steps:
        return Finding(
            "train_loss", "sick", "memorised", early, dict(points)[early], f"above {MEMORISED} until half of the steps",
            f"The loss is practically 0 from step {early} of {setting.steps} on: the rows are known by heart.",
            "Train fewer epochs, lower learning_rate, or add rows; look for rows that occur many times.",
        )  # fmt: skip
    judged = len(points) - min(setting.warmup_steps, setting.steps)
    certain: Status = "sick" if judged >= ENOUGH_STEPS else "watch"
    if len(points) < 2 or judged < 2:
        text = "There are too few steps to tell whether the loss falls."
        return Finding("train_loss", "unknown", "short", step, points[-1][1], expected, text)
    if last > (1 + TELLING) * first:
        return Finding(
            "train_loss", certain, "rising", step, last, expected,
            f"The loss rises: {first:.4g} at the start, {last:.4g} at step {step}.",
            f"Lower learning_rate (now {setting.learning_rate:g}), to a tenth for a start, and lengthen warmup_steps.",
        )  # fmt: skip
    above = [point for point in points if point[1] > max(1.5 * first, first + 0.5)]
    if len(above) > 2:
        step, highest = max(above, key=lambda point: point[1])
        return Finding(
            "train_loss", "sick", "climbed", step, highest, expected,
            f"The loss climbed from {first:.4g} to {highest:.4g} at step {step} before it fell to {last:.4g}: what the "
            "model knew was destroyed first.",
            f"Lower learning_rate (now {setting.learning_rate:g}), to a tenth for a start, and lengthen warmup_steps.",
        )  # fmt: skip
    if first - last < _telling_fall(points, first):
        return Finding(
            "train_loss", certain, "flat", step, last, expected,
            f"The loss does not fall: {first:.4g} at the start, {last:.4g} at step {step}.",
            f"Raise learning_rate (now {setting.learning_rate:g}); check that the right tokens are trained "
            "(`sft inspect`, train_on_inputs) and that there is something in the rows to learn.",
        )  # fmt: skip
    return None


def _spike(points: Points, expected: str) -> Finding | None:
    spike = _largest_spike(points)
    if spike is None:
        return None
    step, value, usual = spike
    return Finding(
        "train_loss", "watch", "spike", step, value, expected,
        f"The loss jumps to {value:.4g} at step {step}, from {usual:.4g} in the steps before.",
        "Look at the rows of that step; lower learning_rate or max_grad_norm if it happens again.",
    )  # fmt: skip


def _fall(points: Points, expected: str) -> Finding:
    first, last, step = _ends(points)
    return Finding(
        "train_loss", "healthy", "falls", step, last, expected, f"The loss fell from {first:.4g} to {last:.4g}."
    )


def _eval_loss(points: Points, train: Points) -> Finding:
    expected = "falls with train_loss"
    broken = _first_broken(points)
    if broken is not None:
        return _not_finite("eval_loss", broken, expected)
    if not points:
        text = "Nothing was held out, so nothing is known about rows that were not trained."
        return Finding("eval_loss", "unknown", "none", None, None, expected, text, "Set val_set_size: 0.05.")
    (best_step, best), (step, last) = min(points, key=lambda point: point[1]), points[-1]
    trained = [value for at, value in train if math.isfinite(value)]
    if last > (1 + TELLING) * best and _falls_after(train, best_step):
        return Finding(
            "eval_loss", "sick", "overfitting", best_step, last, f"at most {(1 + TELLING) * best:.4g}",
            f"The loss on held-out rows was lowest at step {best_step} ({best:.4g}) and is {last:.4g} at step {step}, "
            "while the training loss fell on: the model memorises.",
            "Train fewer epochs, lower learning_rate or lora_r, add weight_decay, or add rows.",
        )  # fmt: skip
    recent = fmean(trained[-max(1, min(50, len(trained) // 10)) :]) if trained else last
    if last > 2 * recent and last > recent + 0.5:
        return Finding(
            "eval_loss", "watch", "apart", step, last, f"near the training loss of {recent:.4g}",
            f"The loss on held-out rows is {last:.4g} where the training loss is {recent:.4g}: little of what is "
            "learned holds for other rows.",
            "Evaluate more often (evals_per_epoch: 2) to see when they part; train fewer epochs or add rows.",
        )  # fmt: skip
    return Finding("eval_loss", "healthy", "follows", step, last, expected, f"The loss on held-out rows is {last:.4g}.")


def _grad_norm(points: Points) -> Finding:
    low, high = USUAL_NORM
    expected = f"{low:g} to {high:g}, steady"
    if not points:
        return Finding("grad_norm", "unknown", "none", None, None, expected, "It was not recorded.")
    broken = _first_broken(points)
    if broken is not None:
        return _not_finite("grad_norm", broken, expected)
    values = [value for _, value in points]
    if not any(values):
        return Finding(
            "grad_norm", "sick", "frozen", points[0][0], 0.0, expected,
            "The gradient is 0 at every step: no weight is trained.",
            "Check what is trained: lora_target_modules, unfrozen_parameters, and that rows have trained tokens.",
        )  # fmt: skip
    over = [(step, value) for step, value in points if value > UNSTABLE_NORM]
    usual = median(values)
    if over:
        step, value = max(over, key=lambda point: point[1])
        often = len(over) > max(3, len(points) // 20) or usual > UNSTABLE_NORM
        return Finding(
            "grad_norm", "sick" if often else "watch", "unstable", step, value, expected,
            f"The gradient norm is over {UNSTABLE_NORM:g} at {len(over)} of {len(points)} steps, {value:.4g} at step "
            f"{step}.",
            "Lower learning_rate, lengthen warmup_steps, keep max_grad_norm: 1.0; look at the rows of that step.",
        )  # fmt: skip
    if not low <= usual <= high:
        step, value = points[-1]
        return Finding(
            "grad_norm", "watch", "unusual", step, usual, expected,
            f"The gradient norm is {usual:.3g} in the middle of all steps.",
            "That alone is no illness: compare it with a run that went well.",
        )  # fmt: skip
    text = f"The gradient norm is {usual:.3g} in the middle of all steps, {max(values):.3g} at most."
    return Finding("grad_norm", "healthy", "steady", points[-1][0], usual, expected, text)


def _learning_rate(points: Points, setting: Setting) -> Finding:
    expected = f"{setting.lr_scheduler}, {setting.warmup_steps} steps of warm-up to {setting.learning_rate:g}"
    broken = _first_broken(points)
    if broken is not None:
        return _not_finite("learning_rate", broken, expected)
    if not points:
        return Finding("learning_rate", "unknown", "none", None, None, expected, "It was not recorded.")
    step, last = points[-1]
    peak = max(value for _, value in points)
    if setting.warmup_steps >= setting.steps > 1:
        return Finding(
            "learning_rate", "sick", "never_at_peak", step, peak, expected,
            f"The warm-up of {setting.warmup_steps} steps is longer than the training of {setting.steps}: the learning "
            f"rate never reaches {setting.learning_rate:g}.",
            "Lower warmup_steps, or train more steps.",
        )  # fmt: skip
    after = [(at, value) for at, value in points if at > setting.warmup_steps + 1]
    if after and peak < 0.5 * setting.learning_rate:
        return _off_schedule("low", step, peak, expected, f"It was never over {peak:.3g}.")
    flat = len(after) >= 5 and len({value for _, value in after}) == 1
    if flat and setting.lr_scheduler in FALLING_SCHEDULES:
        return _off_schedule("flat", step, last, expected, f"It stays at {last:.3g}.")
    risen = next(((b[0], b[1]) for a, b in pairwise(after) if b[1] > a[1] * (1 + 1e-9)), None)
    if risen and setting.lr_scheduler in FALLING_SCHEDULES:
        return _off_schedule("rises", risen[0], risen[1], expected, f"It rises again at step {risen[0]}.")
    if flat and setting.lr_scheduler in FLAT_SCHEDULES:
        text = f"The learning rate stays at {last:.3g}, as lr_scheduler: {setting.lr_scheduler} asks for."
        return Finding("learning_rate", "healthy", "constant", step, last, expected, text)
    text = f"The learning rate follows its schedule; {peak:.3g} at most, {last:.3g} at step {step}."
    return Finding("learning_rate", "healthy", "follows", step, last, expected, text)


def _off_schedule(sign: str, step: int, value: float, expected: str, text: str) -> Finding:
    remedy = "Check lr_scheduler, lr_scheduler_kwargs and warmup_steps."
    return Finding(
        "learning_rate", "sick", sign, step, value, expected, f"The schedule is not followed: {text}", remedy
    )


def _not_finite(row: str, step: int, expected: str) -> Finding:
    return Finding(
        row, "sick", "not_finite", step, None, expected,
        f"It is not a finite number at step {step}: the weights are lost from there on.",
        "Lower learning_rate, lengthen warmup_steps, set bf16: auto, and look for rows without content.",
    )  # fmt: skip


def _points(records: Sequence[Record], name: str) -> list[tuple[int, float]]:
    """Return (step, value) of the records that have a value, a missing number being NaN."""
    found = ((int(record["step"]), record[name]) for record in records if name in record)
    return [(step, float(value)) for step, value in found if value is not None]


def _first_broken(points: Points) -> int | None:
    return next((step for step, value in points if not math.isfinite(value)), None)


def _ends(points: Points) -> tuple[float, float, int]:
    """Return the mean loss of the first and of the last steps, and the last step."""
    edge = max(1, min(50, int(len(points) * EDGE)))
    values = [value for _, value in points]
    return fmean(values[:edge]), fmean(values[-edge:]), points[-1][0]


def _telling_fall(points: Points, first: float) -> float:
    """Return by how much the loss must fall between the ends to be a fall, given how it jumps from step to step."""
    jumps = [after[1] - before[1] for before, after in pairwise(points)]
    noise = pstdev(jumps) / math.sqrt(2)
    edge = max(1, min(50, int(len(points) * EDGE)))
    return min(TELLING * first, max(SLIGHT * first, 3 * noise * math.sqrt(2 / edge)))


def _first_memorised(points: Points) -> int | None:
    """Return the step from which on five steps in a row have practically no loss."""
    for begin in range(len(points) - 4):
        if all(value < MEMORISED for _, value in points[begin : begin + 5]):
            return points[begin][0]
    return None


def _largest_spike(points: Points) -> tuple[int, float, float] | None:
    """Return (step, value, median before) of the largest spike of the loss after its first steps."""
    found = []
    for place in range(SPIKE_WINDOW // 2, len(points)):
        before = median(value for _, value in points[max(0, place - SPIKE_WINDOW) : place])
        step, value = points[place]
        if value > SPIKE_FACTOR * before and value > before + 0.5:
            found.append((step, value, before))
    return max(found, key=lambda spike: spike[1] - spike[2], default=None)


def _falls_after(points: Points, step: int) -> bool:
    """Return whether the training loss is lower at its end than around a step."""
    around = [value for at, value in points if abs(at - step) <= max(2, step // 10)]
    return bool(points) and bool(around) and _ends(points)[1] < fmean(around)
