"""Imported detectors against torchvision itself: the network's input and outputs, and the detections."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torchvision.models.detection import (
    RetinaNet,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.ops.misc import FrozenBatchNorm2d

from retinanet.detection.pytorch import PyTorchDetector
from retinanet.zoo.importers import from_torchvision
from torchvision_parity import (
    LONGEST,
    SIZE,
    as_array,
    assert_parity,
    assert_same_detections,
    assert_varied,
    imported,
    light_retinanet,
    randomize,
    resnet_retinanet,
    scaled_size,
    see_ours,
    see_theirs,
    smooth_image,
    unpaired,
)


@pytest.fixture(scope="module")
def v1() -> RetinaNet:
    options = {"weights": None, "weights_backbone": None, "min_size": SIZE, "max_size": LONGEST}
    return randomize(retinanet_resnet50_fpn(num_classes=7, **options), seed=1)


@pytest.fixture(scope="module")
def v1_imported(v1: RetinaNet) -> PyTorchDetector:
    return imported(v1)


@pytest.fixture(scope="module")
def v2() -> RetinaNet:
    options = {"weights": None, "weights_backbone": None, "min_size": SIZE, "max_size": LONGEST}
    return randomize(retinanet_resnet50_fpn_v2(num_classes=7, **options), seed=1)


@pytest.fixture(scope="module")
def v2_imported(v2: RetinaNet) -> PyTorchDetector:
    return imported(v2)


@pytest.fixture(scope="module")
def light() -> RetinaNet:
    return light_retinanet()


@pytest.fixture(scope="module")
def light_imported(light: RetinaNet) -> PyTorchDetector:
    return imported(light)


SHAPES = [
    pytest.param((240, 320), id="landscape"),
    pytest.param((310, 230), id="portrait"),
    pytest.param((60, 70), id="enlarged"),
    pytest.param((130, 700), id="longest-side-decides"),
    pytest.param((257, 331), id="odd"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_first_version_equals_torchvision(v1: RetinaNet, v1_imported: PyTorchDetector, shape: tuple[int, int]) -> None:
    assert_parity(v1_imported, v1, smooth_image(*shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_second_version_equals_torchvision(v2: RetinaNet, v2_imported: PyTorchDetector, shape: tuple[int, int]) -> None:
    assert_parity(v2_imported, v2, smooth_image(*shape))


@torch.inference_mode()
def assert_same_function(detector: PyTorchDetector, model: RetinaNet) -> None:
    """In float64, where the order of additions hardly shows."""
    exact, ours = copy.deepcopy(model).double(), copy.deepcopy(detector.model).double()
    batch = (smooth_image(96, 160).double() / 51 - 2.5)[None]
    theirs = exact.head(list(exact.backbone(batch).values()))
    outputs = ours(batch)
    for our, their in (
        (torch.cat(outputs.logits, dim=1), theirs["cls_logits"]),
        (torch.cat(outputs.deltas, dim=1), theirs["bbox_regression"]),
    ):
        assert their.std() > 0.1
        assert (our - their).abs().max() <= 1e-10 * their.abs().max()


def test_first_version_is_the_same_function(v1: RetinaNet, v1_imported: PyTorchDetector) -> None:
    assert_same_function(v1_imported, v1)


def test_second_version_is_the_same_function(v2: RetinaNet, v2_imported: PyTorchDetector) -> None:
    assert_same_function(v2_imported, v2)


def test_few_enough_to_keep_all(light: RetinaNet, light_imported: PyTorchDetector) -> None:
    """Where the limit of 300 cuts nothing off, weak detections and those of coarse levels are compared too."""
    image = smooth_image(240, 320)
    found = see_theirs(light, image).found
    assert len(found.scores) < 300
    assert found.scores.min() < 0.06
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1).max() > 200
    assert_parity(light_imported, light, image)


def test_images_of_several_shapes_at_once(light: RetinaNet, light_imported: PyTorchDetector) -> None:
    """torchvision pads a batch to one size, which moves its coarse anchors; here no image depends on the others."""
    images = [smooth_image(240, 320), smooth_image(310, 230, seed=1), smooth_image(240, 320, seed=2)]
    for image, found in zip(images, light_imported.detect([as_array(image) for image in images]), strict=True):
        theirs = see_theirs(light, image).found
        assert_varied(theirs)
        assert_same_detections(found, theirs, allowed=2)


def overwrite_eps(model: RetinaNet, eps: float) -> None:
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps


def frozen(model: RetinaNet, eps: float = 0.0, **options: Any) -> RetinaNet:
    """``model`` (a ResNet-50, P6 from P5) with the batch norm, and its epsilon, of the published first version."""
    result = resnet_retinanet("resnet50", model.head.classification_head.num_classes, FrozenBatchNorm2d, **options)
    result.load_state_dict(model.state_dict())
    overwrite_eps(result, eps)
    return result.eval()


@torch.no_grad()
def shrink_channels(model: RetinaNet, var: float = 1e-8) -> None:
    """Give every third channel of some norms a tiny variance, as trained ResNets have them: the same function."""
    body = model.backbone.body
    for conv, norm in (
        (body.conv1, body.bn1),
        (body.layer2[1].conv2, body.layer2[1].bn2),
        (body.layer4[0].conv3, body.layer4[0].bn3),
    ):
        factor = torch.ones(len(norm.running_var))
        factor[::3] = (var / norm.running_var[::3]).sqrt()
        conv.weight *= factor[:, None, None, None]
        norm.running_mean *= factor
        norm.running_var *= factor**2


def test_published_first_version_has_no_epsilon(v1: RetinaNet) -> None:
    theirs = frozen(v1, min_size=SIZE, max_size=LONGEST)
    shrink_channels(theirs)
    state = theirs.state_dict()
    assert not any("num_batches_tracked" in key for key in state)
    assert min(float(value.min()) for key, value in state.items() if key.endswith("running_var")) < 2e-8
    image = smooth_image(240, 320)
    detector = imported(theirs)
    assert_parity(detector, theirs, image)
    assert_same_function(detector, theirs)
    # the epsilon would show
    overwrite_eps(theirs, 1e-5)
    other = see_theirs(theirs, image)
    assert (other.logits[0] - see_ours(detector, image).logits[0]).abs().max() > 0.1
    assert unpaired(detector.detect([as_array(image)])[0], other.found) > 100


def test_at_the_real_size(light: RetinaNet) -> None:
    """800/1333, as torchvision's models come: the 7 rows of the coarsest level are 114 pixels apart."""
    model = resnet_retinanet("resnet18", 7).eval()
    model.load_state_dict(light.state_dict())
    detector = imported(model, size=None)
    image = smooth_image(480, 512)
    assert scaled_size(model, image) == (800, 853)
    assert_parity(detector, model, image, least=200)


