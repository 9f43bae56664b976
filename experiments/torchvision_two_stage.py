"""The two-stage detector: torchvision's ``FasterRCNN`` class with a feature pyramid on our backbone.

Region proposals, box head, matching, sampling, losses and post-processing are torchvision's, with its defaults. As in
torchvision's ``fasterrcnn_resnet50_fpn``, the pyramid has the strides 4 to 32, and a max pooling on top of them. Its
width is that of the RetinaNets. A RetinaNet has no level of stride 4; with ``finest_stride=8``, neither has the
Faster R-CNN, and its anchors have the sizes of the RetinaNets' levels. Trainings pool the regions with
``roi_align.py``, which computes the same in less time. ``torchvision_peer.py`` trains and evaluates the model.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from retinanet.config import DataConfig
from retinanet.model.backbone import OFFLINE_BACKBONE, lite0_state_dict, load_backbone_weights
from retinanet.model.gradients import speed_up_depthwise
from roi_align import FastTrainingRoIAlign
from torchvision_peer import CHANNELS, SCALING, InBf16, in_float32

STRIDES = (4, 8, 16, 32)  # of timm's features 1, 2, 3 and 4
SMALLEST_ANCHOR = 32


class FasterRCNNPeer(FasterRCNN):
    """torchvision's Faster R-CNN with our class numbers, which start at 0. Its own start at 1; 0 is the background."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses by name in training, otherwise the detections of each image, as torchvision returns them."""
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        outputs: dict[str, Tensor] | list[dict[str, Tensor]] = super().forward(images, targets)
        if isinstance(outputs, dict):
            return outputs
        return [{**found, "labels": found["labels"] - 1} for found in outputs]


class _Features(nn.Module):
    """EfficientNet-Lite0 with a pyramid from ``finest_stride`` on. It computes in bf16, as our own runs do.

    The features are float32: torchvision computes the anchors in the dtype of the features, and needs features and
    proposals of the same dtype.
    """

    out_channels = CHANNELS

    def __init__(self, bf16: bool, finest_stride: int) -> None:
        super().__init__()
        self.bf16 = bf16
        stages = [1 + STRIDES.index(stride) for stride in STRIDES if stride >= finest_stride]
        self.body = timm.create_model(OFFLINE_BACKBONE, features_only=True, out_indices=stages, pretrained=False)
        load_backbone_weights(self.body, lite0_state_dict(), OFFLINE_BACKBONE)
        speed_up_depthwise(self.body)
        for norm in self._norms():
            norm.requires_grad_(False)
        channels = list(self.body.feature_info.channels())
        self.fpn = FeaturePyramidNetwork(channels, CHANNELS, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.body(images.contiguous(memory_format=torch.channels_last))
            pyramid = self.fpn({str(level): feature for level, feature in enumerate(features)})
        found: dict[str, Tensor] = in_float32(dict(pyramid))
        return found

    def train(self, mode: bool = True) -> _Features:
        """Set the mode, but keep batch norm in evaluation mode, as in the backbone of the RetinaNets."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.body.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def build_two_stage(
    classes: int, bf16: bool, scaling: DataConfig = SCALING, finest_stride: int = STRIDES[0], **settings: Any
) -> FasterRCNNPeer:
    """torchvision's Faster R-CNN with our backbone; ``settings`` are further arguments of its class."""
    features = _Features(bf16, finest_stride)
    pooled = [str(level) for level in range(len(features.fpn.inner_blocks))]
    sizes = tuple((SMALLEST_ANCHOR * 2**level,) for level in range(len(pooled) + 1))  # and the level of max pooling
    model = FasterRCNNPeer(
        features,
        classes + 1,  # and the background
        min_size=scaling.size,
        max_size=scaling.longest,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        **settings,
    )
    default = model.roi_heads.box_roi_pool
    model.roi_heads.box_roi_pool = FastTrainingRoIAlign(pooled, default.output_size, default.sampling_ratio)
    model.rpn.head = InBf16(model.rpn.head, bf16)
    model.roi_heads.box_head = InBf16(model.roi_heads.box_head, bf16)
    model.roi_heads.box_predictor = InBf16(model.roi_heads.box_predictor, bf16)
    return model
