"""The network of Figure 3: backbone → pyramid → two subnets. No resizing, no loss, no suppression."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retinanet.config import AnchorSpec, ModelConfig
from retinanet.model.backbone import Backbone, Structure
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
        anchors_per_location: A; 9 with the paper's anchors.
        settings: further fields of :class:`retinanet.config.ModelConfig`; see there for their meaning. Here
            ``pretrained`` is False by default.

    Raises:
        TypeError: a setting does not exist.
        ConfigError: a setting has a value that is not allowed.
        ModelError: the backbone does not exist, does not fit, or its weights cannot be loaded.
    """

    def __init__(
        self, backbone: str = "resnet50", num_classes: int = 80, *, anchors_per_location: int = 9, **settings: Any
    ) -> None:
        super().__init__()
        config = ModelConfig(backbone, **{"pretrained": False, **settings})
        trained_norm = config.norm == "trained"
        structure = Structure(config.stride_in, config.stage_channels)
        self.backbone = Backbone(
            backbone, config.pretrained, config.weights, trained_norm, config.freeze_stages, config.norm_eps, structure
        )
        # Subnets of 256 channels would cost many times as much as a mobile backbone.
        channels = config.channels or (256 if self.backbone.channels[-1] >= 512 else 128)
        self.num_classes = num_classes
        self.channels = channels
        self.fpn = FeaturePyramid(self.backbone.channels, channels, config.p6_from, config.relu_before_p7)
        depth, norm = config.subnet_depth, config.subnet_norm
        self.classification = Subnet(channels, anchors_per_location, num_classes, depth, norm)
        self.regression = Subnet(channels, anchors_per_location, 4, depth, norm)
        for part in (self.classification, self.regression):
            initialize(part)
        set_prior(self.classification, config.prior)

    @classmethod
    def from_config(
        cls, config: ModelConfig, anchors: AnchorSpec, num_classes: int, pretrained: bool | None = None
    ) -> RetinaNet:
        """Build the network of a configuration; ``pretrained=False`` skips weights that a checkpoint will replace."""
        if pretrained is not None:
            config = replace(config, pretrained=pretrained)
        if not config.pretrained:
            config = replace(config, weights=None)
        settings = {field.name: getattr(config, field.name) for field in fields(config)}
        return cls(num_classes=num_classes, anchors_per_location=anchors.per_location, **settings)

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
        # Use channels-last memory throughout: convolutions run faster, and the subnets' outputs are views.
        images = images.contiguous(memory_format=torch.channels_last)
        pyramid = self.fpn(self.backbone(images))
        return Outputs(logits=self.classification(pyramid), deltas=self.regression(pyramid))
