"""Adaptive training sample selection (ATSS, https://arxiv.org/abs/1912.02424), which needs no IoU threshold.

The candidates of an object are its nearest anchors on every level. The IoU threshold of an object is the mean plus the
standard deviation of its candidates' IoUs. So a small object whose best anchor has an IoU of only 0.3 still gets
positive anchors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retinanet.anchors.coding import aligned_iou
from retinanet.anchors.grid import AnchorGrid

# Number of boxes that are processed together; it bounds the memory.
_CHUNK = 512


def atss_pairs(grid: AnchorGrid, boxes: Tensor, image: Tensor, candidates: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of anchor and box that ATSS selects.

    For each box and level, the anchors at the ``candidates`` positions nearest to the box's center are candidates. Of
    equally near positions, the first ones are taken. A candidate is selected if its IoU reaches the mean plus standard
    deviation over all candidates of the box and its center lies inside the box. If several boxes select an anchor, it
    is matched with the box of highest IoU.

    Only a window of positions around each center is compared, so memory is O(G · candidates).

    Args:
        grid: the anchors.
        boxes: ``(G, 4)`` of all images.
        image: int64 ``(G,)``, index of the image of each box.
        candidates: positions on each level.

    Returns:
        Per pair: int64 anchor ``image · A + anchor``, float32 overlap, int64 box. On a GPU, reading the number of
        selected pairs would make the CPU wait. So on a GPU all candidates are returned, and candidates that are not
        selected have overlap −1.
    """
    found = []
    for start in range(0, len(boxes), _CHUNK):
        part = boxes[start : start + _CHUNK]
        index, overlap = _candidates(grid, part, candidates)  # (G, N) both
        box = torch.arange(start, start + len(part), device=boxes.device)[:, None].expand_as(index)
        index = image[start : start + _CHUNK, None] * len(grid.boxes) + index
        if index.device.type == "cpu":
            selected = overlap >= 0
            index, overlap, box = index[selected], overlap[selected], box[selected]
        found.append((index.reshape(-1), overlap.reshape(-1), box.reshape(-1)))
    if not found:
        nothing = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return nothing, boxes.new_zeros(0), nothing
    index, overlap, box = (torch.cat(parts) for parts in zip(*found, strict=True))
    return index, overlap, box


def _candidates(grid: AnchorGrid, boxes: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Indices ``(G, N)`` of each box's candidates and their IoU; the IoU is −1 if a candidate is not selected."""
    index = _nearest(grid, boxes, candidates)
    anchors = grid.boxes[index]  # (G, N, 4)
    overlap = aligned_iou(anchors, boxes[:, None])
    threshold = overlap.mean(dim=1) + overlap.std(dim=1, correction=min(1, overlap.shape[1] - 1))
    centers = (anchors[..., :2] + anchors[..., 2:]) / 2
    inside = ((centers > boxes[:, None, :2]) & (centers < boxes[:, None, 2:])).all(dim=-1)
    return index, torch.where((overlap >= threshold[:, None]) & inside, overlap, -1.0)


def _nearest(grid: AnchorGrid, boxes: Tensor, candidates: int) -> Tensor:
    """Indices ``(G, N)`` of the anchors at the ``candidates`` positions nearest to each box's center, all levels."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    per_location = grid.spec.per_location
    # The k nearest grid points lie within `reach` rows and columns of the nearest point, also at the grid's border. For
    # a center far outside the image, all k may lie in one row. On a GPU, a check of the centers would make the CPU
    # wait, so the larger reach is used.
    (rows, columns), (down, across) = grid.shapes[0], grid.strides[0]
    limit = middle.new_tensor([columns * across, rows * down])
    inside = middle.device.type == "cpu" and bool(((middle >= 0) & (middle <= limit)).all())
    reach = math.ceil(math.sqrt(candidates)) if inside else candidates
    found, start = [], 0
    for (rows, columns), (down, across) in zip(grid.shapes, grid.strides, strict=True):
        center = middle - middle.new_tensor([across, down]) * grid.spec.offset
        row = _window(center[:, 1] / down, reach + candidates // (2 * columns), rows)  # (G, h)
        column = _window(center[:, 0] / across, reach + candidates // (2 * rows), columns)  # (G, w)
        distance = ((row * down - center[:, 1:]) ** 2)[:, :, None] + ((column * across - center[:, :1]) ** 2)[:, None]
        position = row[:, :, None] * columns + column[:, None]  # (G, h, w)
        count = min(candidates, position.shape[1] * position.shape[2])
        nearest = distance.flatten(1).sort(dim=1, stable=True).indices[:, :count]  # of equal distances, the first
        position = position.flatten(1).gather(1, nearest)  # (G, count)
        anchor = position[..., None] * per_location + torch.arange(per_location, device=boxes.device)
        found.append(start + anchor.flatten(1))
        start += rows * columns * per_location
    return torch.cat(found, dim=1)


def _window(center: Tensor, reach: int, length: int) -> Tensor:
    """``min(2·reach + 1, length)`` consecutive integers around each ``center``, kept within ``0 … length − 1``."""
    span = min(2 * reach + 1, length)
    first = (center.round().long() - reach).clamp(0, length - span)
    return first[:, None] + torch.arange(span, device=center.device)
