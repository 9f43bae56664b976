"""Compute the drawings of a page; ``templates/charts.html`` writes them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from retinanet.evaluation.matching import Floats

# Colors of the classes: darker versions of those in retinanet/detection/draw.py, legible on white and on black.
CLASS_COLORS = (
    *("#2f8fd0", "#cf8d00", "#1fa37d", "#a89c10", "#c4689c"),
    *("#de6424", "#6d86e8", "#7cab37", "#8c8c8c", "#e5707d"),
)
TRUE_POSITIVE, FALSE_POSITIVE = "#2a9d8f", "#e76f51"
TEXT = "currentColor"

# Drawings have this size and are scaled to the width of the page.
_WIDTH, _HEIGHT = 430, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 44


@dataclass(frozen=True)
class Line:
    """A curve. It has gaps where ``y`` is NaN.

    Attributes:
        name: its name in the legend.
        x: ``(N,)``.
        y: ``(N,)``.
        color: a CSS color.
        thick: draw it thicker than the others.
        dashes: lengths of dashes and gaps, e.g. ``"6 4"``; empty for a solid line.
        mark: an x at which to draw a dot.
    """

    name: str
    x: Floats
    y: Floats
    color: str
    thick: bool = False
    dashes: str = ""
    mark: float | None = None


@dataclass(frozen=True)
class Text:
    """A text in a drawing."""

    x: str
    y: str
    anchor: str
    content: str


@dataclass(frozen=True)
class Bar:
    """A bar of a drawing; browsers show its title when the pointer is on it."""

    x: str
    y: str
    width: str
    height: str
    color: str
    title: str


@dataclass(frozen=True)
class Curve:
    """A polyline of a drawing."""

    points: str
    color: str
    width: float
    dashes: str
    title: str


@dataclass(frozen=True)
class Dot:
    """A dot of a drawing, or a ring."""

    x: str
    y: str
    color: str
    filled: bool = True


@dataclass(frozen=True)
class LegendEntry:
    """A name with its color, for an area or for a line."""

    name: str
    color: str
    area: bool
    dashes: str = ""


@dataclass(frozen=True)
class Drawing:
    """Everything that ``templates/charts.html`` draws.

    Attributes:
        label: describes the drawing to people who cannot see it.
        caption: text under the drawing.
        grid: lines of the grid, ``x1 y1 x2 y2``.
        texts: labels and numbers of the axes.
        bars: bars.
        curves: curves, over the bars.
        dots: dots and rings, over the curves.
        legend: entries of the legend.
    """

    label: str
    caption: str
    grid: Sequence[tuple[str, str, str, str]]
    texts: Sequence[Text]
    bars: Sequence[Bar] = ()
    curves: Sequence[Curve] = ()
    dots: Sequence[Dot] = ()
    legend: Sequence[LegendEntry] = ()
    width: int = field(default=_WIDTH, init=False)
    height: int = field(default=_HEIGHT, init=False)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, caption: str, label: str) -> Drawing:
    """Draw curves with both axes from 0 to 1; the last curves lie on top."""
    curves, dots = [], []
    for line in lines:
        for xs, ys in _pieces(line.x, line.y):
            points = " ".join(f"{_x(x):.2f},{_y(y, 1):.2f}" for x, y in zip(xs, ys, strict=True))
            curves.append(Curve(points, line.color, 2.6 if line.thick else 1.6, line.dashes, line.name))
        if line.mark is not None:
            y = float(np.interp(line.mark, line.x, line.y))
            if math.isfinite(y):
                dots.append(Dot(f"{_x(line.mark):.2f}", f"{_y(y, 1):.2f}", line.color))
    return Drawing(
        label=label,
        caption=caption,
        grid=list(_grid(1.0)),
        texts=list(_axes(1.0, x_label, y_label)),
        curves=curves,
        dots=dots,
        legend=[LegendEntry(line.name, line.color, False, line.dashes) for line in lines] if len(lines) > 1 else (),
    )


def log_chart(
    lines: Sequence[Line], x_label: str, y_label: str, caption: str, label: str, unit: bool = False
) -> Drawing:
    """Draw curves with their points on logarithmic axes, from a power of ten to another.

    With ``unit``, the y axis is linear, from 0 to 1. Values must be positive on logarithmic axes; zeros are drawn at
    the lower end.
    """
    left, right = _decades(np.concatenate([line.x for line in lines]))
    low, high = (0, 1) if unit else _decades(np.concatenate([line.y for line in lines]))

    def x_of(value: float) -> float:
        return _x((math.log10(value) - left) / (right - left))

    def y_of(value: float) -> float:
        return _y(value if unit else (math.log10(max(value, 10.0**low)) - low) / (high - low), 1)

    x_ticks = [10.0**k for k in range(left, right + 1)]
    y_ticks = [0, 0.2, 0.4, 0.6, 0.8, 1] if unit else [10.0**k for k in range(low, high + 1)]
    grid = [(f"{x_of(v):.1f}", f"{_y(0, 1):g}", f"{x_of(v):.1f}", f"{_y(1, 1):g}") for v in x_ticks]
    grid += [(f"{_LEFT}", f"{y_of(v):.1f}", f"{_WIDTH - _RIGHT}", f"{y_of(v):.1f}") for v in y_ticks]
    texts = [Text(f"{x_of(v):.1f}", f"{_HEIGHT - _BOTTOM + 16}", "middle", f"{v:,g}") for v in x_ticks]
    texts += [Text(f"{_LEFT - 6}", f"{y_of(v) + 4:.1f}", "end", f"{v:,g}") for v in y_ticks]
    texts += _names(x_label, y_label)
    curves: list[Curve] = []
    dots: list[Dot] = []
    for line in lines:
        places = [(f"{x_of(x):.2f}", f"{y_of(y):.2f}") for x, y in zip(line.x, line.y, strict=True)]
        curves.append(Curve(" ".join(map(",".join, places)), line.color, 1.6, line.dashes, line.name))
        dots.extend(Dot(x, y, line.color, filled=not line.dashes) for x, y in places)
    legend = [LegendEntry(line.name, line.color, False, line.dashes) for line in lines]
    return Drawing(label=label, caption=caption, grid=grid, texts=texts, curves=curves, dots=dots, legend=legend)


def stacked_bars(
    edges: Floats, parts: Sequence[tuple[str, Sequence[int], str]], x_label: str, y_label: str, caption: str, label: str
) -> Drawing:
    """Draw counts in the bins between ``edges``, on an axis from 0 to 1. Each part is a name, counts and a color."""
    totals = np.sum([counts for _, counts, _ in parts], axis=0)
    top = _round_up(float(totals.max(initial=0)))
    bars = []
    base = np.zeros(len(totals))
    for name, counts, color in parts:
        for k, count in enumerate(counts):
            if count:
                title = f"{name}: {count} from {edges[k]:.2f} to {edges[k + 1]:.2f}"
                bars.append(_bar((edges[k], edges[k + 1]), (base[k], base[k] + count), top, color, title))
        base = base + np.asarray(counts)
    return Drawing(
        label=label,
        caption=caption,
        grid=list(_grid(top)),
        texts=list(_axes(top, x_label, y_label)),
        bars=bars,
        legend=[LegendEntry(name, color, True) for name, _, color in parts],
    )


def reliability(counts: Sequence[int], scores: Floats, precision: Floats, caption: str, label: str) -> Drawing:
    """Draw the precision of detections against their score, in bins of equal width; the diagonal is ideal."""
    edges = np.linspace(0, 1, len(counts) + 1)
    bars, rings = [], []
    for k, count in enumerate(counts):
        if count:
            title = f"{count} detections with a mean score of {scores[k]:.3f} and a precision of {precision[k]:.3f}"
            bars.append(_bar((edges[k], edges[k + 1]), (0, float(precision[k])), 1, TRUE_POSITIVE, title))
            rings.append(Dot(f"{_x(scores[k]):.2f}", f"{_y(float(precision[k]), 1):.2f}", TEXT, filled=False))
    diagonal = Curve(f"{_x(0):.2f},{_y(0, 1):.2f} {_x(1):.2f},{_y(1, 1):.2f}", TEXT, 1, "5 4", "ideal")
    return Drawing(
        label=label,
        caption=caption,
        grid=list(_grid(1.0)),
        texts=list(_axes(1.0, "score", "precision")),
        bars=bars,
        curves=[diagonal],
        dots=rings,
    )


def _grid(top: float) -> Iterator[tuple[str, str, str, str]]:
    for tick in np.linspace(0, 1, 6):
        yield f"{_x(tick):.1f}", f"{_y(0, 1):g}", f"{_x(tick):.1f}", f"{_y(1, 1):g}"
    for tick in _ticks(top):
        yield f"{_LEFT}", f"{_y(tick, top):.1f}", f"{_WIDTH - _RIGHT}", f"{_y(tick, top):.1f}"


def _axes(top: float, x_label: str, y_label: str) -> Iterator[Text]:
    """Numbers and names of the axes, from 0 to 1 and from 0 to ``top``."""
    for tick in np.linspace(0, 1, 6):
        yield Text(f"{_x(tick):.1f}", f"{_HEIGHT - _BOTTOM + 16}", "middle", f"{tick:.1f}")
    for tick in _ticks(top):
        content = f"{tick:.1f}" if top <= 1 else f"{tick:,.0f}"
        yield Text(f"{_LEFT - 6}", f"{_y(tick, top) + 4:.1f}", "end", content)
    yield from _names(x_label, y_label)


def _names(x_label: str, y_label: str) -> Iterator[Text]:
    """Names of the axes."""
    yield Text(f"{(_LEFT + _WIDTH - _RIGHT) / 2:g}", f"{_HEIGHT - 8}", "middle", x_label)
    yield Text("4", "14", "start", y_label)


def _decades(values: Floats) -> tuple[int, int]:
    """The powers of ten around the positive values, at least one decade apart."""
    positive = values[values > 0]
    if not len(positive):
        return 0, 1
    low, high = math.floor(math.log10(positive.min())), math.ceil(math.log10(positive.max()))
    return low, max(high, low + 1)


def _ticks(top: float) -> list[float]:
    if top <= 1:
        return [0, 0.2, 0.4, 0.6, 0.8, 1]
    parts = 4 if top % 4 == 0 else 5 if top % 5 == 0 else 2
    return [top * k / parts for k in range(parts + 1)]


def _round_up(value: float) -> float:
    """Round up to a number with one significant digit, at least 2."""
    if value <= 2:
        return 2
    scale = 10 ** math.floor(math.log10(value))
    return float(next(step * scale for step in (1, 2, 4, 5, 8, 10) if step * scale >= value))


def _bar(sides: tuple[float, float], ends: tuple[float, float], top: float, color: str, title: str) -> Bar:
    """A bar between two x values and two y values, on a y axis from 0 to ``top``."""
    x, width = _x(sides[0]) + 0.75, _x(sides[1]) - _x(sides[0]) - 1.5
    y = _y(min(ends[1], top), top)
    height = max(0.0, _y(min(ends[0], top), top) - y)
    return Bar(f"{x:.2f}", f"{y:.2f}", f"{width:.2f}", f"{height:.2f}", color, title)


def _pieces(x: Floats, y: Floats) -> Iterator[tuple[Floats, Floats]]:
    """The parts of a curve between its NaN values."""
    known = np.flatnonzero(~np.isnan(y))
    for piece in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if len(piece):
            yield x[piece], y[piece]


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)
