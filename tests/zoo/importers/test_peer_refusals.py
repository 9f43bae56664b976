"""Files that are no RetinaNets of a known program are refused in one line that says what was found."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retinanet.errors import ConfigError, RetinaNetError
from retinanet.model import RetinaNet
from retinanet.model.foreign_weights import read_foreign
from retinanet.zoo.conversion import convert_weights
from retinanet.zoo.importers import ImportOptions, detectron2, mmdet, odtk
from retinanet.zoo.importers.detectron2 import load_detectron2
from retinanet.zoo.importers.literal_config import read_literals
from retinanet.zoo.importers.mmdet import load_mmdet
from retinanet.zoo.importers.networks import Origin
from retinanet.zoo.importers.odtk import load_odtk

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    return RetinaNet("resnet18", 3, channels=64)


def named(model: RetinaNet, origin: Origin) -> State:
    """The tensors of a network under the names of another program."""
    return {origin.theirs(key).replace("*", "ResNet18FPN"): value for key, value in model.state_dict().items()}


def refused(content: Any, folder: Path, *words: str, options: ImportOptions | None = None) -> None:
    path = folder / "weights.pth"
    torch.save(content, path)
    with pytest.raises(RetinaNetError) as caught:
        convert_weights(path, folder / "out.safetensors", options or ImportOptions())
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("origin", [detectron2.ORIGIN, mmdet.ORIGIN, odtk.ORIGIN])
def test_the_program_is_recognized_from_the_names(origin: Origin, model: RetinaNet, tmp_path: Path) -> None:
    torch.save({"anything": named(model, origin)}, tmp_path / "a.pth")
    info = convert_weights(tmp_path / "a.pth", tmp_path / "b.safetensors")
    resize = {"bbox_head": "opencv", "head": "pillow", "cls_head": "pillow_floor"}[origin.marker.split(".")[0]]
    assert info.config.data.resize == resize
    assert info.classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("roi_heads.box_predictor.cls_score.weight", "two-stage"),
        ("rpn_head.rpn_cls.weight", "two-stage"),
        ("neck.pafpn_convs.0.conv.weight", "PAFPN"),
        ("bbox_head.atss_cls.weight", "another head"),
        ("conv1_w", "Caffe2"),
        ("backbone.bottom_up.res5.0.conv1.weight", "backbone"),
        ("something.else", "other names"),
    ],
)
def test_other_models_are_named(key: str, what: str, tmp_path: Path) -> None:
    refused({"model": {key: torch.zeros(1)}}, tmp_path, what, "expected a RetinaNet of torchvision, detectron2")


def test_an_imagenet_backbone_of_detectron2_is_named(tmp_path: Path) -> None:
    content = {"model": {"a.weight": torch.zeros(1)}, "matching_heuristics": True}
    refused(content, tmp_path, "an ImageNet backbone of detectron2")


def test_rotated_boxes_are_refused(model: RetinaNet, tmp_path: Path) -> None:
    for origin, key, numbers in (
        (detectron2.ORIGIN, "head.bbox_pred.weight", 45),
        (odtk.ORIGIN, "box_head.8.weight", 54),
    ):
        state = {**named(model, origin), key: torch.zeros(numbers, 64, 3, 3)}
        refused(state, tmp_path, "rotated boxes are not supported")
    refused({"state_dict": named(model, odtk.ORIGIN), "angles": [0.0]}, tmp_path, "rotated boxes")


def test_several_backbones_and_mobilenets_of_odtk_are_refused(model: RetinaNet, tmp_path: Path) -> None:
    state = named(model, odtk.ORIGIN)
    refused(state | {"backbones.ResNet50FPN.lateral3.bias": torch.zeros(64)}, tmp_path, "2 backbones")
    mobile = {key.replace("ResNet18FPN", "MobileNetV2FPN"): value for key, value in state.items()}
    refused(mobile, tmp_path, "MobileNetV2FPN")


def test_missing_unknown_and_misshaped_tensors_are_named(model: RetinaNet, tmp_path: Path) -> None:
    for origin, key in (
        (detectron2.ORIGIN, "backbone.fpn_lateral4.bias"),
        (mmdet.ORIGIN, "neck.fpn_convs.4.conv.bias"),
        (odtk.ORIGIN, "backbones.ResNet18FPN.pyramid7.bias"),
    ):
        state = named(model, origin)
        missing = key.replace("ResNet18FPN", "*")
        refused({name: value for name, value in state.items() if name != key}, tmp_path, missing, "is missing")
        refused(state | {key: torch.zeros(3)}, tmp_path, missing, "shape (3,)")
        refused(state | {key: torch.full((64,), torch.nan)}, tmp_path, missing, "NaN")
    norm = named(model, detectron2.ORIGIN) | {"backbone.fpn_lateral3.norm.weight": torch.zeros(64)}
    refused(norm, tmp_path, "backbone.fpn_lateral3.norm.weight", "does not belong")


def test_names_of_the_first_mmdetection_are_refused(model: RetinaNet, tmp_path: Path) -> None:
    state = {key.replace("_convs.0.conv.", "_convs.0."): value for key, value in named(model, mmdet.ORIGIN).items()}
    refused(state, tmp_path, "mmdetection 0.x")


def test_configurations_of_other_detectors_are_refused(model: RetinaNet, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("MODEL: {META_ARCHITECTURE: GeneralizedRCNN}")
    (tmp_path / "d.yaml").write_text("MODEL: {RETINANET: {NMS_THRESH_TEST: much}}")
    (tmp_path / "e.yaml").write_text("MODEL: [")
    for name, word in (("c", "GeneralizedRCNN"), ("d", "expected a number"), ("e", "YAML"), ("missing", "YAML")):
        with pytest.raises(ConfigError, match=word):
            load_detectron2(named(model, detectron2.ORIGIN), ImportOptions(config=tmp_path / f"{name}.yaml"))
    for text, word in (
        ("model = dict(type='FasterRCNN')", "FasterRCNN"),
        ("model = dict(neck=dict(type='PAFPN'))", "PAFPN"),
        ("model = dict(neck=dict(add_extra_convs='on_lateral'))", "on_lateral"),
        ("model = dict(data_preprocessor=dict(pad_size_divisor=1))", "multiples of 1"),
        ("model = dict(test_cfg=dict(nms=dict(type='soft_nms')))", "soft_nms"),
    ):
        with pytest.raises(ConfigError, match=word):
            load_mmdet({"state_dict": named(model, mmdet.ORIGIN), "meta": {"cfg": text}})
    (tmp_path / "c.py").write_text("_base_ = ['a.py']")
    with pytest.raises(ConfigError, match="starts from others"):
        load_mmdet(named(model, mmdet.ORIGIN), ImportOptions(config=tmp_path / "c.py"))


def test_a_lowest_score_of_zero_is_kept(model: RetinaNet, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("MODEL: {RETINANET: {SCORE_THRESH_TEST: 0.0}}")
    _, info = load_detectron2(named(model, detectron2.ORIGIN), ImportOptions(config=tmp_path / "c.yaml"))
    assert info.config.decode.score == 0
    meta = {"cfg": "model = dict(test_cfg=dict(score_thr=0.0))"}
    _, info = load_mmdet({"state_dict": named(model, mmdet.ORIGIN), "meta": meta})
    assert info.config.decode.score == 0


def test_normalization_of_a_configuration_that_a_user_wrote_is_found(model: RetinaNet, tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(
        "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
        "test_pipeline = [dict(type='Normalize', **img_norm_cfg), dict(type='Pad', size_divisor=32)]\n"
        "model = dict(type='RetinaNet', backbone=dict(style='caffe'))\n"
    )
    notes: list[str] = []
    loaded, _ = load_mmdet(named(model, mmdet.ORIGIN), ImportOptions(config=tmp_path / "c.py"), notes.append)
    assert loaded.mean == pytest.approx((123.675 / 255, 116.28 / 255, 103.53 / 255))
    assert not any("--mean" in note or "--colors" in note for note in notes)


def test_options_of_other_programs_are_refused(model: RetinaNet) -> None:
    with pytest.raises(ConfigError, match="--colors does not apply to odtk"):
        load_odtk(named(model, odtk.ORIGIN), ImportOptions(colors="bgr"))


def test_a_configuration_is_read_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import os\nos.mkdir({str(mark)!r})\ng = os.getcwd()\n"
    text = code + "a = dict(b=[1, -2.5], c=open('x'), d={'e': None})\nf = a"
    assert read_literals(text) == {
        "a": {"b": [1, -2.5], "d": {"e": None}},
        "f": {"b": [1, -2.5], "d": {"e": None}},
    }
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_numpy_arrays_are_read_as_tensors(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.array([True, False]),
        "d": np.zeros((0, 4), dtype=np.float16),
        "e": np.array(7),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    found = read_foreign(tmp_path / "a.pkl")["model"]
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key].numpy(), array)
        assert found[key].numpy().dtype == array.dtype


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


def test_a_pickle_with_code_and_a_truncated_pickle_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Harmful(mark)}, 4))
    with pytest.raises(RetinaNetError, match="could run code"):
        convert_weights(tmp_path / "a.pkl", tmp_path / "out.safetensors")
    assert not mark.exists()
    whole = io.BytesIO()
    pickle.dump({"model": {"a": np.zeros(1000)}}, whole, 4)
    (tmp_path / "b.pkl").write_bytes(whole.getvalue()[:4000])
    with pytest.raises(RetinaNetError, match="damaged"):
        convert_weights(tmp_path / "b.pkl", tmp_path / "out.safetensors")
