"""torchvision's RetinaNet and its training step, the other side of most cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.data.loader import Batch


def torchvision_retinanet(classes: int) -> Any:
    """torchvision's ``retinanet_resnet50_fpn`` with batch norm, stem and stage 1 frozen, as with published weights.

    Without weights, torchvision's own function would make a model in which all these layers are trainable. The random
    weights give hundreds of detections for each image.
    """
    torch.manual_seed(0)
    trunk = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(trunk, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    peer = RetinaNet(backbone, num_classes=classes).eval()
    overwrite_eps(peer, 0.0)
    with torch.no_grad():
        peer.head.classification_head.cls_logits.weight.normal_(std=0.05)
        peer.head.classification_head.cls_logits.bias.fill_(-4.0)
    return peer


def set_input_size(peer: Any, side: int) -> None:
    """Let the model scale images so that no side is longer than ``side`` pixels."""
    peer.transform.min_size, peer.transform.max_size = (side,), side


def torchvision_step(side: int) -> Callable[[Batch], None]:
    """A training step of torchvision's RetinaNet with 80 classes on images of ``side`` pixels."""
    peer = torchvision_retinanet(80).train()
    set_input_size(peer, side)
    trained = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def step(batch: Batch) -> None:
        targets = [{"boxes": b, "labels": label} for b, label in zip(batch.boxes, batch.labels, strict=True)]
        losses = peer([image.float() / 255 for image in batch.images], targets)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()

    return step
