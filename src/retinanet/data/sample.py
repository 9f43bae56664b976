"""One image with its ground truth, the input of the transforms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Training leaves out objects with a side shorter than this many pixels of the network's input.
MIN_SIDE = 1.0


@dataclass
class Sample:
    """An image and its ground truth.

    Attributes:
        image: RGB in 0–255, ``(3, H, W)``; uint8, or float32 after bilinear scaling.
        boxes: float32 ``(G, 4)``, ``xyxy`` in pixels of ``image``, half-open.
        labels: int64 ``(G,)``, class indices ``0..K-1``.
        ignore: float32 ``(R, 4)``, regions where a detection is neither a true nor a false positive (COCO crowds, VOC
            difficult).
        image_id: id of the image in the dataset.
        index: position of the image in the dataset.
        size: ``(width, height)`` of the file before any transform.
        instead_of: errors of the unreadable images that this image replaces.
        remark: note about the image, such as an unexpected size.
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

    def pin_memory(self) -> Sample:
        """Move the image to memory from which a GPU copies without making the CPU wait."""
        self.image = self.image.pin_memory()
        return self

    def drop_degenerate(self, min_side: float = MIN_SIDE) -> Sample:
        """Clip boxes to the image, and drop boxes with a side under ``min_side`` pixels."""
        height, width = self.image.shape[-2:]
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        self.boxes = self.boxes.clamp(min=0).minimum(limits)
        self.ignore = self.ignore.clamp(min=0).minimum(limits)
        keep = (self.boxes[:, 2:] - self.boxes[:, :2]).amin(dim=1) >= min_side if len(self.boxes) else self.labels >= 0
        self.boxes, self.labels = self.boxes[keep], self.labels[keep]
        if len(self.ignore):
            self.ignore = self.ignore[(self.ignore[:, 2:] - self.ignore[:, :2]).amin(dim=1) > 0]
        return self
