"""Outputs → detections (section 4, Inference): threshold and top-k per level, decoding, merging, suppression."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retinanet.anchors.coding import decode_boxes
from retinanet.anchors.grid import AnchorGrid
from retinanet.decode_config import LEAST_CANDIDATES, DecodeConfig, ResolvedDecodeConfig
from retinanet.detections import Detections
from retinanet.hardware import one_thread, to_device
from retinanet.model import Outputs
from retinanet.suppression import suppress_sorted

# Number of candidates that suppression processes first, as a multiple of the largest number of detections.
_PREFIX = 2
# Largest number of pairs of candidates that a GPU compares at once. A pair takes about 40 bytes of memory.
_PAIRS = 1 << 24
# Rounds of suppression between checks. A check tests whether the result still changes, and waits for the GPU.
_ROUNDS = 6
# Largest and smallest number of scores in a block that is represented by its maximum; powers of two.
_LARGEST_BLOCK, _SMALLEST_BLOCK = 64, 4


class Candidates(NamedTuple):
    """Candidates of a batch for suppression, best first. Every image has the same number N of candidates.

    Attributes:
        boxes: float32 ``(B, N, 4)``, clipped as ``decode.clip`` says; with some area where the score is above 0.
        scores: float32 ``(B, N)``; 0 where an image has fewer candidates.
        labels: int64 ``(B, N)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Selection(NamedTuple):
    """What :func:`select` finds.

    Attributes:
        candidates: the candidates.
        cut: bool ``(B,)``, images with ``top_k`` predictions above the threshold on a level, so that others may have
            been left out.
        nonfinite: bool ``(B,)``, images with a logit that is NaN or +∞, or with a selected box that is not finite.
    """

    candidates: Candidates
    cut: Tensor
    nonfinite: Tensor


@torch.no_grad()
@one_thread()
def postprocess(
    outputs: Outputs,
    grid: AnchorGrid,
    image_sizes: list[tuple[int, int]],
    config: DecodeConfig | None = None,
) -> list[Detections]:
    """Convert outputs to the detections of each image of a batch.

    On each level, the ``config.top_k`` highest scores above ``config.score`` are kept, and their boxes are decoded.
    Over all levels, a box is dropped if it overlaps a better box of its class by more than IoU ``config.nms``. The best
    ``config.max_detections`` boxes are returned. Images that reach one of these two limits are marked as
    :attr:`Detections.limited`. Boxes that lie outside their image are left out (with ``config.clip`` ``padded``: they
    are kept), and so are predictions that are NaN or infinite; their images are marked as
    :attr:`Detections.nonfinite`.

    Args:
        outputs: the network's predictions for B images.
        grid: the anchors they refer to.
        image_sizes: ``(height, width)`` of each image inside the padded batch.
        config: thresholds and limits; the paper's by default. Unset limits are those for images with few objects, see
            :meth:`DecodeConfig.resolved`.
    """
    settings = (config or DecodeConfig()).resolved()
    if not image_sizes:
        return []
    chosen = select(outputs, grid, image_sizes, settings)
    found = suppress(chosen.candidates, settings)
    nonfinite = chosen.nonfinite
    if bool(nonfinite.any()):  # a GPU has finished by now, so this does not wait
        chosen = select(_without_nonfinite(outputs, grid, settings), grid, image_sizes, settings)
        found = suppress(chosen.candidates, settings)
        nonfinite = nonfinite | chosen.nonfinite
    full = torch.tensor([len(each) >= settings.max_detections for each in found])
    limited = (chosen.cut.cpu() | full).tolist()
    if settings.clip == "after_nms":
        found = [each.clipped(*size) for each, size in zip(found, image_sizes, strict=True)]
    return [
        replace(each, limited=_position(reached), nonfinite=_position(damaged))
        for each, reached, damaged in zip(found, limited, nonfinite.tolist(), strict=True)
    ]


def _without_nonfinite(outputs: Outputs, grid: AnchorGrid, config: DecodeConfig) -> Outputs:
    """Give predictions that are not finite the lowest score, so that they do not displace others among the ``top_k``.

    These are logits that are NaN or infinite, and all logits of an anchor whose box is not finite.
    """
    levels = []
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, grid.split(grid.boxes), strict=True):
        boxes = decode_boxes(deltas.float(), anchors, config.size_limit)
        sound = boxes.isfinite().all(dim=2, keepdim=True)  # (B, A_l, 1)
        levels.append(torch.where(logits.isfinite() & sound, logits, -math.inf))
    return Outputs(levels, outputs.deltas)


