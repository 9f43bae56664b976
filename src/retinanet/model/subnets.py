"""The classification and box subnets (section 4): same structure, separate parameters; each runs on all levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from retinanet.model.fused import conv_relu, folded, geometry_of, is_fused
from retinanet.model.gradients import GroupNorm


class Subnet(nn.Module):
    """``depth`` 3×3 convolutions with ReLU, then one 3×3 convolution that predicts ``outputs`` numbers per anchor.

    Args:
        channels: channels of the input and of every hidden layer.
        anchors: anchors per location, A.
        outputs: numbers per anchor: K classes, or 4.
        depth: number of hidden convolutions.
        norm: group norm (32 groups, at least 2 channels each) after each hidden convolution, or none as in the paper.
    """

    def __init__(
        self, channels: int, anchors: int, outputs: int, depth: int = 4, norm: Literal["none", "group"] = "none"
    ) -> None:
        super().__init__()
        self.outputs = outputs
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"))
            if norm == "group":
                # at least two channels per group: the coarsest level of a small image has one value per channel
                layers.append(GroupNorm(min(32, channels // 2), channels))
            layers.append(nn.ReLU(inplace=True))
        self.tower = nn.Sequential(*layers)
        self.predict = nn.Conv2d(channels, anchors * outputs, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid levels ``(B, C, H, W)`` → ``(B, H·W·A, outputs)`` each; views if memory is channels-last."""
        hidden = list(features)
        if is_fused(features[0]) and not any(isinstance(layer, nn.GroupNorm) for layer in self.tower):
            for conv in (layer for layer in self.tower if isinstance(layer, nn.Conv2d)):
                weight, bias = folded(conv, nn.Identity(), hidden[0])  # converted once for all levels
                hidden = [conv_relu(x, weight, bias, geometry_of(conv)) for x in hidden]
        else:
            hidden = [self.tower(x) for x in hidden]
        predictions = [self.predict(x) for x in hidden]  # (B, A·outputs, H, W)
        return [p.permute(0, 2, 3, 1).reshape(p.shape[0], -1, self.outputs) for p in predictions]


def initialize(module: nn.Module) -> None:
    """Give every convolution of a subnet Gaussian weights of standard deviation 0.01 and zero biases (section 4.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def set_prior(subnet: Subnet, prior: float) -> None:
    """Set the last bias so that every anchor starts at probability ``prior``: b = −log((1 − π)/π)."""
    bias = subnet.predict.bias
    assert bias is not None
    nn.init.constant_(bias, -math.log((1 - prior) / prior))
