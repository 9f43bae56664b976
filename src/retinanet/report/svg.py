"""Drawings of a report as inline SVG: they follow the page's light or dark colours and need no script."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retinanet.evaluation.matching import Floats

# Of classes, in every plot the same: those of retinanet/detect/draw.py, darker, to be legible on white and on black.
CLASS_COLORS = (
    *("#2f8fd0", "#cf8d00", "#1fa37d", "#a89c10", "#c4689c"),
    *("#de6424", "#6d86e8", "#7cab37", "#8c8c8c", "#e5707d"),
)
RIGHT, WRONG = "#2a9d8f", "#e76f51"
TEXT = "currentColor"

# Drawn at this size and scaled to the width there is.
_WIDTH, _HEIGHT = 430, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 44


@dataclass(frozen=True)
class Line:
    """A curve; where ``y`` is NaN it is interrupted.

    Attributes:
        name: in the legend.
        x: ``(N,)``.
        y: ``(N,)``.
        color: a CSS colour.
        thick: draw it thicker than the others.
        dashes: lengths of dashes and gaps, e.g. ``"6 4"``; empty for a solid line.
        mark: a position on x to mark.
    """

    name: str
    x: Floats
    y: Floats
    color: str
    thick: bool = False
    dashes: str = ""
    mark: float | None = None


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, caption: str, told: str) -> str:
    """Curves in the unit square.

    Args:
        lines: the last ones lie on top.
        x_label: of the axis from 0 to 1.
        y_label: of the axis from 0 to 1.
        caption: plain text under the drawing.
        told: what the drawing shows, for people who do not see it.
    """
    body = [*_frame(1.0, x_label, y_label)]
    for line in lines:
        width = 2.6 if line.thick else 1.6
        style = f'fill="none" stroke="{line.color}" stroke-width="{width}" stroke-linejoin="round"'
        style += f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
        for xs, ys in _pieces(line.x, line.y):
            points = " ".join(f"{_x(x):.2f},{_y(y, 1):.2f}" for x, y in zip(xs, ys, strict=True))
            body.append(f'<polyline points="{points}" {style}><title>{html.escape(line.name)}</title></polyline>')
        if line.mark is not None:
            y = float(np.interp(line.mark, line.x, line.y))
            if math.isfinite(y):
                body.append(f'<circle cx="{_x(line.mark):.2f}" cy="{_y(y, 1):.2f}" r="4" fill="{line.color}"/>')
    legend = _legend([(line.name, line.color, line.dashes) for line in lines]) if len(lines) > 1 else ""
    return _figure("".join(body), told, caption, legend)


def stacked_bars(
    edges: Floats, parts: Sequence[tuple[str, Sequence[int], str]], x_label: str, y_label: str, caption: str, told: str
) -> str:
    """Counts in bins between ``edges`` (N + 1) of an axis from 0 to 1; ``parts`` are name, N counts and colour."""
    totals = np.sum([counts for _, counts, _ in parts], axis=0)
    top = _round_up(float(totals.max(initial=0)))
    body = [*_frame(top, x_label, y_label)]
    base = np.zeros(len(totals))
    for name, counts, color in parts:
        for k, count in enumerate(counts):
            if count:
                said = f"{name}: {count} from {edges[k]:.2f} to {edges[k + 1]:.2f}"
                body.append(_bar(edges[k], edges[k + 1], base[k], base[k] + count, top, color, said))
        base = base + np.asarray(counts)
    return _figure("".join(body), told, caption, _legend([(name, color, None) for name, _, color in parts]))


def reliability(counts: Sequence[int], scores: Floats, right: Floats, caption: str, told: str) -> str:
    """The share of detections that are right against their score, in equally wide bins; on the diagonal is ideal."""
    body = [*_frame(1.0, "score", "share of detections that are right")]
    edges = np.linspace(0, 1, len(counts) + 1)
    for k, count in enumerate(counts):
        if count:
            said = f"{count} detections with a mean score of {scores[k]:.3f}, {right[k]:.3f} of them right"
            body.append(_bar(edges[k], edges[k + 1], 0, float(right[k]), 1, RIGHT, said))
    body.append(
        f'<line x1="{_x(0)}" y1="{_y(0, 1)}" x2="{_x(1)}" y2="{_y(1, 1)}" stroke="{TEXT}" stroke-dasharray="5 4"/>'
    )
    for k, count in enumerate(counts):
        if count:
            ring = f'fill="none" stroke="{TEXT}" stroke-width="1.5"'
            body.append(f'<circle cx="{_x(scores[k]):.2f}" cy="{_y(float(right[k]), 1):.2f}" r="3.5" {ring}/>')
    return _figure("".join(body), told, caption, "")


def interval_bar(value: float, interval: tuple[float, float] | None) -> str:
    """A small bar from 0 to ``value`` on a scale to 1, with its interval as a line."""
    whisker = ""
    if interval is not None:
        low, high = (100 * bound for bound in interval)
        whisker = f'<rect x="{low:.1f}" y="5" width="{max(1, high - low):.1f}" height="2" fill="{TEXT}"/>'
    return (
        '<svg class="interval" viewBox="0 0 100 12" aria-hidden="true">'
        f'<rect width="100" height="12" fill="#8883"/><rect width="{100 * value:.1f}" height="12" fill="{RIGHT}"/>'
        f"{whisker}</svg>"
    )


def _frame(top: float, x_label: str, y_label: str) -> Iterator[str]:
    """Axes from 0 to 1 and from 0 to ``top``, with a grid."""
    for tick in np.linspace(0, 1, 6):
        x = _x(tick)
        yield f'<line class="grid" x1="{x:.1f}" y1="{_y(0, 1)}" x2="{x:.1f}" y2="{_y(1, 1)}"/>'
        yield f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:.1f}</text>'
    for tick in _ticks(top):
        y = _y(tick, top)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        label = f"{tick:.1f}" if top <= 1 else f"{tick:,.0f}"
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
    yield f'<text x="4" y="14">{html.escape(y_label)}</text>'


def _ticks(top: float) -> list[float]:
    if top <= 1:
        return [0, 0.2, 0.4, 0.6, 0.8, 1]
    parts = 4 if top % 4 == 0 else 5 if top % 5 == 0 else 2
    return [top * k / parts for k in range(parts + 1)]


def _round_up(value: float) -> float:
    """A round number at least as large as ``value``, at least 2: counts have axes from 0."""
    if value <= 2:
        return 2
    scale = 10 ** math.floor(math.log10(value))
    return float(next(step * scale for step in (1, 2, 4, 5, 8, 10) if step * scale >= value))


def _bar(left: float, right: float, low: float, high: float, top: float, color: str, said: str) -> str:
    x, width = _x(left) + 0.75, _x(right) - _x(left) - 1.5
    y = _y(min(high, top), top)
    height = max(0.0, _y(min(low, top), top) - y)
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{color}">'
        f"<title>{html.escape(said)}</title></rect>"
    )


def _pieces(x: Floats, y: Floats) -> Iterator[tuple[Floats, Floats]]:
    """The parts between NaNs."""
    known = np.flatnonzero(~np.isnan(y))
    for piece in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if len(piece):
            yield x[piece], y[piece]


def _legend(entries: Sequence[tuple[str, str, str | None]]) -> str:
    """Names with colours, and dashes: ``None`` for an area."""
    keys = []
    for name, color, dashes in entries:
        if dashes is None:
            mark = f'<rect width="12" height="12" rx="3" fill="{color}"/>'
        else:
            mark = f'<line x2="24" y1="6" y2="6" stroke="{color}" stroke-width="2.4" stroke-dasharray="{dashes}"/>'
        size = f'width="{12 if dashes is None else 24}" height="12"'
        keys.append(f'<span><svg {size} aria-hidden="true">{mark}</svg> {html.escape(name)}</span>')
    return f'<div class="legend">{"".join(keys)}</div>'


def _figure(body: str, told: str, caption: str, legend: str) -> str:
    label = html.escape(told, quote=True)
    return (
        f'<figure><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
        f"{legend}<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)
