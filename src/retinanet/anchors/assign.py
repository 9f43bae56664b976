"""Ground truth → what every anchor learns: an object's index, ``BACKGROUND`` or ``IGNORE`` (section 4, Anchors).

Two ways to the same result. On the CPU only the pairs of anchor and box that can matter are looked at
(:mod:`retinanet.anchors.nearby`); their number depends on the boxes, which a GPU would have to tell the CPU first.
There, and as the definition that tests hold the first way to, all anchors are compared with all boxes, some at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from retinanet.anchors.atss import assign_atss
from retinanet.anchors.coding import aligned_iou
from retinanet.anchors.grid import AnchorGrid
from retinanet.anchors.nearby import pairs_by_cover, pairs_by_iou
from retinanet.anchors.winners import take_highest
from retinanet.config import AssignConfig

BACKGROUND = -1
IGNORE = -2

# Boxes compared with all anchors at once: bounds the memory at 32 × A numbers, however many objects there are.
_CHUNK = 32


def assign(grid: AnchorGrid, boxes: Tensor, ignore: Tensor | None = None, config: AssignConfig | None = None) -> Tensor:
    """Match every anchor of an image with at most one ground-truth box.

    Method ``iou`` (the paper): the box of highest IoU (the first of equals) if that IoU is at least
    ``config.foreground``; ``BACKGROUND`` if it is below ``config.background``; ``IGNORE`` between. With
    ``config.force_best``, an anchor that overlaps some box as much as any other anchor does keeps its own best box
    whatever the IoU (torchvision's low-quality matches); a box that overlaps no anchor at all still gets none.

    Method ``atss``: see :func:`retinanet.anchors.atss.assign_atss`.

    Background anchors of which at least ``config.ignore_overlap`` lies inside an ``ignore`` region become ``IGNORE``.

    Memory is O(A + G · k), k the anchors near a box.

    Args:
        grid: the image's anchors.
        boxes: ``(G, 4)`` ``xyxy`` pixels.
        ignore: ``(R, 4)`` regions that are neither object nor background.
        config: thresholds; the paper's by default.

    Returns:
        int64 ``(A,)``: index into ``boxes``, ``BACKGROUND`` (−1) or ``IGNORE`` (−2).
    """
    return assign_batch(grid, [boxes], [boxes.new_zeros(0, 4) if ignore is None else ignore], config)[0]


def assign_batch(
    grid: AnchorGrid, boxes: Sequence[Tensor], ignore: Sequence[Tensor], config: AssignConfig | None = None
) -> Tensor:
    """:func:`assign` for each image of a batch, as indices into ``torch.cat(boxes)``.

    Returns:
        int64 ``(B, A)``.
    """
    config = config or AssignConfig()
    anchors = grid.boxes
    images, count = len(boxes), len(anchors)
    if images == 0:
        return torch.zeros(0, count, dtype=torch.int64, device=anchors.device)
    every, image = _joined(boxes, anchors)
    if config.method == "atss":
        best, index = assign_atss(grid, every, image, images, config.candidates)
        matched = torch.where(best >= 0, index, BACKGROUND)
    else:
        lowest = min(config.background, config.foreground)
        near = anchors.device.type == "cpu" and lowest > 0
        find = best_nearby if near else best_overlap
        best, index = find(grid, every, image, images, lowest)
        matched = torch.where(best >= config.foreground, index, IGNORE)
        matched = torch.where(best < config.background, BACKGROUND, matched)
        if config.force_best and near:
            matched = force_best_nearby(grid, every, image, images, lowest, index, matched)
        elif config.force_best:
            matched = force_best(grid, every, image, images, index, matched)
    regions, region_image = _joined(ignore, anchors)
    if len(regions) > 0:
        cover = cover_nearby if anchors.device.type == "cpu" else cover_overlap
        covered = cover(grid, regions, region_image, images, config.ignore_overlap)
        matched = torch.where(covered & (matched == BACKGROUND), IGNORE, matched)
    return matched.view(images, count)


def _joined(boxes: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """All images' boxes ``(G, 4)`` in ``like``'s type and place, and the image of each, int64 ``(G,)``."""
    every = torch.cat([b.to(like) for b in boxes]) if boxes else like.new_zeros(0, 4)
    lengths = torch.tensor([len(b) for b in boxes])
    image = torch.repeat_interleave(lengths, output_size=len(every))
    return every, image.to(like.device)


def best_nearby(grid: AnchorGrid, boxes: Tensor, image: Tensor, images: int, lowest: float) -> tuple[Tensor, Tensor]:
    """:func:`best_overlap` from the pairs whose IoU is at least ``lowest``; an anchor without one has overlap −1."""
    anchor, box = pairs_by_iou(grid, boxes, lowest)
    overlap = aligned_iou(boxes[box], grid.boxes[anchor])
    counts = overlap >= lowest
    anchor, box, overlap = anchor[counts], box[counts], overlap[counts]
    return take_highest(image[box] * len(grid.boxes) + anchor, overlap, box, images * len(grid.boxes))


def best_overlap(
    grid: AnchorGrid, boxes: Tensor, image: Tensor, images: int, lowest: float = 0
) -> tuple[Tensor, Tensor]:
    """Highest IoU of every anchor of each image with any of its boxes, and the first box that reaches it.

    Args:
        grid: the anchors.
        boxes: ``(G, 4)`` of all images.
        image: int64 ``(G,)``, which image each belongs to, in order.
        images: B.
        lowest: not needed here.

    Returns:
        float32 ``(B · A,)`` (0 without one) and int64 ``(B · A,)`` (0 without one).
    """
    anchors = grid.boxes
    best = anchors.new_zeros(images, len(anchors))
    index = torch.zeros(images, len(anchors), dtype=torch.int64, device=anchors.device)
    for start in range(0, len(boxes), _CHUNK):
        overlap = box_iou(boxes[start : start + _CHUNK], anchors)  # (chunk, A)
        rows = image[start : start + _CHUNK, None].expand_as(overlap)
        value = torch.zeros_like(best).scatter_reduce(0, rows, overlap, "amax")  # (B, A)
        # Of equals the first, which argmax leaves open.
        position = torch.arange(start, start + len(overlap), device=anchors.device)[:, None]
        position = torch.where(overlap == value.gather(0, rows), position, len(boxes))
        first = torch.full_like(index, len(boxes)).scatter_reduce(0, rows, position, "amin")
        index = torch.where(value > best, first, index)
        best = torch.maximum(value, best)
    return best.view(-1), index.view(-1)


def force_best_nearby(
    grid: AnchorGrid, boxes: Tensor, image: Tensor, images: int, lowest: float, index: Tensor, matched: Tensor
) -> Tensor:
    """:func:`force_best`, looking at all anchors only for boxes that no anchor overlaps by ``lowest``."""
    anchor, box = pairs_by_iou(grid, boxes, lowest)
    overlap = aligned_iou(boxes[box], grid.boxes[anchor])
    highest = boxes.new_full((len(boxes),), -1).scatter_reduce(0, box, overlap, "amax")
    chosen = (overlap == highest[box]) & (overlap >= lowest)
    forced = image[box[chosen]] * len(grid.boxes) + anchor[chosen]
    matched = matched.clone()
    matched[forced] = index[forced]
    for start in range(0, len(boxes), _CHUNK):
        part = torch.arange(start, min(start + _CHUNK, len(boxes)))
        part = part[highest[part] < lowest]
        overlap = box_iou(boxes[part], grid.boxes)  # (chunk, A)
        best = overlap.amax(dim=1, keepdim=True)
        row, anchor = torch.nonzero((overlap == best) & (best > 0), as_tuple=True)
        if len(row) == 0:
            continue
        owner = image[part[row]]  # (n,) the image of each forced anchor
        own = torch.where(owner[:, None] == image, box_iou(grid.boxes[anchor], boxes), -1)  # (n, G)
        order = torch.arange(len(boxes))
        first = torch.where(own == own.amax(dim=1, keepdim=True), order, len(boxes)).amin(dim=1)
        matched[owner * len(grid.boxes) + anchor] = first
    return matched


def force_best(grid: AnchorGrid, boxes: Tensor, image: Tensor, images: int, index: Tensor, matched: Tensor) -> Tensor:
    """Give the anchors that overlap some box as much as any other anchor does their own best box, ``index``."""
    forced = torch.zeros(images, len(grid.boxes), dtype=torch.bool, device=grid.boxes.device)
    for start in range(0, len(boxes), _CHUNK):
        overlap = box_iou(boxes[start : start + _CHUNK], grid.boxes)  # (chunk, A)
        highest = overlap.amax(dim=1, keepdim=True)
        chosen = (overlap == highest) & (highest > 0)
        rows = image[start : start + _CHUNK, None].expand_as(overlap)
        forced |= torch.zeros_like(forced, dtype=torch.uint8).scatter_reduce(0, rows, chosen.byte(), "amax").bool()
    return torch.where(forced.view(-1), index, matched)


def cover_nearby(grid: AnchorGrid, regions: Tensor, image: Tensor, images: int, share: float) -> Tensor:
    """:func:`cover_overlap` from the anchors near each region."""
    # Most anchors are near a region as large as the image; to compare it with all of them is quicker then.
    extent = (grid.boxes[:, :2].amax(dim=0) - grid.boxes[:, :2].amin(dim=0)).prod()
    large = (regions[:, 2:] - regions[:, :2]).clamp(min=0).prod(dim=1) > extent / 20
    result = cover_overlap(grid, regions[large], image[large], images, share)
    regions, image = regions[~large], image[~large]
    anchor, region = pairs_by_cover(grid, regions, share)
    counts = _covered(grid.boxes[anchor], regions[region]) >= share
    result[(image[region] * len(grid.boxes) + anchor)[counts]] = True
    return result


def cover_overlap(grid: AnchorGrid, regions: Tensor, image: Tensor, images: int, share: float) -> Tensor:
    """Whether at least ``share`` of each anchor lies inside one of its image's ``regions``: bool ``(B · A,)``."""
    covered = torch.zeros(images, len(grid.boxes), dtype=torch.uint8, device=regions.device)
    for start in range(0, len(regions), _CHUNK):
        part = (_covered(grid.boxes, regions[start : start + _CHUNK, None]) >= share).byte()  # (chunk, A)
        rows = image[start : start + _CHUNK, None].expand_as(part)
        covered = covered.scatter_reduce(0, rows, part, "amax")
    return covered.bool().view(-1)


def _covered(anchors: Tensor, regions: Tensor) -> Tensor:
    """Share of each anchor's area inside its region: ``(…, 4)`` each, broadcastable → ``(…,)``."""
    size = torch.minimum(anchors[..., 2:], regions[..., 2:]) - torch.maximum(anchors[..., :2], regions[..., :2])
    return size.clamp(min=0).prod(dim=-1) / (anchors[..., 2:] - anchors[..., :2]).prod(dim=-1)
