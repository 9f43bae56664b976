"""The anchor boxes of an image, and the structure of the grid they lie on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from retinanet.config import AnchorSpec


@dataclass(frozen=True, eq=False)
class AnchorGrid:
    """All anchors of an image, level by level, row by row, location by location.

    Attributes:
        spec: sizes, scales, ratios and layout of the anchors.
        shapes: ``(rows, columns)`` of each level's feature map.
        strides: pixels between neighboring rows and columns, ``(vertical, horizontal)``, of each level.
        boxes: float32 ``(A, 4)``, ``xyxy`` pixels, not rounded to integers.
        image_size: ``(height, width)`` of the padded image.
    """

    spec: AnchorSpec
    shapes: tuple[tuple[int, int], ...]
    strides: tuple[tuple[int, int], ...]
    boxes: Tensor
    image_size: tuple[int, int]

    @property
    def level_sizes(self) -> list[int]:
        """Anchors on each level; they add up to A."""
        return [rows * columns * self.spec.per_location for rows, columns in self.shapes]

    def split(self, values: Tensor, dim: int = 0) -> list[Tensor]:
        """Cut a tensor with A entries along ``dim`` into one view per level."""
        return list(torch.split(values, self.level_sizes, dim=dim))

    def to(self, device: torch.device | str) -> AnchorGrid:
        """The same grid with ``boxes`` on ``device``."""
        return self if self.boxes.device == torch.device(device) else replace(self, boxes=self.boxes.to(device))


def base_anchors(spec: AnchorSpec, level: int) -> Tensor:
    """Anchors of the first location of ``level``: ``(A, 4)`` float64, scale by scale, ratio by ratio.

    Their center is (0, 0), moved by ``spec.offset`` strides. The ``torchvision`` layout orders them ratio by ratio,
    then scale by scale, and rounds them to whole pixels. In the ``inclusive`` layout, the last row and column of pixels
    belong to an anchor, so the right and bottom sides lie one pixel further.
    """
    scales = torch.tensor(spec.scales, dtype=torch.float64)
    ratios = torch.tensor(spec.ratios, dtype=torch.float64)
    side = spec.sizes[level] * scales[:, None]
    if spec.layout == "torchvision":
        # float32 and this order of operations give the same values before rounding as in torchvision. The square root
        # comes from float64, because PyTorch's in float32 depends on the processor in the last bit.
        side, root = side.trunc().float(), ratios.float().double().sqrt().float()
        width, height = (1 / root) * side, root * side
        half = torch.stack([width.T, height.T], dim=-1).reshape(-1, 2) / 2
        return torch.cat([-half, half], dim=1).round().double()
    width, height = side / ratios.sqrt(), side * ratios.sqrt()
    half = torch.stack([width, height], dim=-1).reshape(-1, 2) / 2
    center = spec.offset * spec.strides[level]
    return torch.cat([center - half, center + half + (spec.layout == "inclusive")], dim=1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached boxes must be usable in training, even if they are created during inference
def make_grid(spec: AnchorSpec, image_size: tuple[int, int]) -> AnchorGrid:
    """All anchors for an image of ``(height, width)`` pixels; cached, so do not write into ``boxes``.

    A level of stride s has ⌈height/s⌉ × ⌈width/s⌉ locations. Location (i, j) is centered on pixel (j·s, i·s), moved by
    ``spec.offset`` · s. An offset of 0 is the center of the receptive field of that location in a stack of padded
    stride-2 convolutions. In the ``torchvision`` layout, the distance between locations is the image's side divided by
    the number of locations, rounded down: 114 for 7 locations on 800 pixels.
    """
    height, width = image_size
    shapes = tuple((-(-height // stride), -(-width // stride)) for stride in spec.strides)
    strides = tuple((stride, stride) for stride in spec.strides)
    if spec.layout == "torchvision":
        strides = tuple((height // rows, width // columns) for rows, columns in shapes)
    levels = []
    for level, ((rows, columns), (down, across)) in enumerate(zip(shapes, strides, strict=True)):
        y = torch.arange(rows, dtype=torch.float64) * down
        x = torch.arange(columns, dtype=torch.float64) * across
        centers = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1)  # (rows, columns, xy)
        boxes = centers.repeat(1, 1, 2)[:, :, None] + base_anchors(spec, level)  # (rows, columns, A, 4)
        levels.append(boxes.reshape(-1, 4))
    return AnchorGrid(spec, shapes, strides, torch.cat(levels).float(), image_size)
