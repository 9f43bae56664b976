"""Boxes and anchors as a picture: their widths and heights, and how many are covered at each size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retinanet.anchors.grid import base_anchors
from retinanet.config import AnchorSpec
from retinanet.files import write_atomically
from retinanet.inspection.anchor_coverage import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEFORE, _AFTER = "#8a8a8a", "#c8553d"

# More points than this hide each other.
_POINTS = 5000


def draw_fit(
    path: Path, size: Floats, overlaps: tuple[Floats, Floats], specs: tuple[AnchorSpec, AnchorSpec], threshold: float
) -> None:
    """Write a PNG.

    Args:
        path: the file.
        size: ``(M, 2)``, width and height of the boxes in pixels of the network's input.
        overlaps: ``(M,)`` each, IoU of each box with its best anchor, before and after.
        specs: the anchors before and after.
        threshold: IoU from which a box is covered.
    """
    from matplotlib.figure import Figure

    size = np.maximum(size, 0.1)  # scaling may leave a sliver no width at all
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    shapes, shares = figure.subplots(1, 2)
    _draw_shapes(shapes, size, overlaps[1] >= threshold, specs)
    _draw_shares(shares, np.sqrt(size.prod(axis=1)), [each >= threshold for each in overlaps])
    shares.set_ylabel(f"share of boxes with an anchor of IoU ≥ {threshold:g}")
    for axes in (shapes, shares):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _draw_shapes(
    axes: Axes, size: Floats, covered: npt.NDArray[np.bool_], specs: tuple[AnchorSpec, AnchorSpec]
) -> None:
    shown = np.random.default_rng(0).permutation(len(size))[:_POINTS]
    size, covered = size[shown], covered[shown]
    point: dict[str, Any] = {"s": 5, "alpha": 0.35, "linewidths": 0}
    axes.scatter(*size[covered].T, color="#1f6f8b", label="boxes, covered by the fitted anchors", **point)
    axes.scatter(*size[~covered].T, color="#e0a100", label="boxes, not covered", **point)
    looks: list[tuple[str, dict[str, Any]]] = [
        ("anchors before", {"marker": "s", "s": 30, "facecolors": "none", "edgecolors": _BEFORE}),
        ("anchors fitted", {"marker": "D", "s": 26, "color": _AFTER, "edgecolors": "white", "linewidths": 0.6}),
    ]
    for spec, (label, look) in zip(specs, looks, strict=True):
        base = np.concatenate([base_anchors(spec, level).numpy() for level in range(len(spec.sizes))])
        axes.scatter(*(base[:, 2:] - base[:, :2]).T, label=label, zorder=3, **look)
    axes.set(xscale="log", yscale="log", xlabel="width in pixels of the network's input", ylabel="height")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(frameon=False, fontsize=8, loc="upper left", markerscale=1.2)


def _draw_shares(axes: Axes, side: Floats, covered: list[npt.NDArray[np.bool_]]) -> None:
    edges = 2 ** np.arange(np.floor(np.log2(side.min())), np.ceil(np.log2(side.max() * 1.001)) + 0.1, 0.5)
    middle = edges[:-1] * 2**0.25
    which = np.digitize(side, edges) - 1
    count = np.bincount(which, minlength=len(middle))
    bars: dict[str, Any] = {"width": np.diff(edges), "align": "edge", "color": "#1f6f8b", "alpha": 0.12}
    axes.bar(edges[:-1], count / count.max(), label="number of boxes", **bars)
    some = count > 0
    for values, label, color in zip(covered, ("before", "fitted"), (_BEFORE, _AFTER), strict=True):
        share = np.bincount(which, weights=values, minlength=len(middle))[some] / count[some]
        axes.plot(middle[some], share, marker="o", markersize=4, label=label, color=color)
    axes.set(xscale="log", ylim=(0, 1.03), xlabel="size of the boxes, √(width × height), in pixels")
    axes.set_xticks([2.0**i for i in range(int(np.log2(edges[0])), int(np.log2(edges[-1])) + 1)])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, loc="lower right")
