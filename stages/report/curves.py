"""Curves as SVG geometry: nice ticks, lines that break where a value is not a number, spikes that survive thinning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 30  # margins around the plot, in SVG units
MOST_POINTS = 600  # of a line: about one per SVG unit


@dataclass(frozen=True)
class Series:
    """A named line: (step, value) in order of steps; `dots` marks each point, for values that are few."""

    name: str
    points: Sequence[Point]
    dots: bool = False


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in SVG units, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A drawn series: an SVG path, its dots as (x, y, text), and its last finite value as text."""

    name: str
    path: str
    dots: tuple[tuple[float, float, str], ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """Everything that a template needs to draw one chart; `broken` are the places of values that are no numbers."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    broken: tuple[float, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(title: str, series: Sequence[Series]) -> Chart | None:
    """Return a chart of the series that have a finite value; None if there is none."""
    shown = [line for line in series if any(math.isfinite(y) for _, y in line.points)]
    if not shown:
        return None
    steps = [x for line in shown for x, _ in line.points]
    values = [y for line in shown for _, y in line.points if math.isfinite(y)]
    x_low, x_high = min(steps), max(steps)
    y_marks = nice_ticks(0.0 if 0 <= min(values) < 0.5 * max(values) else min(values), max(values), 4)
    x_marks = [mark for mark in nice_ticks(x_low, x_high, 6) if x_low <= mark <= x_high and mark == int(mark)]
    x_axis, y_axis = _Axis(x_low, x_high, LEFT, WIDTH - RIGHT), _Axis(y_marks[0], y_marks[-1], HEIGHT - BOTTOM, TOP)
    return Chart(
        title,
        tuple(_line(line, x_axis, y_axis) for line in shown),
        tuple(Tick(x_axis(mark), number(mark)) for mark in x_marks),
        tuple(Tick(y_axis(mark), number(mark)) for mark in y_marks),
        tuple(x_axis(x) for line in shown for x, y in line.points if not math.isfinite(y)),
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def _line(series: Series, x_axis: _Axis, y_axis: _Axis) -> Line:
    parts, pen_down = [], False
    for x, y in thin(series.points, MOST_POINTS):
        if math.isfinite(y):
            parts.append(f"{'L' if pen_down else 'M'}{x_axis(x):g} {y_axis(y):g}")
        pen_down = math.isfinite(y)
    finite = [(x, y) for x, y in series.points if math.isfinite(y)]
    marked = finite if series.dots or len(finite) == 1 else []
    dots = tuple((x_axis(x), y_axis(y), f"step {number(x)}: {number(y)}") for x, y in marked)
    return Line(series.name, " ".join(parts), dots, number(finite[-1][1]))


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most about `most` points: of each bucket the lowest, the highest, and any that is not a number.

    >>> thin([(1, 5.0), (2, 9.0), (3, 1.0), (4, 2.0)], 2)
    [(2, 9.0), (3, 1.0)]
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        finite = [point for point in bucket if math.isfinite(point[1])]
        extremes = {min(finite, key=_value), max(finite, key=_value)} if finite else set()
        kept += sorted(
            extremes | {point for point in bucket if not math.isfinite(point[1])}, key=lambda point: point[0]
        )
    return kept


def _value(point: Point) -> float:
    return point[1]


def nice_ticks(low: float, high: float, intervals: int) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high].

    >>> nice_ticks(0.13, 4.6, 4)
    [0.0, 2.0, 4.0, 6.0]
    """
    span = high - low or abs(high) or 1.0
    raw = span / intervals
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{mark * step:.10g}") for mark in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Return a number for people: 4 digits, thousands apart, powers of ten where it is tiny.

    >>> [number(value) for value in (0.00002, 0.5, 12345.6, 3)]
    ['2e-5', '0.5', '12,346', '3']
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"
