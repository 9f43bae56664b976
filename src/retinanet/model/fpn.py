"""Feature pyramid P3–P7 (https://arxiv.org/abs/1612.03144, and section 4 with footnote 2 of the RetinaNet paper)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retinanet.model.gradients import StridedConv2d


class FeaturePyramid(nn.Module):
    """C3–C5 → P3–P7, all with the same number of channels.

    P3–P5: 1×1 lateral convolution, plus the coarser level enlarged 2× (nearest), then a 3×3 convolution.
    P6: 3×3 stride-2 convolution of C5 (or of P5). P7: 3×3 stride-2 convolution of ReLU(P6).

    Args:
        in_channels: channels of C3, C4, C5.
        channels: channels of every output.
        p6_from: input of P6; ``"c5"`` is the paper's.
        relu_before_p7: the paper's ReLU between P6 and P7.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        p6_from: Literal["c5", "p5"] = "c5",
        relu_before_p7: bool = True,
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        p6_channels = in_channels[-1] if p6_from == "c5" else channels
        self.p6 = StridedConv2d(p6_channels, channels, 3, stride=2, padding=1)
        self.p7 = StridedConv2d(channels, channels, 3, stride=2, padding=1)
        self.p6_from = p6_from
        self.relu_before_p7 = relu_before_p7
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # Section 4.1: "initialized as in" the FPN paper, whose authors' code draws from ±√(3 / fan-in).
                nn.init.kaiming_uniform_(layer.weight, a=1)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """P3 … P7, ``(B, channels, H/2^l, W/2^l)`` each."""
        merged = self.lateral[-1](features[-1])
        pyramid = [self.output[-1](merged)]
        for level in (1, 0):
            lateral = self.lateral[level](features[level])
            merged = lateral + _enlarged(merged, lateral)
            pyramid.insert(0, self.output[level](merged))
        p6 = self.p6(features[-1] if self.p6_from == "c5" else pyramid[-1])
        p7 = self.p7(F.relu(p6) if self.relu_before_p7 else p6)
        return [*pyramid, p6, p7]


def _enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    """Enlarge ``coarse`` to the size of ``fine``, by nearest neighbor. On a GPU, keep autocast from using float32."""
    if torch.compiler.is_exporting():  # sides are multiples of 32, and sizes may be unknown
        return F.interpolate(coarse, scale_factor=2.0, mode="nearest")
    on_gpu = coarse.device.type == "cuda"
    with torch.autocast("cuda", enabled=False) if on_gpu else contextlib.nullcontext():
        return F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