@pytest.mark.parametrize(
    ("name", "p6_channels", "p6_from"),
    [
        ("resnet18", 512, "c5"),
        pytest.param("resnet34", 256, "p5"),
        ("resnext50_32x4d", 2048, "c5"),
    ],
)
def test_other_resnets(name: str, p6_channels: int, p6_from: str) -> None:
    model = randomize(resnet_retinanet(name, 5, p6_channels=p6_channels, min_size=128, max_size=200), seed=5)
    detector = imported(model, size=128, longest=200)
    assert detector.info.config.model.backbone == name
    assert detector.info.config.model.p6_from == p6_from
    assert_parity(detector, model, smooth_image(230, 310))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("resnet34"),
        "resnet50",
        pytest.param("resnet101"),
        pytest.param("resnet152"),
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        pytest.param("wide_resnet101_2"),
    ],
)
def test_every_resnet_is_recognised(name: str) -> None:
    with torch.device("meta"):
        detector = from_torchvision(resnet_retinanet(name, 2).state_dict(), "fp32", "meta")
    assert detector.info.config.model.backbone == name


def test_settings_are_those_torchvision_detects_with(
    v1: RetinaNet, v2: RetinaNet, light: RetinaNet, v1_imported: PyTorchDetector, v2_imported: PyTorchDetector
) -> None:
    for model, detector in ((v1, v1_imported), (v2, v2_imported)):
        config = detector.info.config
        assert config.decode.score == model.score_thresh
        assert config.decode.nms == model.nms_thresh
        assert config.decode.max_detections == model.detections_per_img
        assert config.decode.top_k == model.topk_candidates
        assert config.assign.foreground == model.proposal_matcher.high_threshold
        assert config.assign.background == model.proposal_matcher.low_threshold
        assert config.assign.force_best == model.proposal_matcher.allow_low_quality_matches
        assert config.loss.box == model.head.regression_head._loss_type
        assert list(detector.info.mean) == list(detector.model.mean) == model.transform.image_mean
        assert list(detector.info.std) == list(detector.model.std) == model.transform.image_std
    assert v1_imported.info.config.model.p6_from == "p5"
    assert v2_imported.info.config.model.p6_from == "c5"
    data = imported(light, size=None).info.config.data
    assert (data.size, data.longest) == (800, 1333)