def _position(marked: bool) -> npt.NDArray[np.int64]:
    """The position of a single image if it is marked, else nothing."""
    return np.zeros(int(marked), dtype=np.int64)


def select(
    outputs: Outputs, grid: AnchorGrid, image_sizes: list[tuple[int, int]], config: ResolvedDecodeConfig
) -> Selection:
    """Select the best predictions of each level above the threshold, and decode them; see :func:`postprocess`."""
    # Comparing logits avoids the sigmoid for the 99% of anchors that are below the threshold.
    lowest = math.log(config.score / (1 - config.score)) if config.score > 0 else -math.inf
    levels = []
    cut = torch.zeros(len(image_sizes), dtype=torch.bool, device=outputs.logits[0].device)
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, grid.split(grid.boxes), strict=True):
        scores = logits.flatten(1)
        top, position = _above(scores, lowest, config.top_k)  # (B, k) both
        if top.shape[1] == config.top_k < scores.shape[1]:
            cut |= top.amin(dim=1).float() > lowest
        anchor = position // logits.shape[-1]
        chosen = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))  # (B, k, 4)
        levels.append((top, position % logits.shape[-1], chosen, anchors[anchor]))
    logit, label, delta, anchor = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))  # (B, N, …)
    box = decode_boxes(delta.float(), anchor, config.size_limit)
    finite = box.isfinite().all(dim=2, keepdim=True)
    box = torch.where(finite, box, 0)
    if config.clip == "padded":
        box = clipped_to_input(box, *grid.image_size)
    elif config.clip == "image":
        sizes = to_device(torch.tensor(image_sizes, dtype=torch.float32), box.device).flip(1).repeat(1, 2)
        box = torch.minimum(box.clamp(min=0), sizes[:, None])  # (B, 4) w h w h
    inside = (box[..., 2:] > box[..., :2]).all(dim=2)  # some area is left
    # compare in float32, because rounding to the precision of the logits would change the threshold
    above = logit.float() > lowest
    nonfinite = (logit.isnan() | logit.isposinf() | (above & ~finite[..., 0])).any(dim=1)
    logit = torch.where(above & inside, logit.float(), -math.inf)
    logit, order = logit.sort(dim=1, descending=True, stable=True)
    box = box.gather(1, order[..., None].expand(-1, -1, 4))
    return Selection(Candidates(box, logit.sigmoid(), label.gather(1, order)), cut, nonfinite)


