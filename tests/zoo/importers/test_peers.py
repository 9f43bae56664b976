"""Imported detectors of detectron2, mmdetection and odtk compute what those programs compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from peer_vectors import (
    FIXTURES,
    SHARED,
    SMALL,
    Load,
    Vectors,
    agreeing,
    assert_equals_peer,
    detectors,
    output_errors,
    wide_input,
)
from retinanet.model import RetinaNet
from retinanet.model.foreign_weights import read_foreign
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers import ImportOptions
from retinanet.zoo.importers.detectron2 import load_detectron2
from retinanet.zoo.importers.mmdet import load_mmdet
from retinanet.zoo.importers.odtk import load_odtk

DETECTRON2 = {"bgr": True, "resized_bgr": True}
MMDET = {"resized_bgr": True, "ratio_major": True}
LOADERS: dict[str, tuple[Load, dict[str, bool]]] = {
    "detectron2": (load_detectron2, DETECTRON2),
    "mmdet": (load_mmdet, MMDET),
    "odtk": (load_odtk, {}),
}

Loaded = tuple[RetinaNet, ModelInfo]


def small(peer: str, name: str = "", options: ImportOptions = SMALL, **orders: bool) -> tuple[Loaded, Vectors]:
    load, usual = LOADERS[peer]
    vectors = Vectors.of(peer, name, **{**usual, **orders})
    return load(vectors.state(), options), vectors


def full_size(peer: str, name: str, keys: str) -> tuple[Loaded, Vectors]:
    load, orders = LOADERS[peer]
    vectors = Vectors.of(peer, name, **orders)
    listing = next(path for path in (FIXTURES / peer / keys, SHARED / peer / keys) if path.is_file())
    return load(vectors.state(listing), SMALL), vectors


# These are in the repository. Their weights are made by a formula.
@pytest.mark.parametrize(
    ("peer", "name", "keys"),
    [
        ("mmdet", "full_r18", "keys_retinanet_r18_fpn_1x_coco.txt"),
        ("odtk", "full_r18", "keys_ResNet18FPN.txt"),
        ("detectron2", "full_r50", "keys_retinanet_R_50_FPN.txt"),
    ],
)
def test_a_full_size_network_equals_the_peer(peer: str, name: str, keys: str) -> None:
    loaded, vectors = full_size(peer, name, keys)
    assert loaded[1].classes[0] == "person"
    assert len(loaded[1].classes) == 80
    assert_equals_peer(loaded, vectors)


@pytest.mark.parametrize(
    ("peer", "name", "keys"),
    [
        ("mmdet", "full_r50", "keys_retinanet_r50_fpn_1x_coco.txt"),
        ("mmdet", "full_x101_32x4d", "keys_retinanet_x101-32x4d_fpn_1x_coco.txt"),
        ("odtk", "full_r50", "keys_ResNet50FPN.txt"),
    ],
)
def test_other_full_size_networks_equal_the_peer(peer: str, name: str, keys: str) -> None:
    loaded, vectors = full_size(peer, name, keys)
    assert_equals_peer(loaded, vectors)


@pytest.mark.parametrize("peer", LOADERS)
def test_a_small_network_equals_the_peer_from_png_and_from_stored_input(peer: str) -> None:
    loaded, vectors = small(peer)
    assert_equals_peer(loaded, vectors)


def test_caffe_style_of_mmdetection_equals_the_peer() -> None:
    loaded, vectors = small("mmdet", "caffe", replace(SMALL, stride_in="1x1"), bgr=True)
    assert_equals_peer(loaded, vectors)


def test_rgb_and_stride_in_the_3x3_of_detectron2_equal_the_peer() -> None:
    vectors = Vectors.of("detectron2", "rgb_stride3x3")
    options = ImportOptions(config=vectors.folder / "config.yaml")
    loaded, vectors = small("detectron2", "rgb_stride3x3", options, bgr=False, resized_bgr=False)
    assert_equals_peer(loaded, vectors)


@pytest.mark.parametrize("name", ["model_zoo_numpy1.pkl", "model_zoo_numpy2.pkl", "model_final.pth"])
def test_every_file_of_detectron2_holds_the_same_network(name: str) -> None:
    vectors = Vectors.of("detectron2")
    model, info = load_detectron2(read_foreign(vectors.folder / name))
    assert_same_tensors(model, load_detectron2(vectors.state())[0])
    assert info.config.data.size == 800


@pytest.mark.parametrize("name", ["epoch_12.pth", "published_v3.pth", "published_v2_like.pth"])
def test_every_file_of_mmdetection_holds_the_same_network_with_classes_and_sizes(name: str) -> None:
    vectors = Vectors.of("mmdet")
    notes: list[str] = []
    model, info = load_mmdet(read_foreign(vectors.folder / name), note=notes.append)
    assert_same_tensors(model, load_mmdet(vectors.state())[0])
    assert info.classes == ("ape", "bee", "cat", "dog", "eel")
    assert (info.config.data.size, info.config.data.max_size) == (256, 426)
    assert not any("--stride-in" in note or "--mean" in note for note in notes)


@pytest.mark.parametrize("name", ["trained.pth", "untrained.pth"])
def test_every_file_of_odtk_holds_the_same_network(name: str) -> None:
    vectors = Vectors.of("odtk")
    model, info = load_odtk(read_foreign(vectors.folder / name))
    assert_same_tensors(model, load_odtk(vectors.state())[0])
    assert info.config.anchors.ratios == (1.0, 2.0, 0.5)


def assert_same_tensors(model: RetinaNet, other: RetinaNet) -> None:
    theirs = other.state_dict()
    counted = [key for key in theirs if not key.endswith("num_batches_tracked")]
    assert all(torch.equal(model.state_dict()[key], theirs[key]) for key in counted)


def with_setting(loaded: Loaded, group: str, **values: Any) -> Loaded:
    """The same tensors with another setting."""
    model, info = loaded
    config = replace(info.config, **{group: replace(getattr(info.config, group), **values)})
    changed = RetinaNet.from_config(config.model, config.anchors, len(info.classes), pretrained=False)
    changed.load_state_dict(model.state_dict())
    changed.backbone.mean, changed.backbone.std = info.mean, info.std
    return changed.eval(), replace(info, config=config)


@pytest.mark.parametrize(
    ("peer", "group", "values"),
    [
        ("detectron2", "model", {"stride_in": "3x3"}),
        ("detectron2", "decode", {"clip": "image"}),
        ("detectron2", "data", {"resize": "bilinear"}),
        ("detectron2", "anchors", {"offset": 0.5}),
        ("mmdet", "model", {"stride_in": "1x1"}),
        ("mmdet", "data", {"resize": "pillow"}),
        ("mmdet", "data", {"resize": "bilinear"}),
        ("mmdet", "decode", {"clip": "after_nms"}),
        ("odtk", "model", {"stride_in": "1x1"}),
        ("odtk", "anchors", {"layout": "paper"}),
        ("odtk", "anchors", {"offset": 0.0}),
        ("odtk", "anchors", {"ratios": (0.5, 1.0, 2.0)}),
        ("odtk", "decode", {"clip": "image"}),
        ("odtk", "data", {"pad_to": 32}),
        ("odtk", "data", {"resize": "pillow"}),
    ],
)
def test_with_one_setting_of_the_paper_detections_differ(peer: str, group: str, values: dict[str, Any]) -> None:
    loaded, vectors = small(peer)
    assert not equals_in_all_images(with_setting(loaded, group, **values), vectors)


def equals_in_all_images(loaded: Loaded, vectors: Vectors) -> bool:
    detector, expected = detectors(loaded, vectors)["default"], vectors.read("expected")
    for name in ("astronaut", "chelsea", "wide"):
        (found,) = detector.detect([vectors.image(name)])
        count = len(expected[f"{name}.default.scores"])
        if len(found) != count or agreeing(found, expected, f"{name}.default") != count:
            return False
    return True


@pytest.mark.parametrize(("peer", "relu"), [("detectron2", False), ("mmdet", True), ("odtk", False)])
def test_the_other_input_of_p7_changes_its_logits_only(peer: str, relu: bool) -> None:
    loaded, vectors = small(peer)
    changed = with_setting(loaded, "model", relu_before_p7=relu)
    errors = output_errors(changed[0], wide_input(loaded, vectors), vectors.read("expected"), vectors)
    assert errors["logits.p7"] > 0.5
    assert errors["logits.p6"] < 5e-4


@pytest.mark.parametrize("peer", LOADERS)
def test_batch_norm_without_epsilon_changes_the_logits(peer: str) -> None:
    loaded, vectors = small(peer, options=replace(SMALL, norm_eps=0.0))
    errors = output_errors(loaded[0], wide_input(loaded, vectors), vectors.read("expected"), vectors)
    assert max(errors.values()) > 1e-3


@pytest.mark.parametrize("peer", ["detectron2", "mmdet"])
def test_the_other_order_of_colors_changes_the_logits(peer: str) -> None:
    colors = "rgb" if peer == "detectron2" else "bgr"
    swapped, vectors = small(peer, options=replace(SMALL, colors=colors))  # type: ignore[arg-type]
    errors = output_errors(swapped[0], wide_input(swapped, vectors), vectors.read("expected"), vectors)
    assert max(errors.values()) > 1


@pytest.mark.parametrize("peer", LOADERS)
def test_outputs_in_the_other_order_are_other_anchors(peer: str) -> None:
    loaded, vectors = small(peer)
    wrong = replace(vectors, ratio_major=not vectors.ratio_major)
    errors = output_errors(loaded[0], wide_input(loaded, vectors), vectors.read("expected"), wrong)
    assert min(errors.values()) > 0.1


def test_without_its_scaling_by_one_ratio_boxes_of_odtk_are_moved() -> None:
    loaded, vectors = small("odtk")
    detector, expected = detectors(loaded, vectors)["default"], vectors.read("expected")
    image = vectors.image("astronaut")
    height, width = image.shape[:2]
    shape = detector.scaled_size(height, width)
    (found,) = detector.detect_scaled([detector.resize(image, shape)])
    assert agreeing(detector.in_image(found, shape, (height, width)), expected, "astronaut.default") == 100
    plain = replace(found, boxes=found.boxes / (np.array(shape[::-1] * 2) / np.array([width, height] * 2)))
    assert agreeing(plain, expected, "astronaut.default") == 0


def test_deltas_with_means_and_deviations_are_folded_into_the_network() -> None:
    vectors = Vectors.of("mmdet", "full_r18")
    state = vectors.state(Path(vectors.folder.parent / "keys_retinanet_r18_fpn_1x_coco.txt"))
    text = "model = dict(bbox_head=dict(bbox_coder=dict(target_means=[.1, 0., 0., 0.], target_stds=[.1, .1, .2, .2])))"
    plain, _ = load_mmdet(state)
    coded, _ = load_mmdet({"state_dict": state, "meta": {"cfg": text}})
    image = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        before, after = (torch.cat(model(image).deltas, dim=1) for model in (plain, coded))
    expected = before * torch.tensor([0.1, 0.1, 0.2, 0.2]) + torch.tensor([0.1, 0.0, 0.0, 0.0])
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_pixel_mean_of_an_old_checkpoint_tells_colors_and_stride() -> None:
    vectors = Vectors.of("detectron2", "full_r50")
    state: dict[str, Tensor] = vectors.state(vectors.folder.parent / "keys_retinanet_R_50_FPN.txt")
    state |= {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)}
    state |= {"pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)}
    state |= {"anchor_generator.cell_anchors.0": torch.zeros(9, 4)}
    _, info = load_detectron2(state)
    assert info.config.model.stride_in == "3x3"
    assert info.mean == pytest.approx((0.485, 0.456, 0.406))
