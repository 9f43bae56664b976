"""Outputs → detections (section 4, Inference): threshold and top-k per level, decode, merge, suppress per class."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from retinanet.anchors.coding import decode as decode_boxes
from retinanet.anchors.grid import AnchorGrid
from retinanet.config import DecodeConfig
from retinanet.hardware import send
from retinanet.model import Outputs

# Candidates that suppression looks at first, in multiples of the detections wanted.
_PREFIX = 2
# So many scores, or fewer, are represented by their maximum at first; a power of two.
_LARGEST_BLOCK, _SMALLEST_BLOCK = 64, 4


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes: float32 ``(D, 4)``, ``xyxy`` pixels of the network's input, clipped to the image.
        scores: float32 ``(D,)``.
        labels: int64 ``(D,)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Candidates(NamedTuple):
    """What is left of a batch before suppression: the same number N for every image, best first.

    Attributes:
        boxes: float32 ``(B, N, 4)``, clipped to each image.
        scores: float32 ``(B, N)``; 0 where an image has fewer.
        labels: int64 ``(B, N)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def decode(
    outputs: Outputs, grid: AnchorGrid, image_sizes: list[tuple[int, int]], config: DecodeConfig | None = None
) -> list[Detections]:
    """Detections of each image of a batch.

    Per level: scores above ``config.score``, of them the ``config.top_k`` highest, decoded. All levels together: per
    class, boxes that overlap a better one by more than IoU ``config.nms`` are dropped; ``config.max_detections`` stay.

    Args:
        outputs: the network's predictions for B images.
        grid: the anchors they refer to.
        image_sizes: ``(height, width)`` of each image inside the padded batch.
        config: thresholds; the paper's by default.
    """
    config = config or DecodeConfig()
    if not image_sizes:
        return []
    return suppress(select(outputs, grid, image_sizes, config), config)


def select(outputs: Outputs, grid: AnchorGrid, image_sizes: list[tuple[int, int]], config: DecodeConfig) -> Candidates:
    """The best of each level over the threshold, decoded; see :func:`decode`."""
    # Comparing logits spares the sigmoid of the 99 % of anchors that fall below the threshold.
    lowest = math.log(config.score / (1 - config.score)) if config.score > 0 else -math.inf
    boxes, scores, labels = [], [], []
    for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, grid.split(grid.boxes), strict=True):
        classes = logits.shape[-1]
        top, where = _highest(logits.flatten(1), config.top_k)  # (B, k) both
        anchor = where // classes
        chosen = deltas.gather(1, anchor[..., None].expand(-1, -1, 4)).float()  # (B, k, 4)
        box = decode_boxes(chosen, anchors[anchor])
        finite = box.isfinite().all(dim=2, keepdim=True)
        boxes.append(torch.where(finite, box, 0))
        # compared in float32: rounded to the logits' precision, the threshold would be another
        scores.append(torch.where((top.float() > lowest) & finite[..., 0], top.float(), -math.inf))
        labels.append(where % classes)
    top, order = torch.cat(scores, dim=1).sort(dim=1, descending=True, stable=True)  # (B, N)
    sizes = send(torch.tensor(image_sizes, dtype=torch.float32), top.device).flip(1).repeat(1, 2)  # (B, 4) w h w h
    box = torch.cat(boxes, dim=1).gather(1, order[..., None].expand(-1, -1, 4))
    box = torch.minimum(box.clamp(min=0), sizes[:, None])
    return Candidates(box, top.sigmoid(), torch.cat(labels, dim=1).gather(1, order))


def _highest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of each row of ``(B, n)``, all of them if there are fewer, and where they stand.

    They lie in the ``count`` blocks of the highest maxima, and those are found the same way. So there is one quick pass
    for the maxima and little to sort, and no shape depends on how many scores exceed a threshold.
    """
    length = values.shape[1]
    count, size = min(count, length), _LARGEST_BLOCK
    while size > _SMALLEST_BLOCK and size * size * count > 2 * length:
        size //= 2
    whole = length // size * size
    if size == _SMALLEST_BLOCK or whole <= 2 * count * size:
        return values.topk(count, dim=1)
    blocks = values[:, :whole].view(len(values), -1, size)  # (B, n / size, size)
    block = _highest(blocks.amax(dim=2), count)[1]  # (B, count)
    if whole == length:  # whole blocks are copied at once
        first = torch.arange(len(values), device=values.device)[:, None] * (length // size)
        chosen = values.reshape(-1, size).index_select(0, (block + first).view(-1)).view(len(values), -1)
    else:
        chosen = blocks.gather(1, block[..., None].expand(-1, -1, size)).flatten(1)
        chosen = torch.cat([chosen, values[:, whole:]], dim=1)
    top, order = _highest(chosen, count)
    in_block = block.gather(1, (order // size).clamp(max=count - 1)) * size + order % size
    return top, torch.where(order < count * size, in_block, order + whole - count * size)


def suppress(candidates: Candidates, config: DecodeConfig) -> list[Detections]:
    """Drop boxes that overlap a better one of their class; see :func:`decode`."""
    results = []
    counts = (candidates.scores > 0).sum(dim=1).tolist()
    # A class apart from another by more than the image's extent: boxes of different classes never overlap. In float64,
    # whose precision the shift does not use up.
    boxes = candidates.boxes.double()
    extent = boxes.amax() + 1 if boxes.numel() else 1
    apart = boxes + (candidates.labels * extent)[..., None]
    for image, count in enumerate(counts):
        # Suppression goes from best to worst, so the best candidates' result does not depend on the rest.
        taken = min(count, _PREFIX * config.max_detections)
        while True:
            keep = nms(apart[image, :taken], candidates.scores[image, :taken].double(), config.nms)
            if len(keep) >= config.max_detections or taken == count:
                break
            taken = min(count, 2 * taken)
        keep = keep[: config.max_detections]
        results.append(Detections(*(values[image, keep] for values in candidates)))
    return results
