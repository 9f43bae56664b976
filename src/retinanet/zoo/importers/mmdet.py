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
from retinanet.zoo.importers.literal_config import at, read_literals, steps
from retinanet.zoo.importers.networks import Origin, name_classes, require_network
from retinanet.zoo.importers.options import DEFAULT_OPTIONS, Choices, ImportOptions, Note
from retinanet.zoo.importers.stored import BELOW_ONE, SIDES, TINY, Stored

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


def _configuration(checkpoint: Mapping[str, Any], options: ImportOptions) -> Stored:
    """The configuration in ``options.config`` or in the checkpoint's ``meta``; empty if there is none.

    Raises:
        ConfigError: ``options.config`` cannot be read, or it is of another detector.
    """
    meta = checkpoint.get("meta")
    text, where = at(meta, "cfg") or at(meta, "config"), "mmdetection's configuration in meta"
    if options.config is not None:
        where = str(options.config)
        try:
            text = options.config.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{options.config}: cannot be read ({str(error)[:120]})") from error
    try:
        config = Stored(read_literals(text) if isinstance(text, str) else {}, where)
    except ValueError as error:
        if options.config is None:
            return Stored({}, where)
        raise ConfigError(f"{where}: not a configuration of mmdetection; {str(error)[:120]}") from error
    if options.config is not None and not isinstance(config.get("model"), dict):
        hint = "; it starts from others, so give the one that the training wrote" if config.get("_base_") else ""
        raise ConfigError(f"{where}: not a configuration of mmdetection, 'model = dict(…)' is missing{hint}")
    _require_supported(config.inner("model"))
    return config


def _require_supported(model: Stored) -> None:
    """Refuse what the names of the tensors do not show.

    Raises:
        ConfigError: with the setting and the expected values.
    """
    expected: dict[tuple[str, ...], tuple[Any, ...]] = {
        ("type",): ("RetinaNet",),
        ("backbone", "dilations"): ((1, 1, 1, 1), [1, 1, 1, 1]),
        ("backbone", "strides"): ((1, 2, 2, 2), [1, 2, 2, 2]),
        ("neck", "type"): ("FPN",),
        ("neck", "add_extra_convs"): ("on_input", "on_output", True),
        ("bbox_head", "type"): ("RetinaHead", "RetinaSepBNHead"),
        ("bbox_head", "anchor_generator", "type"): ("AnchorGenerator",),
        ("bbox_head", "anchor_generator", "scale_major"): (True,),
        ("bbox_head", "bbox_coder", "type"): ("DeltaXYWHBBoxCoder",),
        ("bbox_head", "bbox_coder", "add_ctr_clamp"): (False,),
        ("bbox_head", "bbox_coder", "clip_border"): (True,),
        ("bbox_head", "loss_cls", "use_sigmoid"): (True,),
        ("data_preprocessor", "pad_value"): (0, 0.0),
    }
    for (*groups, name), values in expected.items():
        model.inner(*groups).choice(name, *values)


def _settings(config: Stored, options: ImportOptions, choices: Choices) -> PeerSettings:
    choose, model = choices.choose, config.inner("model")
    pipeline = _test_pipeline(config)
    mean, std, in_rgb, pad_to = _normalization(config, pipeline)
    style = model.inner("backbone").choice("style", "caffe", "pytorch")
    stored: Literal["1x1", "3x3"] | None = {"caffe": "1x1", "pytorch": "3x3"}.get(style)  # type: ignore[assignment]
    default_stride: Literal["1x1", "3x3"] = "3x3"
    stride_in = choose("--stride-in", options.stride_in, stored, default_stride)
    colors = None if in_rgb is None else "rgb" if in_rgb else "bgr"
    bgr = choose("--colors", options.colors, colors, "bgr" if stride_in == "1x1" else "rgb") == "bgr"
    default = _BGR if bgr else _RGB
    short, long = _input_size(pipeline)
    size = choose("--size", options.size, short, 800)
    max_size = choose("--max-size", options.max_size, long, 1333)
    head = model.inner("bbox_head")
    coder = head.inner("bbox_coder")
    return PeerSettings(
        colors="bgr" if bgr else "rgb",
        mean=choose("--mean", options.mean, mean, default[0]),
        std=choose("--std", options.std, std, default[1]),
        anchors=_anchors(head.inner("anchor_generator").given, options, choices),
        data=DataConfig(size=size, max_size=max(size, max_size), resize="opencv", pad_to=pad_to, crowd="drop"),
        decode=_decoding(model.inner("test_cfg") if model.get("test_cfg") else config.inner("test_cfg")),
        assign=AssignConfig(force_best=True),
        loss=LossConfig(box="l1", normalizer="rank"),
        model=ModelConfig(
            stride_in=stride_in,
            relu_before_p7=bool(model.inner("neck").flag("relu_before_extra_convs")),
            norm_eps=options.norm_eps,
        ),
        ratio_major=True,
        delta_means=coder.numbers("target_means", 4) or (0.0,) * 4,
        delta_stds=coder.numbers("target_stds", 4, positive=True) or (1.0,) * 4,
    )


