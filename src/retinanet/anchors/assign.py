"""Assignment of ground-truth boxes to anchors: positive, ignored or background (section 4, Anchors).

Two implementations compute the same result. The CPU compares only pairs of an anchor and a box that are close enough to
match (:mod:`retinanet.anchors.nearby`). The number of these pairs depends on the boxes. If the pairs were on a GPU, the
CPU would have to wait to read their number. So on a GPU all anchors are compared with all boxes. The tests use this
dense version as the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from retinanet.anchors.atss import atss_pairs
from retinanet.anchors.coding import aligned_iou
from retinanet.anchors.grid import AnchorGrid
from retinanet.anchors.matches import BACKGROUND, IGNORE, Matches
from retinanet.anchors.nearby import pairs_by_best, pairs_by_cover, pairs_by_iou
from retinanet.config import AssignConfig
from retinanet.hardware import one_thread
from retinanet.overlaps import BoxIndex

# Largest number of boxes that are compared with all anchors at once, and of the pairs if there are many anchors.
_CHUNK, _PAIRS = 32, 1 << 22


def assign(grid: AnchorGrid, boxes: Tensor, ignore: Tensor | None = None, config: AssignConfig | None = None) -> Tensor:
    """Match every anchor of an image with at most one ground-truth box.

    Method ``iou`` (the paper): an anchor is matched with the box of highest IoU if this IoU is at least
    ``config.foreground``. Of boxes with equal IoU, the first is taken. An anchor that is not matched is ``BACKGROUND``
    if its highest IoU is below ``config.background``, else ``IGNORE``. With ``config.force_best``, the anchors that
    have the highest IoU with a box are also matched, however low this IoU is (torchvision's low-quality matches). Each
    is matched with the box that it overlaps most. A box that overlaps no anchor gets no anchor.

    Method ``atss``: see :func:`retinanet.anchors.atss.atss_pairs`.

    A background anchor becomes ``IGNORE`` if at least the fraction ``config.ignore_overlap`` of it lies inside an
    ``ignore`` region. On the CPU, memory is O(A + G · k), where k is the number of anchors near a box.

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
    """Apply :func:`assign` to each image of a batch, with indices into ``torch.cat(boxes)``, on the anchors' device.

    Returns:
        int64 ``(B, A)``.
    """
    config = config or AssignConfig()
    if grid.boxes.device.type == "cpu" and _has_lower_bound(config):
        return match_batch(grid, boxes, ignore, config).dense()
    return _assign_densely(grid, boxes, ignore, config)


@one_thread()
def match_batch(
    grid: AnchorGrid, boxes: Sequence[Tensor], ignore: Sequence[Tensor], config: AssignConfig | None = None
) -> Matches:
    """Compute :func:`assign_batch` with a sparse result; time and memory depend mainly on the number of boxes."""
    config = config or AssignConfig()
    grid = grid.to("cpu")
    if not _has_lower_bound(config):
        return Matches.from_dense(_assign_densely(grid, boxes, ignore, config))
    images, count = len(boxes), len(grid.boxes)
    every, image = _joined(boxes, grid.boxes)
    if config.method == "atss":
        pairs = atss_pairs(grid, every, image, config.candidates)
        positive, _, box = best_per_anchor(*pairs)
        ignored = positive.new_zeros(0)
    else:
        positive, box, ignored = _match_by_iou(grid, every, image, config)
    regions, region_image = _joined(ignore, grid.boxes)
    if len(regions) > 0:
        covered = cover_nearby(grid, regions, region_image, images, config.ignore_overlap)
        covered[positive] = False
        covered[ignored] = True
        ignored = torch.nonzero(covered).squeeze(1)
    return Matches(images, count, positive, box, ignored)


def best_per_anchor(anchor: Tensor, overlap: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep one pair per anchor: the pair with the highest overlap; of equal overlaps, the pair with the first box.

    Args:
        anchor: int64 ``(N,)``, the anchor of each pair.
        overlap: float ``(N,)``, not negative.
        box: int64 ``(N,)``, the box of each pair.

    Returns:
        The distinct anchors ``(U,)`` in ascending order, their overlap and their box.
    """
    anchors, inverse = torch.unique(anchor, return_inverse=True)
    best = overlap.new_full((len(anchors),), -1).scatter_reduce(0, inverse, overlap, "amax")
    no_box = torch.iinfo(torch.int64).max
    candidate = torch.where(overlap == best[inverse], box, no_box)
    return anchors, best, torch.full_like(anchors, no_box).scatter_reduce(0, inverse, candidate, "amin")


def best_overlap(grid: AnchorGrid, boxes: Tensor, image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """For every anchor of each image, the highest IoU with a box of the image, and the first box with this IoU.

    Args:
        grid: the anchors.
        boxes: ``(G, 4)`` of all images.
        image: int64 ``(G,)``, index of the image of each box, in ascending order.
        images: B.

    Returns:
        float32 ``(B · A,)`` (0 without a box) and int64 ``(B · A,)`` (0 without a box).
    """
    anchors = grid.boxes
    best = anchors.new_zeros(images, len(anchors))
    index = torch.zeros(images, len(anchors), dtype=torch.int64, device=anchors.device)
    chunk = _chunk(grid)
    for start in range(0, len(boxes), chunk):
        overlap = box_iou(boxes[start : start + chunk], anchors)  # (chunk, A)
        rows = image[start : start + chunk, None].expand_as(overlap)
        value = torch.zeros_like(best).scatter_reduce(0, rows, overlap, "amax")  # (B, A)
        # Of equal IoUs take the first box, which argmax does not guarantee.
        position = torch.arange(start, start + len(overlap), device=anchors.device)[:, None]
        position = torch.where(overlap == value.gather(0, rows), position, len(boxes))
        first = torch.full_like(index, len(boxes)).scatter_reduce(0, rows, position, "amin")
        index = torch.where(value > best, first, index)
        best = torch.maximum(value, best)
    return best.view(-1), index.view(-1)


def force_best(grid: AnchorGrid, boxes: Tensor, image: Tensor, images: int, index: Tensor, matched: Tensor) -> Tensor:
    """Match the anchors that have the highest IoU with a box.

    Each of these anchors gets its entry of ``index``: the box that it overlaps most.
    """
    forced = torch.zeros(images, len(grid.boxes), dtype=torch.bool, device=grid.boxes.device)
    chunk = _chunk(grid)
    for start in range(0, len(boxes), chunk):
        overlap = box_iou(boxes[start : start + chunk], grid.boxes)  # (chunk, A)
        highest = overlap.amax(dim=1, keepdim=True)
        chosen = (overlap == highest) & (highest > 0)
        rows = image[start : start + chunk, None].expand_as(overlap)
        forced |= torch.zeros_like(forced, dtype=torch.uint8).scatter_reduce(0, rows, chosen.byte(), "amax").bool()
    return torch.where(forced.view(-1), index, matched)


def cover_nearby(grid: AnchorGrid, regions: Tensor, image: Tensor, images: int, fraction: float) -> Tensor:
    """Compute :func:`cover_overlap` from only the anchors near each region."""
    # If a region is as large as the image, most anchors are near it, and comparing all anchors is faster.
    extent = (grid.boxes[:, :2].amax(dim=0) - grid.boxes[:, :2].amin(dim=0)).prod()
    large = (regions[:, 2:] - regions[:, :2]).clamp(min=0).prod(dim=1) > extent / 20
    result = cover_overlap(grid, regions[large], image[large], images, fraction)
    regions, image = regions[~large], image[~large]
    anchor, region = pairs_by_cover(grid, regions, fraction)
    counts = _covered(grid.boxes[anchor], regions[region]) >= fraction
    result[(image[region] * len(grid.boxes) + anchor)[counts]] = True
    return result


def cover_overlap(grid: AnchorGrid, regions: Tensor, image: Tensor, images: int, fraction: float) -> Tensor:
    """Whether at least ``fraction`` of each anchor lies inside one of its image's ``regions``: bool ``(B · A,)``."""
    covered = torch.zeros(images, len(grid.boxes), dtype=torch.uint8, device=regions.device)
    chunk = _chunk(grid)
    for start in range(0, len(regions), chunk):
        part = (_covered(grid.boxes, regions[start : start + chunk, None]) >= fraction).byte()  # (chunk, A)
        rows = image[start : start + chunk, None].expand_as(part)
        covered = covered.scatter_reduce(0, rows, part, "amax")
    return covered.bool().view(-1)


def _chunk(grid: AnchorGrid) -> int:
    """Number of boxes that are compared with all anchors at once."""
    return max(1, min(_CHUNK, _PAIRS // max(1, len(grid.boxes))))


def _has_lower_bound(config: AssignConfig) -> bool:
    """Whether the assignment depends only on anchors near a box (ATSS, or both IoU thresholds above 0)."""
    return config.method == "atss" or min(config.background, config.foreground) > 0


def _assign_densely(
    grid: AnchorGrid, boxes: Sequence[Tensor], ignore: Sequence[Tensor], config: AssignConfig
) -> Tensor:
    """Compute :func:`assign_batch` by comparing all anchors with all boxes, without waiting for a GPU."""
    anchors = grid.boxes
    images, count = len(boxes), len(anchors)
    if images == 0:
        return torch.zeros(0, count, dtype=torch.int64, device=anchors.device)
    every, image = _joined(boxes, anchors)
    if config.method == "atss":
        matched = _scatter_pairs(*atss_pairs(grid, every, image, config.candidates), images * count)
    else:
        best, index = best_overlap(grid, every, image, images)
        matched = torch.where(best >= config.foreground, index, IGNORE)
        matched = torch.where(best < config.background, BACKGROUND, matched)
        if config.force_best:
            matched = force_best(grid, every, image, images, index, matched)
    regions, region_image = _joined(ignore, anchors)
    if len(regions) > 0:
        covered = cover_overlap(grid, regions, region_image, images, config.ignore_overlap)
        matched = torch.where(covered & (matched == BACKGROUND), IGNORE, matched)
    return matched.view(images, count)


def _scatter_pairs(anchor: Tensor, overlap: Tensor, box: Tensor, anchors: int) -> Tensor:
    """Compute :func:`best_per_anchor` for all ``anchors``, with shapes that do not depend on the data.

    Pairs with a negative overlap are left out. Returns int64 ``(anchors,)``: the box or ``BACKGROUND``.
    """
    best = overlap.new_full((anchors,), -1).scatter_reduce(0, anchor, overlap, "amax")
    no_box = torch.iinfo(torch.int64).max
    candidate = torch.where((overlap == best[anchor]) & (overlap >= 0), box, no_box)
    first = torch.full((anchors,), no_box, device=box.device).scatter_reduce(0, anchor, candidate, "amin")
    return torch.where(first == no_box, BACKGROUND, first)


def _joined(boxes: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the boxes of all images ``(G, 4)``, with dtype and device of ``like``.

    Also return the image of each box, int64 ``(G,)``.
    """
    every = torch.cat([b.to(like) for b in boxes]) if boxes else like.new_zeros(0, 4)
    lengths = torch.tensor([len(b) for b in boxes], dtype=torch.int64)
    image = torch.repeat_interleave(lengths, output_size=len(every))
    return every, image.to(like.device)


def _match_by_iou(
    grid: AnchorGrid, boxes: Tensor, image: Tensor, config: AssignConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Positive anchors, their boxes, and ignored anchors, by the method ``iou``."""
    lowest = min(config.background, config.foreground)
    near, box = pairs_by_iou(grid, boxes, lowest)
    overlap = aligned_iou(boxes[box], grid.boxes[near])
    kept = overlap >= lowest
    box, overlap = box[kept], overlap[kept]
    anchor = image[box] * len(grid.boxes) + near[kept]
    anchors, best, first = best_per_anchor(anchor, overlap, box)
    is_positive = (best >= config.foreground) & (best >= config.background)
    if config.force_best:
        highest = boxes.new_full((len(boxes),), -1).scatter_reduce(0, box, overlap, "amax")
        forced = anchor[overlap == highest[box]]
        is_positive |= torch.isin(anchors, forced)
        far_anchor, far_box = _best_of_far_boxes(grid, boxes, image, highest < lowest)
        new = ~torch.isin(far_anchor, anchors)  # an anchor that is already paired with a near box keeps that box
        is_positive |= torch.isin(anchors, far_anchor)
        anchors, order = torch.cat([anchors, far_anchor[new]]).sort()
        first = torch.cat([first, far_box[new]])[order]
        is_positive = torch.cat([is_positive, new[new]])[order]
        best = torch.cat([best, best.new_full((int(new.sum()),), lowest)])[order]
    is_ignored = ~is_positive & (best >= config.background)
    return anchors[is_positive], first[is_positive], anchors[is_ignored]


def _best_of_far_boxes(grid: AnchorGrid, boxes: Tensor, image: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Find the best anchors of the boxes ``far``. Also return the box that each overlaps most."""
    rows = torch.nonzero(far).squeeze(1)
    near, part = pairs_by_best(grid, boxes[rows])
    overlap = aligned_iou(boxes[rows[part]], grid.boxes[near])
    highest = boxes.new_zeros(len(rows)).scatter_reduce(0, part, overlap, "amax")
    forced = (overlap == highest[part]) & (overlap > 0)
    anchor = image[rows[part[forced]]] * len(grid.boxes) + near[forced]
    anchor, least, _ = best_per_anchor(anchor, overlap[forced], rows[part[forced]])
    return anchor, _most_overlapped(grid, boxes, image, anchor, least)


def _most_overlapped(grid: AnchorGrid, boxes: Tensor, image: Tensor, anchor: Tensor, least: Tensor) -> Tensor:
    """Find the box of its image that each anchor overlaps most, ``(N,)``; some box has at least the IoU ``least``."""
    found = []
    every, owner = boxes.double().numpy(), image.numpy()
    corners, images = grid.boxes[anchor % len(grid.boxes)], anchor // len(grid.boxes)
    octave = least.log2().floor()
    for power in torch.unique(octave).tolist():  # a search for a low IoU compares more pairs
        rows = torch.nonzero(octave == power).squeeze(1)
        search = BoxIndex(every, 2.0**power, owner).search(corners[rows].double().numpy(), images[rows].numpy())
        for first, second in search.chunks():
            row, box = rows[torch.from_numpy(first)], torch.from_numpy(second)
            overlap = aligned_iou(corners[row], boxes[box])
            enough = overlap >= least[row]
            found.append((row[enough], overlap[enough], box[enough]))
    if not found:
        return torch.zeros(0, dtype=torch.int64)
    return best_per_anchor(*(torch.cat(parts) for parts in zip(*found, strict=True)))[2]


def _covered(anchors: Tensor, regions: Tensor) -> Tensor:
    """Fraction of each anchor's area inside its region: ``(…, 4)`` each, broadcastable → ``(…,)``."""
    size = torch.minimum(anchors[..., 2:], regions[..., 2:]) - torch.maximum(anchors[..., :2], regions[..., :2])
    return size.clamp(min=0).prod(dim=-1) / (anchors[..., 2:] - anchors[..., :2]).prod(dim=-1)
