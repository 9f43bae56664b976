"""Targets of the anchors of a batch, arranged by pyramid level and moved to the network's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.anchors.grid import AnchorGrid
from retinanet.anchors.matches import BACKGROUND, IGNORE, Matches
from retinanet.hardware import one_thread, to_device


@dataclass(frozen=True)
class Targets:
    """Targets of a batch of B images; P anchors are positive. Everything lies on the network's device.

    Attributes:
        classes: per level int64 ``(B, A_l)``: class, ``BACKGROUND`` or ``IGNORE``.
        counts: positive anchors of each level; they add up to P.
        index: int64 ``(P,)``, level by level: position ``image · A_l + anchor`` of each positive anchor in its level.
        anchors: float32 ``(P, 4)``, the positive anchors.
        boxes: float32 ``(P, 4)``, their ground-truth boxes.
        labels: int64 ``(P,)``, their classes.
    """

    classes: list[Tensor]
    counts: list[int]
    index: Tensor
    anchors: Tensor
    boxes: Tensor
    labels: Tensor

    def of_positives(self, levels: Sequence[Tensor]) -> Tensor:
        """Gather the rows of the positive anchors from per-level ``(B, A_l, C)``: ``(P, C)``."""
        parts = zip(levels, torch.split(self.index, self.counts), strict=True)
        return torch.cat([level.flatten(0, 1)[index] for level, index in parts if len(index)] or [levels[0][:0, 0]])

    def spread(self, values: Tensor) -> list[Tensor]:
        """Write one value per positive anchor, ``(P,)``, into per-level ``(B, A_l)`` tensors of zeros."""
        parts = zip(self.classes, torch.split(values, self.counts), torch.split(self.index, self.counts), strict=True)
        levels = []
        for classes, value, index in parts:
            level = torch.zeros(classes.shape, dtype=values.dtype, device=values.device)
            level.view(-1)[index] = value
            levels.append(level)
        return levels


@one_thread()
def make_targets(matches: Matches, grid: AnchorGrid, boxes: Tensor, labels: Tensor, device: torch.device) -> Targets:
    """Arrange ``matches`` for the losses, with two copies to the device and without waiting for it.

    Args:
        matches: positive and ignored anchors.
        grid: the anchors.
        boxes: ``(G, 4)``, the ground truth of all images together, on the CPU.
        labels: int64 ``(G,)``, their classes.
        device: where the network's outputs lie.
    """
    sizes = torch.tensor(grid.level_sizes)
    starts = sizes.cumsum(0) - sizes
    images = matches.images

    def arranged(anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Level of each anchor, its position in that level, and its position in the concatenated levels."""
        image, anchor = anchors // max(1, matches.anchors), anchors % max(1, matches.anchors)
        level = torch.bucketize(anchor, starts, right=True) - 1
        inside = image * sizes[level] + anchor - starts[level]
        return level, inside, images * starts[level] + inside

    level, inside, position = arranged(matches.positive)
    order = level.argsort(stable=True)
    level, inside, position, box = level[order], inside[order], position[order], matches.box[order]
    own = labels[box]
    ignored = arranged(matches.ignored)[2]
    anchor = matches.positive[order] % max(1, matches.anchors)
    whole = to_device(torch.cat([inside, position, own, ignored, torch.full_like(ignored, IGNORE)]), device)
    index, position, own, ignored, ignore = torch.split(whole, [len(box)] * 3 + [len(ignored)] * 2)
    real = to_device(torch.stack([grid.boxes.cpu()[anchor], boxes[box].to(torch.float32)]), device)
    every = torch.full((images * matches.anchors,), BACKGROUND, device=device)
    every[torch.cat([position, ignored])] = torch.cat([own, ignore])
    levels = torch.split(every, [images * size for size in grid.level_sizes])
    classes = [level.view(images, size) for level, size in zip(levels, grid.level_sizes, strict=True)]
    counts = torch.bincount(level, minlength=len(sizes)).tolist()
    return Targets(classes, counts, index, real[0], real[1], own)
