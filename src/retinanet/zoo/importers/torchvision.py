"""Load torchvision's RetinaNet weights (``retinanet_resnet50_fpn`` and ``_v2``), with equal detections.

Differences between torchvision and the paper are settings: P6 from P5 (first version), the anchor layout, bilinear
resizing to 800/1333 without antialiasing, 300 detections. The settings are taken from torchvision 0.26–0.29,
``models/detection/retinanet.py``, ``anchor_utils.py`` and ``transform.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from retinanet.config import AnchorSpec, AssignConfig, Config, DataConfig, DecodeConfig, LossConfig, ModelConfig
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers.checkpoints import find_class_names
from retinanet.zoo.importers.networks import (
    Origin,
    convolution_shape,
    load_tensors,
    recognize_backbone,
    require_names,
    require_network,
)

# Mean and standard deviation of the input of torchvision's ImageNet ResNets, and so of all its detectors.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_torchvision(
    state_dict: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    norm_eps: float | None = None,
    note: Callable[[str], object] = lambda line: None,
) -> tuple[RetinaNet, ModelInfo]:
    """Convert a torchvision RetinaNet; return a model of this package on the CPU, and its description.

    Both versions are recognized by their keys: only the second has group norm in the heads. Batch norm without
    ``num_batches_tracked`` is frozen and gets no epsilon, as in torchvision's published first version and in models
    fine-tuned from it. Prefixes such as ``model.`` (DeepForest) and ``module.`` are accepted, and so are the key
    names of older torchvision releases. A state dict does not hold anchor sizes, image size, mean and thresholds; these
    are torchvision's defaults.

    Args:
        state_dict: the model's state dict, or a checkpoint that holds it under any key. If it also holds a moving
            average of the weights (``model_ema``, ``ema_state_dict``, …), the average is used.
        classes: names of the network's outputs, in order. Unset: those in the checkpoint (``label_dict``,
            ``classes``, …), else COCO's for 91 outputs (with ``__background__`` and ``N/A`` at the indices that COCO
            leaves empty), else ``class 0``, ``class 1``, …
        norm_eps: epsilon of the batch norm. Set it if the rule above does not apply. A model with frozen batch norm
            that was trained from an ImageNet backbone, not from the published detector, needs 1e-5.
        note: called with each remark about a choice that was made.

    Raises:
        CheckpointError: the state dict is not of a torchvision RetinaNet, or a tensor is missing or has a wrong shape.
    """
    network = require_network(state_dict, ORIGIN)
    state = _canonical(network.state)
    config, num_classes = _describe(state, norm_eps)
    for line in network.notes:
        note(line)
    if classes is None:
        classes, key = find_class_names(state_dict, num_classes)
        if key:
            note(f"the class names are those of {key!r} in the checkpoint" if classes else key)
    names = _class_names(num_classes, classes)
    model = RetinaNet.from_config(config.model, config.anchors, num_classes, pretrained=False)
    model.backbone.mean, model.backbone.std = _MEAN, _STD
    layers = 3 if config.model.subnet_norm == "group" else 2
    load_tensors(model, _in_a_row(state, layers), replace(ORIGIN, theirs=partial(_theirs, layers=layers)))
    return model.eval(), ModelInfo.of(model, names, config)


def _canonical(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate torchvision's keys into those of this network."""
    result = {}
    for key, value in state.items():
        new = key
        # Releases before 0.13, and weights from that time, number convolutions and ReLUs in one list.
        if match := re.fullmatch(r"(head\.\w+\.conv)\.(\d+)\.(weight|bias)", new):
            new = f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
        new = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", new)
        new = new.replace("backbone.fpn.inner_blocks.", "fpn.lateral.")
        new = new.replace("backbone.fpn.layer_blocks.", "fpn.output.")
        new = re.sub(r"^(fpn\.\w+\.\d+)\.0\.", r"\1.", new)
        new = new.replace("backbone.fpn.extra_blocks.", "fpn.")
        new = new.replace("head.classification_head.cls_logits.", "classification.predict.")
        new = new.replace("head.regression_head.bbox_reg.", "regression.predict.")
        new = new.replace("head.classification_head.conv.", "classification.tower.")
        new = new.replace("head.regression_head.conv.", "regression.tower.")
        result[new] = value
    return result


