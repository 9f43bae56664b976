"""One image with its ground truth, as the dataset hands it to the transforms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Training leaves out objects with a shorter side, in pixels of the network's input.
MIN_SIDE = 1.0


@dataclass
class Sample:
    """An image and what is in it.

    Attributes:
        image: RGB in 0–255, ``(3, H, W)``; uint8, or float32 after bilinear scaling.
        boxes: float32 ``(G, 4)``, ``xyxy`` in pixels of ``image``, half-open.
        labels: int64 ``(G,)``, class indices ``0..K-1``.
        ignore: float32 ``(R, 4)``, regions where a detection is neither right nor wrong (COCO crowds, VOC difficult).
        image_id: the id the dataset knows the image by.
        index: position of the image in its dataset.
        size: ``(width, height)`` of the file before any transform.
        instead_of: messages of the images that could not be read, whose place this one takes.
        remark: what is odd about this one.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    image_id: int
    index: int
    size: tuple[int, int]
    instead_of: tuple[str, ...] = ()
    remark: str = ""

    def drop_degenerate(self, min_side: float = MIN_SIDE) -> Sample:
        """Clip boxes to the image and drop what a crop or a small scale left with a side under ``min_side`` pixels."""
        height, width = self.image.shape[-2:]
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        self.boxes = self.boxes.clamp(min=0).minimum(limits)
        self.ignore = self.ignore.clamp(min=0).minimum(limits)
        keep = (self.boxes[:, 2:] - self.boxes[:, :2]).amin(dim=1) >= min_side if len(self.boxes) else self.labels >= 0
        self.boxes, self.labels = self.boxes[keep], self.labels[keep]
        if len(self.ignore):
            self.ignore = self.ignore[(self.ignore[:, 2:] - self.ignore[:, :2]).amin(dim=1) > 0]
        return self
