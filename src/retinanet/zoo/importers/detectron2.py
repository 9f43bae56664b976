"""Load RetinaNets of detectron2, with equal detections.

Differences between detectron2 and the paper: a stride in the first 1×1 convolution and BGR input (both follow the
backbone's origin, MSRA), sizes by Pillow, and suppression of boxes that are not clipped. File and line of each are in
``docs/migrating.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from retinanet.config import AnchorSpec, AssignConfig, DataConfig, DecodeConfig, LossConfig, ModelConfig
from retinanet.errors import ConfigError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers.assemble import PeerSettings, assemble, count_classes
from retinanet.zoo.importers.networks import Origin, name_classes, require_network
from retinanet.zoo.importers.options import DEFAULT_OPTIONS, Choices, ImportOptions, Note
from retinanet.zoo.importers.stored import BELOW_ONE, SIDES, TINY, Stored

_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_RATIOS = (0.5, 1.0, 2.0)

# Tensors that older versions stored and that no version reads.
_IGNORED = re.compile(r"pixel_(mean|std)|anchor_generator\.cell_anchors\.\d+")


def load_detectron2(
    checkpoint: Mapping[str, Any], options: ImportOptions = DEFAULT_OPTIONS, note: Note = lambda line: None
) -> tuple[RetinaNet, ModelInfo]:
    """Convert a RetinaNet of detectron2; return a model of this package on the CPU, and its description.

    Names of the tensors do not tell the stride's position, the order of colors, the normalization, anchor sizes and
    thresholds. They are taken from ``options``, from ``options.config`` (the ``config.yaml`` beside the checkpoint),
    from ``pixel_mean`` and ``pixel_std`` of older checkpoints, or they are detectron2's defaults.

    Args:
        checkpoint: a state dict or a checkpoint that holds one; ``.pkl`` files of the model zoo, too.
        options: settings that the checkpoint does not tell.
        note: called with each remark about a choice that was made.

    Raises:
        CheckpointError: it is not a RetinaNet of detectron2, or a tensor is missing or has a wrong shape.
        ConfigError: ``options.config`` cannot be read, or describes another detector.
    """
    network = require_network(checkpoint, ORIGIN)
    config = _read_config(options.config)
    choices = Choices("detectron2")
    settings = _settings(network.state, config, options, choices)
    state = {_ours(key): value for key, value in network.state.items() if not _IGNORED.fullmatch(key)}
    state = _with_statistics(state)
    classes = name_classes(checkpoint, count_classes(state, settings.anchors, ORIGIN), options.classes, note)
    loaded = assemble(state, settings, classes, ORIGIN)
    for line in network.notes:
        note(line)
    choices.explain(note)
    return loaded


def _with_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the statistics that frozen batch norm of early versions did not store: mean 0 and variance 1."""
    added: dict[str, Tensor] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(backbone\.body\..*(?:bn\d|downsample\.1)\.)weight", key):
            added |= {f"{match[1]}running_mean": torch.zeros_like(value)}
            added |= {f"{match[1]}running_var": torch.ones_like(value)}
    return added | state


def _read_config(path: Path | None) -> Stored:
    """The settings in a ``config.yaml``; empty if there is none.

    Raises:
        ConfigError: it cannot be read, or it is of another detector.
    """
    if path is None:
        return Stored({}, "")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable YAML file ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(values, dict) or "MODEL" not in values:
        raise ConfigError(f"{path}: not a configuration of detectron2; expected the config.yaml of a training")
    config = Stored(values, str(path))
    model = config.inner("MODEL")
    model.choice("META_ARCHITECTURE", "RetinaNet")
    model.inner("ANCHOR_GENERATOR").choice("NAME", "DefaultAnchorGenerator")
    model.inner("FPN").choice("FUSE_TYPE", "sum")
    model.inner("RESNETS").choice("RES5_DILATION", 1)
    return config


