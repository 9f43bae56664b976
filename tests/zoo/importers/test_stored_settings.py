"""Settings in the files of other programs: each value is used, or refused in one line that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinanet.errors import CheckpointError, ConfigError, RetinaNetError
from retinanet.zoo.importers import ImportOptions
from retinanet.zoo.importers.checkpoints import find_class_names
from retinanet.zoo.importers.detectron2 import load_detectron2
from retinanet.zoo.importers.literal_config import read_literals, steps
from retinanet.zoo.importers.mmdet import load_mmdet
from retinanet.zoo.importers.odtk import load_odtk

# Settings are read before tensors. With one tensor, an accepted configuration ends with a missing tensor.
ACCEPTED = "is missing or not a convolution"

DETECTRON2 = {
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 40], [64, 80], [128, 160], [256, 320], [512, 640]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}

MMDET = {
    "model.type": "RetinaNet",
    "model.backbone.style": "pytorch",
    "model.backbone.dilations": (1, 1, 1, 1),
    "model.backbone.strides": (1, 2, 2, 2),
    "model.neck.type": "FPN",
    "model.neck.add_extra_convs": "on_input",
    "model.neck.relu_before_extra_convs": False,
    "model.bbox_head.type": "RetinaHead",
    "model.bbox_head.loss_cls.use_sigmoid": True,
    "model.bbox_head.anchor_generator.type": "AnchorGenerator",
    "model.bbox_head.anchor_generator.octave_base_scale": 4,
    "model.bbox_head.anchor_generator.scales_per_octave": 3,
    "model.bbox_head.anchor_generator.scales": None,
    "model.bbox_head.anchor_generator.base_sizes": None,
    "model.bbox_head.anchor_generator.ratios": [0.5, 1.0, 2.0],
    "model.bbox_head.anchor_generator.strides": [8, 16, 32, 64, 128],
    "model.bbox_head.anchor_generator.center_offset": 0.0,
    "model.bbox_head.bbox_coder.type": "DeltaXYWHBBoxCoder",
    "model.bbox_head.bbox_coder.target_means": [0.0, 0.0, 0.0, 0.0],
    "model.bbox_head.bbox_coder.target_stds": [1.0, 1.0, 1.0, 1.0],
    "model.bbox_head.bbox_coder.add_ctr_clamp": False,
    "model.data_preprocessor.mean": [123.675, 116.28, 103.53],
    "model.data_preprocessor.std": [58.395, 57.12, 57.375],
    "model.data_preprocessor.bgr_to_rgb": True,
    "model.data_preprocessor.pad_size_divisor": 32,
    "model.data_preprocessor.pad_value": 0,
    "model.test_cfg.score_thr": 0.05,
    "model.test_cfg.nms_pre": 1000,
    "model.test_cfg.max_per_img": 100,
    "model.test_cfg.min_bbox_size": 0,
    "model.test_cfg.nms.type": "nms",
    "model.test_cfg.nms.iou_threshold": 0.5,
    "img_norm_cfg.mean": [123.675, 116.28, 103.53],
    "img_norm_cfg.to_rgb": True,
    "test_pipeline": [{"type": "Resize", "scale": (1333, 800), "keep_ratio": True}],
    "data.test.pipeline": [],
}

ODTK = {"scales": [4.0, 5.0], "ratios": [1.0, 2.0, 0.5], "angles": None, "rotated_bbox": False}

Read = Callable[[dict[str, Any], Path], object]


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``; a value in the place of a group replaces the group."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        inside: Any = result
        for group in groups:
            inside = inside.setdefault(group, {})
            if not isinstance(inside, dict):
                break
        else:
            inside[name] = value
    return result


def read_detectron2(values: dict[str, Any], folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(nested(values), allow_unicode=True), encoding="utf-8")
    load_detectron2({"head.cls_score.weight": torch.zeros(1)}, ImportOptions(config=path))


def read_mmdet(values: dict[str, Any], folder: Path) -> None:
    text = "\n".join(f"{key} = {written(value)}" for key, value in nested(values).items())
    load_mmdet({"state_dict": {"bbox_head.retina_cls.weight": torch.zeros(1)}, "meta": {"cfg": text}})


def written(value: Any) -> str:
    """A value as Python text; infinity and NaN, which have no literal, as large numbers or None."""
    return re.sub(r"\bnan\b", "None", re.sub(r"\binf\b", "1e999", repr(value)))


def read_odtk(values: dict[str, Any], folder: Path) -> None:
    load_odtk({"state_dict": {"backbones.R.x": torch.zeros(1), "cls_head.8.weight": torch.zeros(1)}, **values})


PROGRAMS: dict[str, tuple[Read, dict[str, Any]]] = {
    "detectron2": (read_detectron2, DETECTRON2),
    "mmdet": (read_mmdet, MMDET),
    "odtk": (read_odtk, ODTK),
}

numbers = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from([0, -1, 1, 2, 0.5, 32, 800, -0.0, 1e-300, 1e300, 2**31]),
)
atoms = st.one_of(
    st.none(), st.booleans(), numbers, st.text("abc1.\n'ü", max_size=5), st.sampled_from(["BGR", "nms", "1e5", "nan"])
)
odd_values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.sampled_from(["type", "scale", "transforms", "img", "nms", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def answer(program: str, changes: dict[str, Any], folder: Path) -> str:
    """The line with which a configuration with ``changes`` is refused; :data:`ACCEPTED` if it is accepted."""
    read, usual = PROGRAMS[program]
    groups = tuple(f"{key}." for key in changes)
    kept = {key: value for key, value in usual.items() if not key.startswith(groups)}
    with pytest.raises(RetinaNetError) as caught:
        read({**kept, **changes}, folder)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400 + len(str(folder))
    if isinstance(caught.value, CheckpointError) and ACCEPTED in line:
        return ACCEPTED
    assert isinstance(caught.value, ConfigError) or program == "odtk", line
    return line


@pytest.mark.parametrize("program", PROGRAMS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_of_any_setting_is_used_or_refused_in_one_line(
    program: str, data: st.DataObject, tmp_path: Path
) -> None:
    keys = list(PROGRAMS[program][1])
    groups = sorted({key.rpartition(".")[0] for key in keys} - {""})
    key = data.draw(st.sampled_from(keys + groups))
    value = data.draw(odd_values)
    if program == "odtk" and data.draw(st.booleans()):
        value = torch.zeros(data.draw(st.integers(0, 3)))
    answer(program, {key: value}, tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_usual_settings_are_accepted(program: str, tmp_path: Path) -> None:
    assert answer(program, {}, tmp_path) == ACCEPTED


WRONG_NUMBERS = ["much", [1], {"a": 1}, -1, -0.5, float("inf"), True, None]


@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["score_thr", "nms_pre", "max_per_img", "nms.iou_threshold"])
def test_a_wrong_number_of_mmdetections_test_cfg_is_named(name: str, value: Any, tmp_path: Path) -> None:
    line = answer("mmdet", {f"model.test_cfg.{name}": value}, tmp_path)
    assert line.startswith(f"mmdetection's configuration in meta: model.test_cfg.{name} is ")
    assert "; expected a " in line


@pytest.mark.parametrize("value", [*WRONG_NUMBERS, float("nan")], ids=repr)
@pytest.mark.parametrize(
    "key", ["RETINANET.SCORE_THRESH_TEST", "RETINANET.NMS_THRESH_TEST", "RETINANET.TOPK_CANDIDATES_TEST"]
)
def test_a_wrong_number_of_detectron2s_config_is_named(key: str, value: Any, tmp_path: Path) -> None:
    line = answer("detectron2", {f"MODEL.{key}": value}, tmp_path)
    assert line.startswith(f"{tmp_path / 'config.yaml'}: MODEL.{key} is ")
    assert "; expected a " in line


@pytest.mark.parametrize("value", ["much", [], [0.0], [-1.0], ["a"], 3, torch.ones(3)], ids=repr)
@pytest.mark.parametrize("name", ["scales", "ratios"])
def test_anchors_of_odtk_that_are_no_positive_numbers_are_named(name: str, value: Any, tmp_path: Path) -> None:
    assert answer("odtk", {name: value}, tmp_path).startswith(f"odtk's checkpoint: {name} is ")


@pytest.mark.parametrize(
    ("program", "changes", "words"),
    [
        ("detectron2", {"MODEL.RESNETS.RES5_DILATION": 2}, "RES5_DILATION is 2; expected 1"),
        ("detectron2", {"MODEL.FPN.FUSE_TYPE": "avg"}, "FUSE_TYPE is 'avg'; expected sum"),
        ("detectron2", {"INPUT.FORMAT": "YUV-BT.601"}, "expected BGR or RGB"),
        ("detectron2", {"INPUT.MIN_SIZE_TEST": 0}, "MIN_SIZE_TEST is 0; expected a whole number from 32 to 8192"),
        ("detectron2", {"MODEL.PIXEL_STD": [1.0, 0.0, 1.0]}, "expected 3 positive numbers"),
        ("detectron2", {"MODEL.ANCHOR_GENERATOR.SIZES": [[32], 64]}, "SIZES.1 is 64; expected one or more positive"),
        ("detectron2", {"MODEL": 3}, "MODEL is 3; expected a group of settings"),
        ("mmdet", {"model.test_cfg": "much"}, "model.test_cfg is 'much'; expected a group of settings"),
        ("mmdet", {"model.test_cfg.nms.class_agnostic": True}, "class_agnostic is True; expected False"),
        ("mmdet", {"model.test_cfg.min_bbox_size": 3}, "min_bbox_size is 3; expected 0"),
        ("mmdet", {"model.backbone.dilations": (1, 1, 1, 2)}, "expected (1, 1, 1, 1)"),
        ("mmdet", {"model.bbox_head.bbox_coder.add_ctr_clamp": True}, "add_ctr_clamp is True; expected False"),
        ("mmdet", {"model.data_preprocessor.pad_value": 114}, "pad_value is 114; expected 0"),
        ("mmdet", {"model.bbox_head.anchor_generator.scales_per_octave": 10**9}, "a whole number from 1 to 20"),
        ("mmdet", {"model.bbox_head.anchor_generator.strides": [4, 8, 16, 32, 64]}, "expected [8, 16, 32, 64, 128]"),
        ("mmdet", {"test_pipeline": [{"type": "Resize", "scale": (1333, 800)}]}, "keep_ratio is None; expected True"),
        (
            "mmdet",
            {"test_pipeline": [{"type": "Resize", "img_scale": "big"}]},
            "img_scale is 'big'; expected 2",
        ),
        ("mmdet", {"test_pipeline": [{"type": "Resize", "backend": "pillow"}]}, "backend is 'pillow'; expected cv2"),
        ("mmdet", {"test_pipeline": [{"type": "Pad", "size": (640, 640)}]}, "expected size_divisor"),
        ("mmdet", {"test_pipeline": [{"type": "Pad", "pad_val": {"img": (114, 114, 114)}}]}, "pad_val"),
        ("odtk", {"angles": torch.zeros(2)}, "rotated boxes"),
    ],
)
def test_a_setting_that_this_package_cannot_repeat_is_refused(
    program: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert words in answer(program, changes, tmp_path)


def test_an_unlimited_longer_side_of_detectron2_is_accepted(tmp_path: Path) -> None:
    assert answer("detectron2", {"INPUT.MAX_SIZE_TEST": 100000}, tmp_path) == ACCEPTED


@pytest.mark.parametrize(
    "changes",
    [
        {"model.neck.add_extra_convs": True},  # mmdetection 2.0
        {"test_pipeline": [{"type": "MultiScaleFlipAug", "img_scale": [(1333, 800)], "transforms": []}]},
        {"test_pipeline": [{"type": "Pad", "size_divisor": 32, "pad_val": {"img": 0, "masks": 0, "seg": 255}}]},
        {"test_pipeline": [{"type": "Resize", "scale": (100000, 640), "keep_ratio": True}]},
        {"test_cfg": {"type": "TestLoop"}},
        {"model.test_cfg": None},
    ],
    ids=repr,
)
def test_other_spellings_of_mmdetections_usual_settings_are_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    assert answer("mmdet", changes, tmp_path) == ACCEPTED


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text("[{(}])-!&*: \nabMODEL=', ", max_size=60).map(str.encode))
def test_a_file_of_any_content_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(content)
    options = ImportOptions(config=tmp_path / "config")
    for load, key in ((load_detectron2, "head.cls_score.weight"), (load_mmdet, "bbox_head.retina_cls.weight")):
        with pytest.raises(RetinaNetError) as caught:
            load({key: torch.zeros(1)}, options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a = " + "-" * 50000 + "1", "MODEL: " + "{a: " * 5000], ids=lambda t: t[:9]
)
def test_deeply_nested_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    options = ImportOptions(config=tmp_path / "config")
    with pytest.raises(ConfigError, match=r"not a readable YAML file|not a configuration"):
        load_detectron2({"head.cls_score.weight": torch.zeros(1)}, options)
    with pytest.raises(ConfigError, match="not a configuration of mmdetection"):
        load_mmdet({"bbox_head.retina_cls.weight": torch.zeros(1)}, options)


def test_a_number_of_too_many_digits_is_refused(tmp_path: Path) -> None:
    number = "0x" + "f" * 9000  # as text it would have more digits than Python writes
    path = tmp_path / "config"
    path.write_text(f"MODEL: {{RETINANET: {{TOPK_CANDIDATES_TEST: {number}}}}}")
    with pytest.raises(ConfigError, match="TOPK_CANDIDATES_TEST is a number of thousands of digits"):
        load_detectron2({"head.cls_score.weight": torch.zeros(1)}, ImportOptions(config=path))
    path.write_text(f"model = dict(test_cfg=dict(nms_pre={number}))")
    with pytest.raises(ConfigError, match="nms_pre is a number of thousands of digits"):
        load_mmdet({"bbox_head.retina_cls.weight": torch.zeros(1)}, ImportOptions(config=path))


def test_a_pipeline_whose_steps_multiply_is_refused() -> None:
    text = "a = [dict(type='x')]\n" + "a = [dict(transforms=a), dict(transforms=a)]\n" * 60
    with pytest.raises(ValueError, match="more than 1000 steps"):
        steps(read_literals(text)["a"])
    meta = {"cfg": text + "model = dict(type='RetinaNet')\ntest_pipeline = a"}
    with pytest.raises(ConfigError, match="more than 1000 steps"):
        load_mmdet({"state_dict": {"bbox_head.retina_cls.weight": torch.zeros(1)}, "meta": meta})


@pytest.mark.parametrize("meta", [None, 3, "text", [1]])
def test_a_meta_that_is_no_dictionary_is_ignored(meta: Any) -> None:
    key = "bbox_head.retina_cls.weight"
    content = {"state_dict": {key: torch.zeros(1)}, "ema_state_dict": {key: torch.zeros(1)}, "meta": meta}
    with pytest.raises(CheckpointError, match=ACCEPTED):
        load_mmdet(content)


@pytest.mark.parametrize("flags", [{"mean": (float("nan"), 0, 0)}, {"std": (1, float("inf"), 1)}, {"std": (1, 0, 1)}])
def test_flags_that_are_no_numbers_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give three"):
        ImportOptions(**flags)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(value=odd_values, key=st.sampled_from(["classes", "class_to_idx", "meta", "label_map", "names"]))
def test_class_names_of_any_form_are_used_or_ignored(value: Any, key: str) -> None:
    for content in ({key: value}, {"meta": {"dataset_meta": {key: value}}}, {"meta": {key: {3: value, "0": value}}}):
        found, remark = find_class_names(content, 3, background=False)
        assert found is None or (len(set(found)) == 3 and all(isinstance(name, str) for name in found))
        assert "\n" not in remark