def _decoding(test: Stored) -> DecodeConfig:
    """Post-processing, from ``test_cfg``."""
    nms, score = test.inner("nms"), test.number("score_thr", 0, BELOW_ONE)
    nms.choice("type", "nms")
    nms.choice("class_agnostic", False)
    test.choice("min_bbox_size", 0, -1)
    thresholds = [nms.number(name, TINY, 1) for name in ("iou_threshold", "iou_thr")]
    return DecodeConfig(
        score=0.05 if score is None else score,
        top_k=test.whole("nms_pre", 1) or 1000,
        nms=thresholds[0] or thresholds[1] or 0.5,
        max_detections=test.whole("max_per_img", 1) or 100,
        size_limit="both",
    )


def _test_pipeline(config: Stored) -> list[Stored]:
    """The steps from an image file to the input of the network, those inside other steps after them.

    Raises:
        ConfigError: a step does not resize as this package can: with OpenCV, bilinear, keeping the aspect ratio.
    """
    listed = config.get("test_pipeline") or config.inner("data", "test").get("pipeline")
    try:
        listed = steps(listed)
    except ValueError as error:
        raise ConfigError(f"{config.where}: {error}") from error
    found = [Stored(step, config.where, "test_pipeline.").given for step in listed]
    for step in found:
        step.choice("imdecode_backend", "cv2", "turbojpeg")
        if step.get("type") == "Resize":
            step.choice("backend", "cv2")
            step.choice("interpolation", "bilinear")
            # The default of version 3, which names the size "scale", is False.
            if step.values.get("keep_ratio", "scale" not in step.values) is not True:
                raise step.refuse("keep_ratio", "True")
    return found


Three = tuple[float, float, float]


def _normalization(config: Stored, pipeline: list[Stored]) -> tuple[Three | None, Three | None, bool | None, int]:
    """Mean, standard deviation and whether they are those of RGB, None where unknown; and the multiple of the padding.

    Version 3 has them in the model, version 2 in the pipeline.
    """
    inside = config.inner("model", "data_preprocessor")
    # In a file that a user wrote, the step is dict(type="Normalize", **img_norm_cfg).
    steps_with_mean = (step for step in pipeline if step.get("type") == "Normalize" and "mean" in step.values)
    normalize = next(steps_with_mean, config.inner("img_norm_cfg"))
    pad = next((step for step in pipeline if step.get("type") == "Pad"), Stored({}, config.where))
    value = at(pad.get("pad_val"), "img") if isinstance(pad.get("pad_val"), dict) else pad.get("pad_val")
    if value not in (None, 0, [0, 0, 0], (0, 0, 0)):
        raise pad.refuse("pad_val", "0")
    if "size" in pad.values:
        raise pad.refuse("size", "size_divisor instead")
    source, key = (inside, "bgr_to_rgb") if inside.values else (normalize, "to_rgb")
    mean, std, in_rgb = source.three("mean"), source.three("std", positive=True), source.flag(key)
    if in_rgb is None and mean is not None:
        in_rgb = key == "to_rgb"  # the defaults of Normalize and of the data preprocessor
    multiples = inside.whole("pad_size_divisor", 0, 8192), pad.whole("size_divisor", 0, 8192)
    pad_to = next((multiple for multiple in multiples if multiple is not None), 32)
    if pad_to < 32 or pad_to % 32:
        raise ConfigError(f"{config.where}: images are padded to multiples of {pad_to}; expected a multiple of 32")
    return mean, std, in_rgb, pad_to


def _input_size(pipeline: list[Stored]) -> tuple[int | None, int | None]:
    """Limits of the shorter and the longer side; None if unknown.

    Raises:
        ConfigError: they are not two numbers of pixels, or the aspect ratio is not kept.
    """
    least, most = SIDES
    for step in pipeline:
        for name in ("scale", "img_scale"):
            if step.get("type") not in ("Resize", "MultiScaleFlipAug") or name not in step.values:
                continue
            value = step.get(name)
            listed = isinstance(value, list) and len(value) == 1
            scale = Stored({name: value[0]} if listed else step.values, step.where, step.group).numbers(name, 2)
            if scale is None or not all(side == int(side) for side in scale) or not least <= min(scale) <= most:
                raise step.refuse(name, f"two whole numbers, the smaller one from {least} to {most}")
            return int(min(scale)), int(max(scale))
    return None, None


def _anchors(generator: Stored, options: ImportOptions, choices: Choices) -> AnchorSpec:
    """Anchors, from the sides that an octave begins with and the number of scales in it, or from scales.

    Raises:
        ConfigError: the strides are not those of P3–P7, or the anchors are not described.
    """
    strides = generator.numbers("strides") or _STRIDES
    if strides != _STRIDES:
        raise generator.refuse("strides", str([int(stride) for stride in _STRIDES]))
    bases = generator.numbers("base_sizes", 5, positive=True) or strides
    scales = generator.numbers("scales", positive=True)
    octave, count = generator.number("octave_base_scale", 0.01, 1000), generator.whole("scales_per_octave", 1, 20)
    if octave is not None and count is not None:
        scales = tuple(octave * 2 ** (step / count) for step in range(count))
    sizes = tuple(scales[0] * base for base in bases) if scales else None
    relative = tuple(scale / scales[0] for scale in scales) if scales else None
    ratios = generator.numbers("ratios", positive=True)
    ours = AnchorSpec()
    return AnchorSpec(
        sizes=choices.choose("--anchor-sizes", options.anchor_sizes, sizes, ours.sizes),
        scales=choices.choose("--anchor-scales", options.anchor_scales, relative, ours.scales),
        ratios=choices.choose("--anchor-ratios", options.anchor_ratios, ratios, _RATIOS),
        offset=generator.number("center_offset", 0, 1) or 0.0,
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
