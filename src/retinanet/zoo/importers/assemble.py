"""Build the network of a peer (detectron2, mmdetection, odtk) from its tensors, renamed, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from retinanet.config import AnchorSpec, AssignConfig, Config, DataConfig, DecodeConfig, LossConfig, ModelConfig
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers.networks import Origin, convolution_shape, load_tensors, recognize_backbone

_SCORES, _DELTAS = "classification.predict", "regression.predict"


@dataclass(frozen=True)
class PeerSettings:
    """How a peer computes detections, as far as the names and shapes of its tensors do not tell.

    Attributes:
        colors: order of the channels of its input.
        mean: what is subtracted from each channel, 0–255, in that order.
        std: what each channel is divided by.
        anchors: the anchors; scales and ratios in the order of its outputs.
        ratio_major: its outputs are ordered ratio by ratio, and within a ratio scale by scale.
        delta_means: what is added to its four deltas, after they are multiplied by ``delta_stds``.
        delta_stds: factors of its four deltas.
        model: ``stride_in``, ``relu_before_p7`` and ``norm_eps``; the other fields are read from the tensors.
        assign: matching in its training.
        loss: losses of its training.
        data: resizing and padding.
        decode: post-processing.
    """

    colors: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    anchors: AnchorSpec
    data: DataConfig
    decode: DecodeConfig
    assign: AssignConfig
    loss: LossConfig
    model: ModelConfig
    ratio_major: bool = False
    delta_means: tuple[float, ...] = (0.0,) * 4
    delta_stds: tuple[float, ...] = field(default=(1.0,) * 4)


def count_classes(state: Mapping[str, Tensor], anchors: AnchorSpec, origin: Origin) -> int:
    """Return the number of classes.

    Raises:
        CheckpointError: the numbers of outputs are not those of classes and boxes of these anchors.
    """
    scores = convolution_shape(state, f"{_SCORES}.weight", origin)[0]
    deltas = convolution_shape(state, f"{_DELTAS}.weight", origin)[0]
    per_location = anchors.per_location
    if deltas != 4 * per_location or scores % per_location or scores == 0:
        rotated = "; rotated boxes are not supported" if deltas in (5 * per_location, 6 * per_location) else ""
        raise origin.refuse(
            f"the heads have {scores} and {deltas} outputs a location, not K and 4 for each of {per_location} "
            f"anchors{rotated}"
        )
    return scores // per_location


def assemble(
    state: Mapping[str, Tensor], settings: PeerSettings, classes: tuple[str, ...], origin: Origin
) -> tuple[RetinaNet, ModelInfo]:
    """Return a network on the CPU that computes the same as the peer's, and its description.

    Args:
        state: the tensors under the names of this package.
        settings: how the peer computes.
        classes: names of its outputs.
        origin: the peer.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    config = Config(
        model=_structure(state, settings, origin),
        anchors=settings.anchors,
        assign=settings.assign,
        loss=settings.loss,
        data=settings.data,
        decode=settings.decode,
    )
    model = RetinaNet.from_config(config.model, config.anchors, len(classes), pretrained=False)
    load_tensors(model, state, origin)
    mean, std = settings.mean, settings.std
    with torch.no_grad():
        if settings.colors == "bgr":
            mean, std = (mean[2], mean[1], mean[0]), (std[2], std[1], std[0])
            stem = model.backbone.body.get_parameter("conv1.weight")
            stem.copy_(stem.flip(1))
        _order_outputs(model, settings)
    model.backbone.mean, model.backbone.std = _of_255(mean), _of_255(std)
    return model.eval(), ModelInfo.of(model, classes, config)


def _structure(state: Mapping[str, Tensor], settings: PeerSettings, origin: Origin) -> ModelConfig:
    """Settings of the network that the tensors tell."""
    channels, p6_input = convolution_shape(state, "fpn.p6.weight", origin)[:2]
    group_norm = "classification.tower.1.weight" in state
    least = 64 if group_norm else 32  # group norm has 32 groups, and each needs at least two channels here
    if channels % 32 or channels < least:
        raise origin.refuse(f"the pyramid has {channels} channels, not a multiple of 32 that is at least {least}")
    backbone, stage_channels = recognize_backbone(state, origin)
    depth = sum(key.startswith("classification.tower.") and value.ndim == 4 for key, value in state.items())
    c5 = convolution_shape(state, "fpn.lateral.2.weight", origin)[1]
    bottlenecks = "backbone.body.layer1.0.conv3.weight" in state  # the blocks of ResNet-18 and 34 have no 1×1
    return replace(
        settings.model,
        backbone=backbone,
        stride_in=settings.model.stride_in if bottlenecks else "3x3",
        stage_channels=stage_channels,
        pretrained=False,
        channels=channels,
        subnet_depth=depth,
        subnet_norm="group" if group_norm else "none",
        p6_from="c5" if p6_input == c5 else "p5",
    )


def _order_outputs(model: RetinaNet, settings: PeerSettings) -> None:
    """Order the outputs scale by scale and ratio by ratio, and let the deltas be those of ``anchors.coding``."""
    ratios, scales = len(settings.anchors.ratios), len(settings.anchors.scales)
    for subnet in (model.classification, model.regression):
        for parameter in subnet.predict.parameters() if settings.ratio_major else ():
            by_ratio = parameter.view(ratios, scales, -1)
            parameter.copy_(by_ratio.transpose(0, 1).reshape(parameter.shape))
    anchors = settings.anchors.per_location
    stds = torch.tensor(settings.delta_stds).repeat(anchors)
    means = torch.tensor(settings.delta_means).repeat(anchors)
    predict = model.regression.predict
    assert predict.bias is not None
    predict.weight.mul_(stds[:, None, None, None])
    predict.bias.mul_(stds).add_(means)


def _of_255(values: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(value / 255 for value in values)
