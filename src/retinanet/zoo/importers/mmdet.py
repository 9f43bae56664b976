"""Load RetinaNets of mmdetection 2 and 3, with equal detections.

Differences between mmdetection and the paper: no ReLU before P7, OpenCV's resizing in whole numbers, and a limit on how
small a box may be. Backbones of style ``caffe`` also have the stride in the first 1×1 convolution, and BGR input. File
and line of each are in ``docs/migrating.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from retinanet.config import AnchorSpec, AssignConfig, DataConfig, DecodeConfig, LossConfig, ModelConfig
from retinanet.errors import ConfigError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers.assemble import PeerSettings, assemble, count_classes
from retinanet.zoo.importers.literal_config import at, numbers, read_literals, steps
from retinanet.zoo.importers.networks import Origin, name_classes, require_network
from retinanet.zoo.importers.options import DEFAULT_OPTIONS, Choices, ImportOptions, Note

_STRIDES = (8.0, 16.0, 32.0, 64.0, 128.0)
_RATIOS = (0.5, 1.0, 2.0)
_RGB = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_BGR = ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


def load_mmdet(
    checkpoint: Mapping[str, Any], options: ImportOptions = DEFAULT_OPTIONS, note: Note = lambda line: None
) -> tuple[RetinaNet, ModelInfo]:
    """Convert a RetinaNet of mmdetection 2 or 3; return a model of this package on the CPU, and its description.

    What names of the tensors do not tell is taken from ``options``, from ``options.config``, from the configuration
    that the checkpoint holds in ``meta``, or it is the default of ``retinanet_r50_fpn_1x_coco``.

    Args:
        checkpoint: a state dict or a checkpoint that holds one.
        options: settings that the checkpoint does not tell.
        note: called with each remark about a choice that was made.

    Raises:
        CheckpointError: it is not a RetinaNet of mmdetection, or a tensor is missing or has a wrong shape.
        ConfigError: ``options.config`` cannot be read, or the configuration describes another detector.
    """
    network = require_network(checkpoint, ORIGIN)
    old = next((key for key in network.state if re.fullmatch(r"bbox_head\.(cls|reg)_convs\.\d+\.weight", key)), None)
    if old is not None:
        raise ORIGIN.refuse(
            f"{old!r} is a name of mmdetection 0.x, whose anchors are other ones; versions 2 and 3 are read"
        )
    config = _configuration(checkpoint, options)
    choices = Choices("mmdetection")
    settings = _settings(config, options, choices)
    norms = any(re.fullmatch(r"bbox_head\.cls_convs\.\d+\.gn\.weight", key) for key in network.state)
    state = {_ours(key, layers=3 if norms else 2): value for key, value in network.state.items()}
    classes = name_classes(checkpoint, count_classes(state, settings.anchors, ORIGIN), options.classes, note)
    loaded = assemble(state, settings, classes, ORIGIN)
    for line in network.notes:
        note(line)
    choices.explain(note)
    return loaded


def _configuration(checkpoint: Mapping[str, Any], options: ImportOptions) -> dict[str, Any]:
    """The configuration in ``options.config`` or in the checkpoint's ``meta``; empty if there is none.

    Raises:
        ConfigError: ``options.config`` cannot be read, or it is of another detector.
    """
    meta = checkpoint.get("meta")
    text, where = at(meta, "cfg") or at(meta, "config"), "the configuration in its meta"
    if options.config is not None:
        where = str(options.config)
        try:
            text = options.config.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{options.config}: cannot be read ({str(error)[:120]})") from error
    try:
        config = read_literals(text) if isinstance(text, str) else {}
    except ValueError as error:
        if options.config is None:
            return {}
        raise ConfigError(f"{where}: not a configuration of mmdetection; {str(error)[:120]}") from error
    if options.config is not None and not isinstance(config.get("model"), dict):
        hint = "; it starts from others, so give the one that the training wrote" if "_base_" in config else ""
        raise ConfigError(f"{where}: not a configuration of mmdetection, 'model = dict(…)' is missing{hint}")
    _require_supported(config, where)
    return config


def _require_supported(config: Mapping[str, Any], where: str) -> None:
    """Refuse what the names of the tensors do not show.

    Raises:
        ConfigError: with the setting and the expected values.
    """
    expected = {
        ("type",): ("RetinaNet",),
        ("neck", "type"): ("FPN",),
        ("neck", "add_extra_convs"): ("on_input", "on_output"),
        ("bbox_head", "type"): ("RetinaHead", "RetinaSepBNHead"),
        ("bbox_head", "anchor_generator", "type"): ("AnchorGenerator",),
        ("bbox_head", "bbox_coder", "type"): ("DeltaXYWHBBoxCoder",),
        ("test_cfg", "nms", "type"): ("nms",),
        ("bbox_head", "loss_cls", "use_sigmoid"): (True,),
    }
    for keys, values in expected.items():
        found = at(config, "model", *keys)
        if found is not None and found not in values:
            raise ConfigError(f"{where}: model.{'.'.join(keys)} is {found!r}; expected {' or '.join(map(str, values))}")


def _settings(config: Mapping[str, Any], options: ImportOptions, choices: Choices) -> PeerSettings:
    choose = choices.choose
    model = config.get("model", {})
    test = at(model, "test_cfg") or config.get("test_cfg") or {}
    pipeline = list(steps(config.get("test_pipeline") or at(config, "data", "test", "pipeline")))
    mean, std, in_rgb, pad_to = _normalization(config, pipeline)
    style = at(model, "backbone", "style")
    stored: Literal["1x1", "3x3"] | None = {"caffe": "1x1", "pytorch": "3x3"}.get(style)  # type: ignore[assignment]
    default_stride: Literal["1x1", "3x3"] = "3x3"
    stride_in = choose("--stride-in", options.stride_in, stored, default_stride)
    colors = None if in_rgb is None else "rgb" if in_rgb else "bgr"
    bgr = choose("--colors", options.colors, colors, "bgr" if stride_in == "1x1" else "rgb") == "bgr"
    default = _BGR if bgr else _RGB
    short, long = _input_size(pipeline)
    size = choose("--size", options.size, short, 800)
    max_size = choose("--max-size", options.max_size, long, 1333)
    coder = at(model, "bbox_head", "bbox_coder")
    return PeerSettings(
        colors="bgr" if bgr else "rgb",
        mean=choose("--mean", options.mean, mean, default[0]),
        std=choose("--std", options.std, std, default[1]),
        anchors=_anchors(at(model, "bbox_head", "anchor_generator"), options, choices),
        data=DataConfig(size=size, max_size=max(size, max_size), resize="opencv", pad_to=pad_to, crowd="drop"),
        decode=DecodeConfig(
            score=test.get("score_thr", 0.05),
            top_k=test.get("nms_pre", 1000),
            nms=at(test, "nms", "iou_threshold") or at(test, "nms", "iou_thr") or 0.5,
            max_detections=test.get("max_per_img", 100),
            size_limit="both",
        ),
        assign=AssignConfig(force_best=True),
        loss=LossConfig(box="l1", normalizer="rank"),
        model=ModelConfig(
            stride_in=stride_in,
            relu_before_p7=bool(at(model, "neck", "relu_before_extra_convs")),
            norm_eps=options.norm_eps,
        ),
        ratio_major=True,
        delta_means=numbers(at(coder, "target_means"), 4) or (0.0,) * 4,
        delta_stds=numbers(at(coder, "target_stds"), 4) or (1.0,) * 4,
    )


Three = tuple[float, float, float]


def _normalization(
    config: Mapping[str, Any], pipeline: list[Mapping[str, Any]]
) -> tuple[Three | None, Three | None, bool | None, int]:
    """Mean, standard deviation and whether they are those of RGB, None where unknown; and the multiple of the padding.

    Version 3 has them in the model, version 2 in the pipeline.
    """
    inside = at(config, "model", "data_preprocessor")
    of_pipeline = next((step for step in pipeline if step.get("type") == "Normalize"), config.get("img_norm_cfg"))
    pad = next((step for step in pipeline if step.get("type") == "Pad"), None)
    pad_to = at(inside, "pad_size_divisor") or at(pad, "size_divisor") or 32
    if not isinstance(pad_to, int) or pad_to < 32 or pad_to % 32:
        raise ConfigError(f"mmdetection's configuration pads images to multiples of {pad_to}; expected one of 32")
    source, key = (inside, "bgr_to_rgb") if inside else (of_pipeline, "to_rgb")
    mean, std = (numbers(at(source, name), 3) for name in ("mean", "std"))
    in_rgb = at(source, key)
    if in_rgb is None and mean is not None:
        in_rgb = key == "to_rgb"  # the defaults of Normalize and of the data preprocessor
    return _three(mean), _three(std), in_rgb, pad_to


def _three(values: tuple[float, ...] | None) -> Three | None:
    return (values[0], values[1], values[2]) if values else None


def _input_size(pipeline: list[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """Limits of the shorter and the longer side; None if unknown."""
    for step in pipeline:
        scale = numbers(step.get("scale") or step.get("img_scale"), 2)
        if scale is not None:
            if step.get("keep_ratio") is False:
                raise ConfigError("mmdetection's configuration resizes without keep_ratio; this is not supported")
            return int(min(scale)), int(max(scale))
    return None, None


def _anchors(generator: Any, options: ImportOptions, choices: Choices) -> AnchorSpec:
    """Anchors, from the sides that an octave begins with and the number of scales in it, or from scales.

    Raises:
        ConfigError: the strides are not those of P3–P7, or the anchors are not described.
    """
    strides = numbers(at(generator, "strides")) or _STRIDES
    if strides != _STRIDES:
        raise ConfigError(f"mmdetection's configuration has anchors of strides {strides}; expected {_STRIDES}")
    if generator is not None and at(generator, "scale_major") is False:
        raise ConfigError("mmdetection's configuration has scale_major=False; expected True")
    bases = numbers(at(generator, "base_sizes"), 5) or strides
    octave, count = at(generator, "octave_base_scale"), at(generator, "scales_per_octave")
    scales = numbers(at(generator, "scales"))
    if octave is not None and isinstance(count, int):
        scales = tuple(octave * 2 ** (step / count) for step in range(count))
    sizes = tuple(scales[0] * base for base in bases) if scales else None
    relative = tuple(scale / scales[0] for scale in scales) if scales else None
    ours = AnchorSpec()
    return AnchorSpec(
        sizes=choices.choose("--anchor-sizes", options.anchor_sizes, sizes, ours.sizes),
        scales=choices.choose("--anchor-scales", options.anchor_scales, relative, ours.scales),
        ratios=choices.choose("--anchor-ratios", options.anchor_ratios, numbers(at(generator, "ratios")), _RATIOS),
        offset=float(at(generator, "center_offset") or 0.0),
    )


def _ours(key: str, layers: int) -> str:
    """Translate mmdetection's name of a tensor; a hidden layer has ``layers``: convolution, norm (or none), ReLU."""
    if key.startswith("backbone."):
        return "backbone.body." + key.removeprefix("backbone.")
    if match := re.fullmatch(r"neck\.lateral_convs\.(\d+)\.conv\.(\w+)", key):
        return f"fpn.lateral.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"neck\.fpn_convs\.([0-4])\.conv\.(\w+)", key):
        level = int(match[1])
        return f"fpn.output.{level}.{match[2]}" if level < 3 else f"fpn.p{level + 3}.{match[2]}"
    if match := re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|gn)\.(\w+)", key):
        place = layers * int(match[2]) + (match[3] == "gn")
        return f"{_SUBNETS[match[1]]}.tower.{place}.{match[4]}"
    if match := re.fullmatch(r"bbox_head\.retina_(cls|reg)\.(\w+)", key):
        return f"{_SUBNETS[match[1]]}.predict.{match[2]}"
    return key


_SUBNETS = {"cls": "classification", "reg": "regression"}


def _theirs(key: str) -> str:
    """Return mmdetection's name of a tensor, for messages."""
    if key.startswith("backbone.body."):
        return "backbone." + key.removeprefix("backbone.body.")
    key = re.sub(r"^fpn\.lateral\.(\d)\.", r"neck.lateral_convs.\1.conv.", key)
    key = re.sub(r"^fpn\.output\.(\d)\.", r"neck.fpn_convs.\1.conv.", key)
    key = re.sub(r"^fpn\.p([67])\.", lambda match: f"neck.fpn_convs.{int(match[1]) - 3}.conv.", key)
    for theirs, ours in _SUBNETS.items():
        key = re.sub(
            rf"^{ours}\.tower\.(\d+)\.",
            lambda match, name=theirs: f"bbox_head.{name}_convs.{int(match[1]) // 2}.conv.",  # type: ignore[misc]
            key,
        )
        key = key.replace(f"{ours}.predict.", f"bbox_head.retina_{theirs}.")
    return key


ORIGIN = Origin("bbox_head.retina_cls.weight", "expected the state dict of mmdetection's RetinaNet", _theirs)
