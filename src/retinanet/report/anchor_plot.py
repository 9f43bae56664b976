"""Plots of boxes and anchors: their widths and heights, and how many boxes the anchors reach at each size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retinanet.anchors.grid import base_anchors
from retinanet.config import AnchorSpec
from retinanet.files import write_atomically
from retinanet.inspection.survey import REACHED, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

# Colors of boxes that an anchor reaches, of other boxes, and of anchors.
_REACHED, UNREACHED, _ANCHORS = "#1f6f8b", "#e0a100", "#c8553d"
_BEFORE = "#8a8a8a"

# Largest number of points in a plot. More points would hide each other.
_POINTS = 5000

# Images with more boxes than this are left out of the histogram.
_MOST_BOXES = 100


def draw_fit(
    path: Path, size: Floats, overlaps: tuple[Floats, Floats], specs: tuple[AnchorSpec, AnchorSpec], threshold: float
) -> None:
    """Write a PNG that compares the anchors before and after fitting.

    Args:
        path: the file to write.
        size: ``(M, 2)``, width and height of the boxes in pixels of the network's input.
        overlaps: ``(M,)`` each, the IoU of each box with its best anchor, before and after.
        specs: the anchors before and after.
        threshold: a box is covered if its IoU with an anchor is at least this.
    """
    from matplotlib.figure import Figure

    size = np.maximum(size, 0.1)  # scaling may reduce the width of a thin box to 0
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    shapes, shares = figure.subplots(1, 2)
    covered = overlaps[1] >= threshold
    _scatter_boxes(shapes, size, covered, ("boxes covered by the fitted anchors", "boxes not covered"), 5)
    looks: list[tuple[str, dict[str, Any]]] = [
        ("anchors before", {"marker": "s", "s": 30, "facecolors": "none", "edgecolors": _BEFORE}),
        ("anchors fitted", {"marker": "D", "s": 26, "color": _ANCHORS, "edgecolors": "white", "linewidths": 0.6}),
    ]
    for spec, (label, look) in zip(specs, looks, strict=True):
        shapes.scatter(*_anchor_sizes(spec).T, label=label, zorder=3, **look)
    shapes.set_aspect("equal", adjustable="datalim")
    shapes.legend(frameon=False, fontsize=8, loc="upper left", markerscale=1.2)
    _draw_shares(shares, np.sqrt(size.prod(axis=1)), [each >= threshold for each in overlaps])
    shares.set_ylabel(f"fraction of boxes with an anchor of IoU ≥ {threshold:g}")
    _tidy(shapes, shares)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def plot_boxes(survey: Survey, anchors: AnchorSpec) -> Figure:
    """Plot the boxes of a split against the anchors: sizes, aspect ratios and the number of boxes per image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    (shapes, sides), (ratios, counts) = figure.subplots(2, 2)
    size, reached = survey.size[survey.objects], survey.overlaps[survey.objects] >= REACHED
    anchor_sizes = _anchor_sizes(anchors)
    _scatter_boxes(shapes, size, reached, ("boxes reached by an anchor", "boxes not reached"), 6)
    look: dict[str, Any] = {"marker": "D", "s": 24, "edgecolors": "white", "linewidths": 0.6}
    shapes.scatter(*anchor_sizes.T, color=_ANCHORS, label="anchors", **look)
    shapes.legend(frameon=False, fontsize=8)
    _histogram(sides, np.sqrt(size.prod(axis=1)), np.sqrt(anchor_sizes.prod(axis=1)), reached)
    sides.set(xlabel="box size √(width × height) in pixels; red lines: anchors", ylabel="boxes")
    _histogram(ratios, size[:, 1] / size[:, 0], np.array(anchors.ratios), reached)
    ratios.set(xlabel="aspect ratio, height / width; red lines: anchors", ylabel="boxes")
    per_image = survey.per_image
    counts.hist(per_image, bins=np.arange(0, min(int(per_image.max()), _MOST_BOXES) + 2) - 0.5, color=_REACHED)
    counts.set(xlabel="boxes per image", ylabel="images")
    _tidy(shapes, sides, ratios, counts)
    return figure


def _anchor_sizes(spec: AnchorSpec) -> npt.NDArray[np.float64]:
    """Width and height of each anchor shape on each level."""
    bases = [base_anchors(spec, level).numpy() for level in range(len(spec.sizes))]
    return np.concatenate([base[:, 2:] - base[:, :2] for base in bases]).astype(np.float64)


def _scatter_boxes(axes: Axes, size: Floats, reached: Bools, labels: tuple[str, str], point: int) -> None:
    """Plot width against height of the boxes; those of ``reached`` have the first label."""
    shown = np.random.default_rng(0).permutation(len(size))[:_POINTS]
    look: dict[str, Any] = {"s": point, "alpha": 0.4, "linewidths": 0}
    for mask, color, label in ((reached, _REACHED, labels[0]), (~reached, UNREACHED, labels[1])):
        axes.scatter(*size[shown][mask[shown]].T, color=color, label=label, **look)
    axes.set(xscale="log", yscale="log", xlabel="width in pixels of the network's input", ylabel="height")


def _draw_shares(axes: Axes, side: Floats, covered: list[Bools]) -> None:
    """Plot the fraction of covered boxes against the box size, before and after."""
    edges = 2 ** np.arange(np.floor(np.log2(side.min())), np.ceil(np.log2(side.max() * 1.001)) + 0.1, 0.5)
    middle = edges[:-1] * 2**0.25
    which = np.digitize(side, edges) - 1
    count = np.bincount(which, minlength=len(middle))
    bars: dict[str, Any] = {"width": np.diff(edges), "align": "edge", "color": _REACHED, "alpha": 0.12}
    axes.bar(edges[:-1], count / count.max(), label="number of boxes", **bars)
    some = count > 0
    for values, label, color in zip(covered, ("before", "fitted"), (_BEFORE, _ANCHORS), strict=True):
        share = np.bincount(which, weights=values, minlength=len(middle))[some] / count[some]
        axes.plot(middle[some], share, marker="o", markersize=4, label=label, color=color)
    axes.set(xscale="log", ylim=(0, 1.03), xlabel="box size √(width × height) in pixels")
    axes.set_xticks([2.0**i for i in range(int(np.log2(edges[0])), int(np.log2(edges[-1])) + 1)])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _histogram(axes: Axes, values: Floats, anchors: npt.NDArray[np.float64], reached: Bools) -> None:
    """Draw a histogram of a measure of the boxes. Reached boxes are at the bottom of each bar; anchors are lines."""
    low, high = np.log2(max(float(values.min()), 1e-3)), np.log2(float(values.max()))
    bins = (2 ** np.linspace(low - 0.05, high + 0.05, 40)).tolist()
    parts = [values[reached], values[~reached]]
    axes.hist(parts, bins=bins, stacked=True, color=[_REACHED, UNREACHED], label=["reached", "not reached"])
    for anchor in np.unique(anchors.round(3)):
        axes.axvline(anchor, color=_ANCHORS, linewidth=0.8, alpha=0.7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8)


def _tidy(*plots: Axes) -> None:
    for axes in plots:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