def clipped_to_input(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip ``boxes`` ``(…, 4)`` to the padded input as odtk does: first and last pixels of a box stay in the input.

    So a box outside the input becomes one row or column of pixels at its border.
    """
    low = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    high = boxes.new_tensor([width - 1, height - 1, width, height])
    return boxes.clamp(low, high)


def _above(scores: Tensor, lowest: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Find the ``top_k`` highest scores of each row of ``(B, n)``, and their positions.

    They are ordered by position. If ``top_k`` is large, fewer scores are returned, but all that exceed ``lowest``.
    Counting these waits for the GPU.
    """
    count = top_k
    if top_k > LEAST_CANDIDATES:
        # The comparison rounds ``lowest`` to the precision of the scores, so a score of the same value may exceed it.
        count = min(top_k, max(1, int((scores >= lowest).sum(dim=1).amax())))
    top, position = highest(scores, count)
    # The order of equal scores may depend on how many are selected, and so on the other images of the batch. Ordered by
    # position, equal scores have the same order as in retinanet.runtime.postprocess.
    position, order = position.sort(dim=1)
    return top.gather(1, order), position


def highest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the ``count`` highest values of each row of ``(B, n)`` (all if there are fewer), and their positions.

    The highest values lie in the ``count`` blocks with the highest maxima, and these blocks are found by recursion. One
    fast pass computes the maxima, and few values are sorted. No shape depends on how many scores exceed a threshold.
    """
    length = values.shape[1]
    count, size = min(count, length), _LARGEST_BLOCK
    while size > _SMALLEST_BLOCK and size * size * count > 2 * length:
        size //= 2
    whole = length // size * size
    if size == _SMALLEST_BLOCK or whole <= 2 * count * size:
        return values.topk(count, dim=1)
    blocks = values[:, :whole].view(len(values), -1, size)  # (B, n / size, size)
    block = highest(blocks.amax(dim=2), count)[1]  # (B, count)
    if whole == length:  # there is no remainder, so each block is copied as one row
        first = torch.arange(len(values), device=values.device)[:, None] * (length // size)
        chosen = values.reshape(-1, size).index_select(0, (block + first).view(-1)).view(len(values), -1)
    else:
        chosen = blocks.gather(1, block[..., None].expand(-1, -1, size)).flatten(1)
        chosen = torch.cat([chosen, values[:, whole:]], dim=1)
    top, order = highest(chosen, count)
    in_block = block.gather(1, (order // size).clamp(max=count - 1)) * size + order % size
    return top, torch.where(order < count * size, in_block, order + whole - count * size)


def suppress(candidates: Candidates, config: DecodeConfig) -> list[Detections]:
    """Drop boxes that overlap a better box of their class; see :func:`postprocess`."""
    config = config.resolved()
    # Boxes are shifted by class, by more than the extent of all boxes, so that boxes of different classes never
    # overlap. In float32 the shift would reduce the precision. Boxes that are not clipped have negative coordinates.
    boxes = candidates.boxes.double()
    extent = boxes.amax() - boxes.amin().clamp(max=0) + 1 if boxes.numel() else 1
    apart = boxes + (candidates.labels * extent)[..., None]
    wanted = min(apart.shape[1], _PREFIX * config.max_detections)
    if apart.device.type == "cpu" or wanted**2 > _PAIRS:
        return suppress_in_turn(candidates, apart, config)
    return suppress_together(candidates, apart, config)


def suppress_in_turn(candidates: Candidates, apart: Tensor, config: ResolvedDecodeConfig) -> list[Detections]:
    """Apply :func:`suppress` image by image."""
    results = []
    counts = (candidates.scores > 0).sum(dim=1).tolist()
    for image, count in enumerate(counts):
        # Suppression goes from best to worst, so worse candidates do not affect the result for better ones.
        taken = min(count, _PREFIX * config.max_detections)
        while True:
            keep = suppress_sorted(apart[image, :taken], config.nms)
            if len(keep) >= config.max_detections or taken == count:
                break
            taken = min(count, 2 * taken)
        keep = keep[: config.max_detections]
        boxes, scores, labels = (values[image, keep].cpu().numpy() for values in candidates)
        results.append(Detections.of_one_image(boxes, scores, labels))
    return results


def suppress_together(candidates: Candidates, apart: Tensor, config: ResolvedDecodeConfig) -> list[Detections]:
    """Apply :func:`suppress` to all images at once, because a GPU would wait between single images."""
    total = apart.shape[1]
    counts = (candidates.scores > 0).sum(dim=1)
    taken = min(total, _PREFIX * config.max_detections)
    while True:
        images = max(1, _PAIRS // taken**2) if taken else len(apart)
        parts = zip(
            torch.split(apart[:, :taken], images), torch.split(candidates.scores[:, :taken], images), strict=True
        )
        keep = torch.cat([_greedy(boxes, scores > 0, config.nms) for boxes, scores in parts])  # (B, taken)
        kept = keep.sum(dim=1)
        if taken == total or bool(((kept >= config.max_detections) | (counts <= taken)).all()):
            break
        taken = min(total, 2 * taken)
        if taken**2 > _PAIRS:
            return suppress_in_turn(candidates, apart, config)
    first = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices[:, : config.max_detections]  # (B, D)
    boxes, scores, labels = (
        values.cpu().numpy()
        for values in (
            candidates.boxes.gather(1, first[..., None].expand(-1, -1, 4)),
            candidates.scores.gather(1, first),
            candidates.labels.gather(1, first),
        )
    )
    lengths = kept.clamp(max=config.max_detections).tolist()
    return [Detections.of_one_image(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(lengths)]


def _greedy(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Mark the boxes that greedy suppression keeps: float64 ``(B, n, 4)`` and bool ``(B, n)``, best first → ``(B, n)``.

    A box is kept if no better kept box overlaps it. Starting from any guess, each application of this rule makes at
    least one more decision final. When nothing changes any more, the result equals that of a loop from best to worst.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    area = sides[0] * sides[1]  # (B, n)
    (left, top, right, bottom), (row, column) = boxes.unbind(-1), ((..., slice(None), None), (..., None, slice(None)))
    width = (torch.minimum(right[row], right[column]) - torch.maximum(left[row], left[column])).clamp(min=0)
    height = (torch.minimum(bottom[row], bottom[column]) - torch.maximum(top[row], top[column])).clamp(min=0)
    shared = width.mul_(height)  # (B, n, n)
    overlaps = shared / (area[row] + area[column] - shared) > threshold
    overlaps = overlaps.triu(diagonal=1)  # [i, j]: the better box i overlaps box j
    keep = valid
    while True:
        for _ in range(_ROUNDS):
            before, keep = keep, valid & ~(overlaps & keep[row]).any(dim=1)
        if torch.equal(before, keep):
            return keep
