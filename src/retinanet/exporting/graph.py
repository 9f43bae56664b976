"""The two graphs that are exported, as modules that the exporters can trace.

*network*: images → logits and deltas of every level. *detector*: the same with post-processing inside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from retinanet.anchors.coding import decode_boxes
from retinanet.anchors.grid import base_anchors
from retinanet.config import AnchorSpec
from retinanet.decode_config import ResolvedDecodeConfig
from retinanet.exporting.suppression_op import LEFT_OUT, suppress_by_class
from retinanet.model import Outputs, RetinaNet
from retinanet.model.inference import for_inference

DETECTIONS = ("boxes", "scores", "labels", "counts", "limits", "nonfinite")

# Every number but +∞ and NaN is at most this.
_LARGEST = torch.finfo(torch.float32).max


def raw_names(levels: int) -> list[str]:
    """Names of the network's outputs in a file."""
    return [f"{kind}_{level}" for kind in ("logits", "deltas") for level in range(levels)]


class NetworkGraph(nn.Module):
    """Images → logits and deltas of every level, finest first: ``(B, n, K)`` … and ``(B, n, 4)`` ….

    The inputs are ``images`` ``(B, 3, H, W)`` in 0–255 (RGB), whose sides are multiples of 32, and ``sizes`` int64
    ``(B, 2)``, the ``(height, width)`` of each image. The image lies at the top left, and what surrounds it is ignored.

    Args:
        model: the network; it is not changed.
    """

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        self.network = _with_constant_padding(for_inference(model))
        # The same numbers as in normalized_batch, so that the results agree to the last bit.
        std, mean = torch.tensor(model.std), torch.tensor(model.mean)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None], persistent=False)
        self.register_buffer("offset", (-mean / std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every level, then the deltas of every level."""
        outputs = self.outputs(images, sizes)
        return (*outputs.logits, *outputs.deltas)

    def outputs(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Normalize the images, set what surrounds them to zero, and run the network."""
        rows = torch.arange(images.shape[2], device=images.device)[None, :, None] < sizes[:, 0, None, None]
        columns = torch.arange(images.shape[3], device=images.device)[None, None, :] < sizes[:, 1, None, None]
        normalized = images.float() * self.get_buffer("scale") + self.get_buffer("offset")
        outputs: Outputs = self.network(torch.where((rows & columns)[:, None], normalized, 0.0))
        return outputs


class DetectorGraph(nn.Module):
    """Images → detections of each image, padded to D = ``config.max_detections`` entries, best first.

    The inputs are those of :class:`NetworkGraph`. The first outputs are ``boxes`` ``(B, D, 4)`` in pixels of the input,
    ``scores`` ``(B, D)`` (0 after the last detection), ``labels`` int64 ``(B, D)`` (-1 after the last detection),
    ``counts`` int64 ``(B,)``, ``limits`` ``(B,)``: the score below which detections may be missing because the image
    reached a limit, else 0, and ``nonfinite`` bool ``(B,)``: whether predictions that are NaN or infinite were left
    out. The results are those of :func:`retinanet.postprocess.postprocess`, with one exception: selected boxes that are
    not finite are left out and not replaced by the next candidates of their level. The outputs of the network follow; a
    file keeps them inside, where a verification finds them.

    Args:
        network: the network.
        anchors: its anchors.
        config: thresholds and limits.
    """

    def __init__(self, network: NetworkGraph, anchors: AnchorSpec, config: ResolvedDecodeConfig) -> None:
        super().__init__()
        self.network = network
        self.anchors = anchors
        self.config = config
        # Comparing logits avoids the sigmoid for the 99% of anchors that are below the threshold.
        self.lowest = math.log(config.score / (1 - config.score)) if config.score > 0 else LEFT_OUT
        for level in range(len(anchors.strides)):
            self.register_buffer(f"base_{level}", base_anchors(anchors, level).float(), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs ``DETECTIONS``, then the logits and the deltas of every level."""
        outputs = self.network.outputs(images, sizes)
        levels = list(zip(outputs.logits, outputs.deltas, strict=True))
        found = [self._best_of_level(i, *each, images.shape[2:]) for i, each in enumerate(levels)]
        logits, boxes, labels = (torch.cat([level[part] for level in found], dim=1) for part in range(3))
        above = logits > self.lowest
        finite = (boxes.abs() <= _LARGEST).all(dim=2)
        damaged = (above & ~finite).any(dim=1)
        corner = sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4) w h w h
        if self.config.clip == "padded":
            boxes = _clipped_to_input(boxes, images)
        elif self.config.clip == "image":
            boxes = torch.minimum(boxes.clamp(min=0), corner)
        inside = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        logits = torch.where(above & finite & inside, logits, LEFT_OUT)

        keep = suppress_by_class(
            boxes, logits, labels, self.network.network.num_classes, self.config.nms, self.config.max_detections
        )
        logits = torch.where(keep, logits, LEFT_OUT)
        # An image may have fewer candidates than max_detections.
        logits = F.pad(logits, (0, self.config.max_detections), value=LEFT_OUT)
        boxes = F.pad(boxes, (0, 0, 0, self.config.max_detections))
        labels = F.pad(labels, (0, self.config.max_detections))
        best, order = logits.topk(self.config.max_detections, dim=1)
        full = (best > LEFT_OUT).sum(dim=1) == self.config.max_detections
        limits = torch.stack([*(level[3] for level in found), torch.where(full, best[:, -1], LEFT_OUT)])
        boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
        if self.config.clip == "after_nms":
            boxes = torch.minimum(boxes.clamp(min=0), corner)
            inside = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
            best, order = torch.where(inside, best, LEFT_OUT).topk(self.config.max_detections, dim=1)
            boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
        kept = best > LEFT_OUT
        counts = kept.sum(dim=1)
        nonfinite = torch.stack([level[4] for level in found]).any(dim=0)
        return (
            torch.where(kept[..., None], boxes, 0.0),
            torch.where(kept, best.sigmoid(), 0.0),
            torch.where(kept, labels, -1),
            counts,
            torch.where(limits > self.lowest, limits.sigmoid(), 0.0).max(dim=0).values,
            nonfinite | damaged,
            *outputs.logits,
            *outputs.deltas,
        )

    def _best_of_level(
        self, level: int, logits: Tensor, deltas: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Select the best predictions of a level.

        Returns:
            Logits, boxes and labels; for each image, the highest logit that may be left out, and whether a logit is
            NaN or +∞.
        """
        classes = logits.shape[2]
        scores = logits.flatten(1)
        finite = scores <= _LARGEST
        # Runtimes order NaN in different ways, and +∞ would displace other predictions.
        scores = torch.where(finite, scores, LEFT_OUT)
        count = torch.sym_min(self.config.top_k, scores.shape[1])
        top, position = scores.topk(count, dim=1)
        anchor = position // classes
        chosen = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = decode_boxes(chosen, self._anchors(level, anchor, size), self.config.size_limit)
        cut: Any = scores.shape[1] > self.config.top_k
        lowest = top.min(dim=1).values
        limit = torch.where(cut & (lowest > self.lowest), lowest, LEFT_OUT)
        return top, boxes, position % classes, limit, ~finite.all(dim=1)

    def _anchors(self, level: int, anchor: Tensor, size: Sequence[int]) -> Tensor:
        """Anchor boxes ``(…, 4)`` at positions ``anchor`` of a level, as in :func:`retinanet.anchors.make_grid`."""
        base, stride = self.get_buffer(f"base_{level}"), self.anchors.strides[level]
        rows, columns = ((side + stride - 1) // stride for side in size)
        down = across = stride
        if self.anchors.layout == "torchvision":
            down, across = size[0] // rows, size[1] // columns
        location = anchor // len(base)
        row = location // columns
        column = location - row * columns  # the ONNX exporter has no remainder by an unknown number
        x, y = column * across, row * down
        center = torch.stack([x, y, x, y], dim=-1).float()
        return base[anchor % len(base)] + center


def _clipped_to_input(boxes: Tensor, images: Tensor) -> Tensor:
    """Apply :func:`retinanet.postprocess.clipped_to_input` with sides that are known only when the graph runs."""
    sides = torch.stack([boxes.new_ones(()) * images.shape[axis] for axis in (3, 2, 3, 2)])
    pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return torch.minimum(torch.maximum(boxes, pixel), sides - pixel.flip(0))


def _with_constant_padding(network: RetinaNet) -> RetinaNet:
    """Replace TensorFlow's padding, which depends on the image size, by constants that hold for multiples of 32."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, Conv2dSame):
            module.__class__ = _ConvOfMultiples  # type: ignore[assignment]
    return network


class _ConvOfMultiples(nn.Conv2d):
    """A convolution with TensorFlow's padding of inputs whose sides are multiples of the stride."""

    def forward(self, x: Tensor) -> Tensor:
        padding = []
        for size, step, spread in zip(self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True):
            total = max(0, (size - 1) * spread + 1 - step)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
