"""Find the anchors that can overlap a box enough, from the structure of the grid.

Comparing all anchors with all boxes would need A × G overlaps: 60 million for 500 boxes in an 800×800 image, nearly all
of them 0. But the anchors of one shape lie on a grid, and the anchors that share enough area with a box lie in a small
window of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.grid import AnchorGrid, base_anchors

# Windows are enlarged by this much, in positions and as a fraction of the area, so that rounding loses no anchor.
_SLACK = 1e-3


class Pairs(NamedTuple):
    """Pairs of an anchor and a box that may match, box by box.

    Attributes:
        anchor: int64 ``(N,)``, index into the grid's anchors.
        box: int64 ``(N,)``, index into the boxes.
    """

    anchor: Tensor
    box: Tensor


def pairs_by_iou(grid: AnchorGrid, boxes: Tensor, lowest: float) -> Pairs:
    """All pairs whose IoU is at least ``lowest`` (> 0), and some pairs with a lower IoU.

    For boxes with the areas a and b, IoU ≥ t means that their intersection is at least t (a + b) / (1 + t).
    """
    boxes = boxes.double()
    _, size, _ = _shapes(grid)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    needed = lowest / (1 + lowest) * (area[:, None] + size.prod(dim=1))  # (G, S)
    return _windows(grid, boxes, needed)


def pairs_by_best(grid: AnchorGrid, boxes: Tensor) -> Pairs:
    """All pairs of a box and the anchors that have the highest IoU with it, if this is above 0, and some other pairs.

    Of the anchors of a shape, the nearest one shares the largest area with a box.
    """
    boxes = boxes.double()
    offset, size, _ = _shapes(grid)
    step, counts = _locations(grid)
    box_size = (boxes[:, 2:] - boxes[:, :2])[:, None]  # (G, 1, 2)
    center = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None] - offset  # (G, S, 2)
    nearest = torch.minimum((center / step).round().clamp(min=0), counts - 1) * step
    shared = torch.minimum((box_size + size) / 2 - (center - nearest).abs(), torch.minimum(box_size, size))
    shared = shared.clamp(min=0).prod(dim=2)  # (G, S), the largest area that an anchor of each shape shares with a box
    overlap = shared / (box_size.prod(dim=2) + size.prod(dim=1) - shared)
    best = (overlap > 0) & (overlap >= (1 - _SLACK) * overlap.amax(dim=1, keepdim=True))
    return _windows(grid, boxes, torch.where(best, shared, math.inf))


def pairs_by_cover(grid: AnchorGrid, boxes: Tensor, lowest: float) -> Pairs:
    """All pairs with at least the fraction ``lowest`` (> 0) of the anchor inside the box, and some pairs with less."""
    _, size, _ = _shapes(grid)
    return _windows(grid, boxes.double(), (lowest * size.prod(dim=1)).expand(len(boxes), -1))


def _shapes(grid: AnchorGrid) -> tuple[Tensor, Tensor, Tensor]:
    """S anchor shapes of all levels: center relative to the location ``(S, 2)``, size ``(S, 2)``, level ``(S,)``."""
    bases = [base_anchors(grid.spec, level) for level in range(len(grid.shapes))]
    base = torch.cat(bases)
    level = torch.arange(len(bases)).repeat_interleave(grid.spec.per_location)
    return (base[:, :2] + base[:, 2:]) / 2, base[:, 2:] - base[:, :2], level


def _locations(grid: AnchorGrid) -> tuple[Tensor, Tensor]:
    """Distance between locations ``(S, 2)`` xy, and number of columns and rows ``(S, 2)``, of each anchor shape."""
    level = torch.arange(len(grid.shapes)).repeat_interleave(grid.spec.per_location)
    step = torch.tensor(grid.strides, dtype=torch.float64).flip(1)
    return step[level], torch.tensor(grid.shapes).flip(1)[level]


def _windows(grid: AnchorGrid, boxes: Tensor, needed: Tensor) -> Pairs:
    """Pairs that share at least the area ``needed`` ``(G, S)``; ``boxes`` ``(G, 4)`` in float64, on the CPU."""
    offset, size, level = _shapes(grid)  # xy
    step, counts = _locations(grid)
    starts = torch.tensor([0, *grid.level_sizes]).cumsum(0)[level] + torch.arange(len(level)) % grid.spec.per_location

    box_size = (boxes[:, 2:] - boxes[:, :2])[:, None]  # (G, 1, 2)
    center = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None] - offset  # (G, S, 2)
    shared = torch.minimum(box_size, size)  # largest possible intersection along each axis
    needed = needed * (1 - _SLACK)
    possible = (shared > 0).all(dim=2) & (shared.prod(dim=2) >= needed)
    # Largest distance of the centers along an axis at which box and anchor share enough area, if they are aligned along
    # the other axis.
    reach = (box_size + size) / 2 - needed[..., None] / shared.flip(2)
    first = ((center - reach) / step - _SLACK).ceil().clamp(min=0)
    last = torch.minimum(((center + reach) / step + _SLACK).floor(), counts - 1)
    extent = (last - first + 1).clamp(min=0)
    # `extent` is NaN for boxes without area. They are not `possible`, so their extent becomes 0.
    extent = torch.where(possible[..., None], extent, 0).long()  # (G, S, 2)

    box, shape = torch.nonzero(extent.prod(dim=2), as_tuple=True)  # (W,) windows
    columns, rows = extent[box, shape].unbind(1)
    left, top = first[box, shape].long().unbind(1)
    window, position = _expand(columns * rows)  # (N,)
    row, column = position // columns[window], position % columns[window]
    across = counts[shape, 0]  # (W,) columns of the level
    base = starts[shape] + (top * across + left) * grid.spec.per_location
    anchor = base[window] + (row * across[window] + column) * grid.spec.per_location
    return Pairs(anchor, box[window])


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat each index of ``counts`` ``(W,)`` as often as its count. Also return the number of each repetition."""
    index = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return index, torch.arange(len(index)) - before[index]
