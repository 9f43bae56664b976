"""The network of Figure 3: backbone → pyramid → two subnets. No resizing, no loss, no suppression."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from retinanet.config import AnchorSpec, ModelConfig
from retinanet.model.backbone import Backbone
from retinanet.model.fpn import FeaturePyramid
from retinanet.model.subnets import Subnet, initialize, set_prior


class Outputs(NamedTuple):
    """Predictions of every pyramid level, finest first.

    Attributes:
        logits: per level ``(B, H·W·A, K)``, class scores before the sigmoid.
        deltas: per level ``(B, H·W·A, 4)``, boxes relative to the anchors, see ``retinanet.anchors.coding``.
    """

    logits: list[Tensor]
    deltas: list[Tensor]


class RetinaNet(nn.Module):
    """RetinaNet: normalized images ``(B, 3, H, W)`` → :class:`Outputs`.

    Args:
        backbone: timm model name.
        num_classes: K; there is no background class.
        pretrained: start the backbone from ImageNet weights.
        channels: channels of pyramid and subnets; None: 256, or 128 for backbones whose last stage has fewer than 512
            channels (mobile networks, beside which subnets of 256 channels would cost many times as much).
        anchors_per_location: A; 9 with the paper's anchors.

    The other arguments are described at :class:`retinanet.config.ModelConfig`.

    Raises:
        ModelError: the backbone does not exist, does not fit, or its weights cannot be loaded.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 80,
        *,
        pretrained: bool = False,
        weights: str | None = None,
        norm: Literal["frozen", "trained"] = "frozen",
        norm_eps: float | None = None,
        freeze_stages: int = 0,
        channels: int | None = None,
        anchors_per_location: int = 9,
        subnet_depth: int = 4,
        subnet_norm: Literal["none", "group"] = "none",
        prior: float = 0.01,
        p6_from: Literal["c5", "p5"] = "c5",
        relu_before_p7: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, pretrained, weights, norm == "trained", freeze_stages, norm_eps)
        if channels is None:
            channels = 256 if self.backbone.channels[-1] >= 512 else 128
        self.num_classes = num_classes
        self.channels = channels
        self.fpn = FeaturePyramid(self.backbone.channels, channels, p6_from, relu_before_p7)
        self.classification = Subnet(channels, anchors_per_location, num_classes, subnet_depth, subnet_norm)
        self.regression = Subnet(channels, anchors_per_location, 4, subnet_depth, subnet_norm)
        for part in (self.classification, self.regression):
            initialize(part)
        set_prior(self.classification, prior)

    @classmethod
    def from_config(
        cls, config: ModelConfig, anchors: AnchorSpec, num_classes: int, pretrained: bool | None = None
    ) -> RetinaNet:
        """Build the network of a configuration; ``pretrained=False`` skips weights that a checkpoint will replace."""
        load_weights = config.pretrained if pretrained is None else pretrained
        return cls(
            config.backbone,
            num_classes,
            pretrained=load_weights,
            weights=config.weights if load_weights else None,
            norm=config.norm,
            norm_eps=config.norm_eps,
            freeze_stages=config.freeze_stages,
            channels=config.channels,
            anchors_per_location=anchors.per_location,
            subnet_depth=config.subnet_depth,
            subnet_norm=config.subnet_norm,
            prior=config.prior,
            p6_from=config.p6_from,
            relu_before_p7=config.relu_before_p7,
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means that are subtracted from RGB in [0, 1]."""
        return self.backbone.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Channel standard deviations that divide RGB in [0, 1]."""
        return self.backbone.std

    def forward(self, images: Tensor) -> Outputs:
        """Predict for normalized ``images`` ``(B, 3, H, W)``; sides should be multiples of 32."""
        # Channels-last throughout: convolutions run faster in it, and the subnets' outputs become views.
        images = images.contiguous(memory_format=torch.channels_last)
        pyramid = self.fpn(self.backbone(images))
        return Outputs(logits=self.classification(pyramid), deltas=self.regression(pyramid))
