"""Load RetinaNets of NVIDIA's retinanet-examples (odtk), with equal detections.

Differences between odtk and the paper: anchors in the middle of a cell whose last pixels count as inside, sides that
are rounded down, padding to multiples of 128, boxes clipped to the padded input, and no limit on their size. File and
line of each are in ``docs/migrating.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from retinanet.config import AnchorSpec, AssignConfig, DataConfig, DecodeConfig, LossConfig, ModelConfig
from retinanet.errors import CheckpointError, ConfigError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers.assemble import PeerSettings, assemble, count_classes
from retinanet.zoo.importers.networks import Origin, name_classes, require_network
from retinanet.zoo.importers.options import DEFAULT_OPTIONS, Choices, ImportOptions, Note
from retinanet.zoo.importers.stored import Stored

_SCALES = tuple(4 * 2 ** (step / 3) for step in range(3))
_RATIOS = (1.0, 2.0, 0.5)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STRIDES = (8, 16, 32, 64, 128)


def load_odtk(
    checkpoint: Mapping[str, Any], options: ImportOptions = DEFAULT_OPTIONS, note: Note = lambda line: None
) -> tuple[RetinaNet, ModelInfo]:
    """Convert a RetinaNet of odtk; return a model of this package on the CPU, and its description.

    Scales and ratios of the anchors are read from the checkpoint. It holds neither class names nor the size of images;
    they are taken from ``options``, or are odtk's defaults.

    Args:
        checkpoint: what odtk saved, or its ``state_dict``.
        options: settings that the checkpoint does not tell.
        note: called with each remark about a choice that was made.

    Raises:
        CheckpointError: it is not such a RetinaNet, or a tensor is missing or has a wrong shape.
        ConfigError: an option is not one of odtk's, or the anchors in the checkpoint are not positive numbers.
    """
    network = require_network(checkpoint, ORIGIN)
    unused = [f"--{name.replace('_', '-')}" for name in ("config", "stride_in", "colors") if getattr(options, name)]
    if unused:
        raise ConfigError(f"{unused[0]} does not apply to odtk, which has no such choice; leave it out")
    _require_supported(checkpoint, network.state)
    choices = Choices("odtk")
    settings = _settings(checkpoint, options, choices)
    state = {_ours(key): value for key, value in network.state.items() if ".features.fc." not in key}
    classes = name_classes(checkpoint, count_classes(state, settings.anchors, ORIGIN), options.classes, note)
    loaded = assemble(state, settings, classes, ORIGIN)
    for line in network.notes:
        note(line)
    choices.explain(note, config=False)
    return loaded


def _require_supported(checkpoint: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse rotated boxes, several backbones in one model, and MobileNets.

    Raises:
        CheckpointError: with what was found.
    """
    if not (_absent(checkpoint.get("angles")) and _absent(checkpoint.get("rotated_bbox"))):
        raise ORIGIN.refuse("found one with rotated boxes, which are not supported")
    found = {key.split(".")[1] for key in state if key.startswith("backbones.")}
    if len(found) != 1:
        listed = ", ".join(sorted(found)) or "none"
        raise ORIGIN.refuse(f"it has {len(found)} backbones ({listed}); models with one are supported")
    if "MobileNet" in next(iter(found)):
        raise CheckpointError(f"{ORIGIN.expected}; its backbone is {found.pop()}; ResNets and ResNeXts are supported")


def _absent(value: Any) -> bool:
    """Whether a checkpoint without rotated boxes may hold this value."""
    return value is None or value is False or (isinstance(value, list | tuple) and not value)


def _settings(checkpoint: Mapping[str, Any], options: ImportOptions, choices: Choices) -> PeerSettings:
    choose = choices.choose
    size = choose("--size", options.size, None, 800)
    max_size = choose("--max-size", options.max_size, None, 1333)
    stored = Stored(checkpoint, "odtk's checkpoint").given
    scales = stored.numbers("scales", positive=True)
    sizes = tuple(scales[0] * stride for stride in _STRIDES) if scales else None
    relative = tuple(scale / scales[0] for scale in scales) if scales else None
    ratios = stored.numbers("ratios", positive=True)
    mean, std = (_of_255(values) for values in (_MEAN, _STD))
    return PeerSettings(
        colors="rgb",
        mean=options.mean or mean,
        std=options.std or std,
        anchors=AnchorSpec(
            sizes=choose("--anchor-sizes", options.anchor_sizes, sizes, tuple(4.0 * stride for stride in _STRIDES)),
            scales=choose("--anchor-scales", options.anchor_scales, relative, tuple(s / 4 for s in _SCALES)),
            ratios=choose("--anchor-ratios", options.anchor_ratios, ratios, _RATIOS),
            offset=0.5,
            layout="inclusive",
        ),
        data=DataConfig(size=size, max_size=max(size, max_size), resize="pillow_floor", pad_to=128, crowd="object"),
        decode=DecodeConfig(top_k=1000, max_detections=100, clip="padded", size_limit="none"),
        assign=AssignConfig(),
        loss=LossConfig(),
        model=ModelConfig(norm_eps=options.norm_eps),
    )


def _of_255(values: tuple[float, float, float]) -> tuple[float, float, float]:
    return values[0] * 255, values[1] * 255, values[2] * 255


_FPN = {"lateral": "lateral", "smooth": "output"}
_HEADS = {"cls_head": "classification", "box_head": "regression"}

# odtk's heads always have four hidden convolutions; the predicting one comes after their ReLUs.
_PREDICTING = 8


def _ours(key: str) -> str:
    """Translate odtk's name of a tensor."""
    key = re.sub(r"^backbones\.[^.]+\.", "", key)
    if key.startswith("features."):
        return "backbone.body." + key.removeprefix("features.")
    if match := re.fullmatch(r"(lateral|smooth)([3-5])\.(\w+)", key):
        return f"fpn.{_FPN[match[1]]}.{int(match[2]) - 3}.{match[3]}"
    if match := re.fullmatch(r"pyramid([67])\.(\w+)", key):
        return f"fpn.p{match[1]}.{match[2]}"
    if match := re.fullmatch(r"(cls_head|box_head)\.(\d+)\.(\w+)", key):
        place = int(match[2])
        layer = "predict" if place == _PREDICTING else f"tower.{place}"
        return f"{_HEADS[match[1]]}.{layer}.{match[3]}"
    return key


def _theirs(key: str) -> str:
    """Return odtk's name of a tensor, for messages."""
    key = re.sub(r"^backbone\.body\.", "backbones.*.features.", key)
    for theirs, ours in _FPN.items():
        key = re.sub(rf"^fpn\.{ours}\.(\d)\.", lambda m, name=theirs: f"backbones.*.{name}{int(m[1]) + 3}.", key)  # type: ignore[misc]
    key = re.sub(r"^fpn\.p([67])\.", r"backbones.*.pyramid\1.", key)
    for theirs, ours in _HEADS.items():
        key = key.replace(f"{ours}.tower.", f"{theirs}.").replace(f"{ours}.predict.", f"{theirs}.{_PREDICTING}.")
    return key


ORIGIN = Origin("cls_head.8.weight", "expected the state dict of odtk's RetinaNet", _theirs)