def _describe(state: dict[str, Tensor], norm_eps: float | None) -> tuple[Config, int]:
    """Return the settings with which this network computes the same as torchvision's, and the number of classes."""
    group_norm = any(re.fullmatch(r"classification\.tower\.\d+\.1\.weight", key) for key in state)
    classes = convolution_shape(state, "classification.predict.weight", ORIGIN)[0]
    boxes = convolution_shape(state, "regression.predict.weight", ORIGIN)[0]
    spec = AnchorSpec(layout="torchvision")
    if boxes != 4 * spec.per_location or classes % spec.per_location or classes == 0:
        raise ORIGIN.refuse(
            f"the heads have {classes} and {boxes} outputs a location, "
            f"not K and 4 for each of {spec.per_location} anchors"
        )
    channels, p6_input = convolution_shape(state, "fpn.p6.weight", ORIGIN)[:2]
    counts_batches = any(key.endswith("num_batches_tracked") for key in state)
    depth = len({key.split(".")[2] for key in state if key.startswith("classification.tower.")})
    least = 64 if group_norm else 32  # group norm has 32 groups, and each needs at least two channels here
    if channels % 32 or channels < least:
        raise ORIGIN.refuse(f"the pyramid has {channels} channels, not a multiple of 32 that is at least {least}")
    if norm_eps is None and not counts_batches:
        norm_eps = 0.0
    backbone, stage_channels = recognize_backbone(state, ORIGIN)
    config = Config(
        model=ModelConfig(
            backbone=backbone,
            stage_channels=stage_channels,
            pretrained=False,
            norm_eps=norm_eps,
            channels=channels,
            subnet_depth=depth,
            subnet_norm="group" if group_norm else "none",
            p6_from="p5" if p6_input == channels else "c5",
        ),
        anchors=spec,
        assign=AssignConfig(force_best=True),
        loss=LossConfig(box="giou" if group_norm else "l1", normalizer="image"),
        data=DataConfig(size=800, max_size=1333, resize="bilinear", crowd="drop"),
        decode=DecodeConfig(top_k=1000, max_detections=300),
    )
    return config, classes // spec.per_location


def _in_a_row(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Number the layers of the towers as this package does.

    torchvision nests the ``layers`` of a hidden layer (convolution, norm, ReLU); this package lists all in a row.
    """
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(\w+\.tower)\.(\d+)\.(\d+)\.(weight|bias)", key)
        new = f"{match[1]}.{layers * int(match[2]) + int(match[3])}.{match[4]}" if match else key
        renamed[new] = value
    return renamed


def _theirs(key: str, layers: int = 1) -> str:
    """Return torchvision's name of a tensor of this network, for messages."""
    if match := re.fullmatch(r"(\w+)\.tower\.(\d+)\.(\w+)", key):
        block, layer = divmod(int(match[2]), layers)
        return f"head.{match[1]}_head.conv.{block}.{layer}.{match[3]}"
    key = re.sub(r"^fpn\.lateral\.(\d+)\.", r"backbone.fpn.inner_blocks.\1.0.", key)
    key = re.sub(r"^fpn\.output\.(\d+)\.", r"backbone.fpn.layer_blocks.\1.0.", key)
    key = re.sub(r"^fpn\.(p[67])\.", r"backbone.fpn.extra_blocks.\1.", key)
    key = key.replace("classification.predict.", "head.classification_head.cls_logits.")
    return key.replace("regression.predict.", "head.regression_head.bbox_reg.")


ORIGIN = Origin(
    "head.classification_head.cls_logits.weight",
    "expected the state dict of torchvision's retinanet_resnet50_fpn or retinanet_resnet50_fpn_v2",
    _theirs,
)


def _class_names(count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None:
        return require_names(count, names)
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    coco = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if count == len(coco):
        return tuple(f"{name} {index}" if name == "N/A" else name for index, name in enumerate(coco))
    return tuple(f"class {index}" for index in range(count))