def _settings(state: Mapping[str, Tensor], config: Stored, options: ImportOptions, choices: Choices) -> PeerSettings:
    choose, model, test = choices.choose, config.inner("MODEL"), config.inner("INPUT")
    mean, std = (_three(state.get(f"pixel_{name}")) for name in ("mean", "std"))
    mean = model.three("PIXEL_MEAN") or mean
    std = model.three("PIXEL_STD", positive=True) or std
    at_1x1 = model.inner("RESNETS").flag("STRIDE_IN_1X1")
    if at_1x1 is None and std is not None:
        at_1x1 = max(std) == 1  # backbones of MSRA have both
    colors = {"BGR": "bgr", "RGB": "rgb", None: None}[test.choice("FORMAT", "BGR", "RGB")]
    if colors is None and mean is not None:
        colors = "bgr" if mean[0] < mean[2] else "rgb"
    stride_in = choose("--stride-in", options.stride_in, None if at_1x1 is None else "1x1" if at_1x1 else "3x3", "1x1")
    bgr = choose("--colors", options.colors, colors, "bgr") == "bgr"
    size = choose("--size", options.size, test.whole("MIN_SIZE_TEST", *SIDES), 800)
    longest = choose("--max-size", options.max_size, test.whole("MAX_SIZE_TEST", SIDES[0]), 1333)
    weights = model.inner("RETINANET").numbers("BBOX_REG_WEIGHTS", 4, positive=True) or (1.0,) * 4
    ours = (103.53, 116.28, 123.675)
    return PeerSettings(
        colors="bgr" if bgr else "rgb",
        mean=choose("--mean", options.mean, mean, ours if bgr else (ours[2], ours[1], ours[0])),
        std=choose("--std", options.std, std, (1.0, 1.0, 1.0)),
        anchors=_anchors(model.inner("ANCHOR_GENERATOR"), options, choices),
        data=DataConfig(size=size, max_size=max(size, longest), resize="pillow", crowd="drop"),
        decode=_decoding(config),
        assign=AssignConfig(force_best=True),
        loss=LossConfig(box="l1", normalizer="moving"),
        model=ModelConfig(stride_in="1x1" if stride_in == "1x1" else "3x3", norm_eps=options.norm_eps),
        delta_stds=tuple(1 / weight for weight in weights),
    )


def _decoding(config: Stored) -> DecodeConfig:
    test, count = config.inner("MODEL", "RETINANET"), config.inner("TEST").whole("DETECTIONS_PER_IMAGE", 1)
    score, nms = test.number("SCORE_THRESH_TEST", 0, BELOW_ONE), test.number("NMS_THRESH_TEST", TINY, 1)
    return DecodeConfig(
        score=0.05 if score is None else score,
        top_k=test.whole("TOPK_CANDIDATES_TEST", 1) or 1000,
        nms=nms or 0.5,
        max_detections=count or 100,
        clip="after_nms",
    )


def _anchors(config: Stored, options: ImportOptions, choices: Choices) -> AnchorSpec:
    """Anchors, as sizes times scales."""
    listed = _lists(config, "SIZES")
    listed = listed * 5 if len(listed) == 1 else listed
    shapes = set(_lists(config, "ASPECT_RATIOS"))
    scales = [[size / sizes[0] for size in sizes] for sizes in listed]
    alike = all(
        len(each) == len(scales[0]) and max(abs(a - b) for a, b in zip(each, scales[0], strict=True)) < 1e-6
        for each in scales
    )
    if len(listed) not in (0, 5) or not alike or len(shapes) > 1:
        raise ConfigError(f"{config.where}: the anchors of its levels differ in more than size; this is not supported")
    return AnchorSpec(
        sizes=choices.choose("--anchor-sizes", options.anchor_sizes, _first(listed), _SIZES),
        scales=choices.choose("--anchor-scales", options.anchor_scales, tuple(scales[0]) if scales else None, _SCALES),
        ratios=choices.choose("--anchor-ratios", options.anchor_ratios, shapes.pop() if shapes else None, _RATIOS),
        offset=config.number("OFFSET", 0, 1) or 0.0,
    )


