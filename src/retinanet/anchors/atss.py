"""Adaptive training sample selection, ATSS (https://arxiv.org/abs/1912.02424): no IoU threshold to choose.

Each object looks at its nearest anchors on every level; their IoUs' mean plus standard deviation is its own threshold.
A small object, whose best anchor may only reach an IoU of 0.3, still gets anchors to learn from.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retinanet.anchors.coding import aligned_iou
from retinanet.anchors.grid import AnchorGrid

_BACKGROUND = -1


def assign_atss(grid: AnchorGrid, boxes: Tensor, candidates: int = 9) -> Tensor:
    """Match anchors with ``boxes`` ``(G, 4)`` by ATSS.

    For each box and level, the anchors at the ``candidates`` positions nearest to the box's centre are
    candidates. Those whose IoU reaches the mean plus standard deviation over all the box's candidates, and whose centre
    lies inside the box, take the box. An anchor that several boxes want goes to the one of highest IoU.

    Only a window of positions around each centre is looked at, so memory is O(A + G · candidates).

    Returns:
        int64 ``(A,)``: index into ``boxes``, or −1 for background.
    """
    anchors = grid.boxes
    matched = torch.full((len(anchors),), _BACKGROUND, dtype=torch.int64, device=anchors.device)
    if len(boxes) == 0:
        return matched
    boxes = boxes.to(anchors)
    index = _nearest(grid, boxes, candidates)  # (G, N) anchor indices
    overlap = aligned_iou(anchors[index], boxes[:, None])  # (G, N)
    threshold = overlap.mean(dim=1) + overlap.std(dim=1, correction=min(1, overlap.shape[1] - 1))
    centres = (anchors[index][..., :2] + anchors[index][..., 2:]) / 2
    inside = ((centres > boxes[:, None, :2]) & (centres < boxes[:, None, 2:])).all(dim=-1)
    overlap = torch.where((overlap >= threshold[:, None]) & inside, overlap, -1.0)

    flat, flat_overlap = index.reshape(-1), overlap.reshape(-1)
    best = torch.full_like(anchors[:, 0], -0.5).scatter_reduce(0, flat, flat_overlap, "amax")
    owner = torch.arange(len(boxes), device=anchors.device)[:, None].expand_as(index).reshape(-1)
    winner = torch.where(flat_overlap == best[flat], owner, len(boxes))
    first = torch.full_like(matched, len(boxes)).scatter_reduce(0, flat, winner, "amin")
    return torch.where(first < len(boxes), first, matched)


def _nearest(grid: AnchorGrid, boxes: Tensor, candidates: int) -> Tensor:
    """Indices ``(G, N)`` of the anchors at the ``candidates`` positions nearest to each box's centre, all levels."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    per_location = grid.spec.per_location
    # The k nearest points of a grid lie within this many rows and columns around the nearest one, also at its border.
    reach = math.ceil(math.sqrt(candidates))
    found, start = [], 0
    for (rows, columns), (down, across) in zip(grid.shapes, grid.strides, strict=True):
        row = _window(centre[:, 1] / down, reach + candidates // (2 * columns), rows)  # (G, h)
        column = _window(centre[:, 0] / across, reach + candidates // (2 * rows), columns)  # (G, w)
        distance = ((row * down - centre[:, 1:]) ** 2)[:, :, None] + ((column * across - centre[:, :1]) ** 2)[:, None]
        position = row[:, :, None] * columns + column[:, None]  # (G, h, w)
        count = min(candidates, position[0].numel())
        nearest = distance.flatten(1).topk(count, dim=1, largest=False, sorted=False).indices
        position = position.flatten(1).gather(1, nearest)  # (G, count)
        anchor = position[..., None] * per_location + torch.arange(per_location, device=boxes.device)
        found.append(start + anchor.flatten(1))
        start += rows * columns * per_location
    return torch.cat(found, dim=1)


def _window(centre: Tensor, reach: int, length: int) -> Tensor:
    """``min(2·reach + 1, length)`` consecutive integers around each ``centre``, kept within ``0 … length − 1``."""
    span = min(2 * reach + 1, length)
    first = (centre.round().long() - reach).clamp(0, length - span)
    return first[:, None] + torch.arange(span, device=centre.device)