def _lists(config: Stored, name: str) -> list[tuple[float, ...]]:
    """A list of lists of positive numbers; empty if it is missing."""
    value = config.get(name)
    if name not in config.values:
        return []
    if not isinstance(value, list) or not value:
        raise config.refuse(name, "lists of positive numbers")
    rows = Stored(dict(enumerate(value)), config.where, f"{config.group}{name}.")
    return [rows.numbers(row, positive=True) or () for row in rows.values]


def _first(lists: list[tuple[float, ...]]) -> tuple[float, ...] | None:
    return tuple(each[0] for each in lists) or None


def _three(value: Any) -> tuple[float, float, float] | None:
    """The numbers of a tensor with three elements."""
    return _triple(value.flatten().tolist()) if isinstance(value, Tensor) and value.numel() == 3 else None


def _triple(values: Any) -> tuple[float, float, float] | None:
    return (values[0], values[1], values[2]) if values else None


_STEM = (("stem.conv1.norm.", "bn1."), ("stem.conv1.", "conv1."))
_FPN = {"fpn_lateral": "lateral", "fpn_output": "output"}
_HEADS = {"cls_subnet": "classification.tower", "bbox_subnet": "regression.tower"}
_PREDICT = {"cls_score": "classification.predict", "bbox_pred": "regression.predict"}


def _ours(key: str) -> str:
    """Translate detectron2's name of a tensor."""
    if key.startswith("backbone.bottom_up."):
        key = key.removeprefix("backbone.bottom_up.")
        for theirs, ours in _STEM:
            key = re.sub(f"^{re.escape(theirs)}", ours, key)
        key = re.sub(r"^res([2-5])\.", lambda match: f"layer{int(match[1]) - 1}.", key)
        key = key.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")
        return "backbone.body." + re.sub(r"\.conv(\d)\.norm\.", r".bn\1.", key)
    if match := re.fullmatch(r"backbone\.(fpn_lateral|fpn_output)([3-5])\.(weight|bias)", key):
        return f"fpn.{_FPN[match[1]]}.{int(match[2]) - 3}.{match[3]}"
    if match := re.fullmatch(r"backbone\.top_block\.(p[67]\.\w+)", key):
        return f"fpn.{match[1]}"
    if match := re.fullmatch(r"head\.(cls_subnet|bbox_subnet)\.(\d+\.\w+)", key):
        return f"{_HEADS[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"head\.(cls_score|bbox_pred)\.(\w+)", key):
        return f"{_PREDICT[match[1]]}.{match[2]}"
    return key


def _theirs(key: str) -> str:
    """Return detectron2's name of a tensor, for messages."""
    if key.startswith("backbone.body."):
        key = key.removeprefix("backbone.body.")
        for theirs, ours in _STEM:
            key = re.sub(f"^{re.escape(ours)}", theirs, key)
        key = re.sub(r"^layer([1-4])\.", lambda match: f"res{int(match[1]) + 1}.", key)
        key = key.replace(".downsample.1.", ".shortcut.norm.").replace(".downsample.0.", ".shortcut.")
        return "backbone.bottom_up." + re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key)
    for theirs, ours in _FPN.items():
        key = re.sub(rf"^fpn\.{ours}\.(\d)\.", lambda m, name=theirs: f"backbone.{name}{int(m[1]) + 3}.", key)  # type: ignore[misc]
    key = re.sub(r"^fpn\.(p[67])\.", r"backbone.top_block.\1.", key)
    for theirs, ours in (_HEADS | _PREDICT).items():
        key = key.replace(f"{ours}.", f"head.{theirs}.")
    return key


ORIGIN = Origin("head.cls_score.weight", "expected the state dict of detectron2's RetinaNet", _theirs)
