"""Imported detectors against torchvision itself: what the network gets, what it says, and what is detected."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import resnet50
from torchvision.models.detection import (
    RetinaNet,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

import retinanet
from retinanet.anchors.grid import make_grid
from retinanet.detection.detector import Detector
from retinanet.detections import Detections
from retinanet.errors import CheckpointError
from retinanet.model import Outputs
from retinanet.postprocess import postprocess
from retinanet.zoo.importers import from_torchvision
from retinanet.zoo.importers.torchvision import load_torchvision
from retinanet.zoo.weights import save_weights

# What the tests shrink 800 and 1333 to; torchvision takes the numbers as arguments.
SIZE, LONGEST = 192, 320


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random picture: noise enlarged 16 times."""
    noise = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)[0]
    return (smooth * 255).round().clamp(0, 255).to(torch.uint8)


def resnet_retinanet(
    name: str, classes: int, norm: type[nn.Module] = nn.BatchNorm2d, p6_channels: int = 256, **options: Any
) -> RetinaNet:
    """As torchvision's builder makes it, on another ResNet, with another batch norm or with P6 from C5."""
    extra = LastLevelP6P7(p6_channels, 256)
    backbone = resnet_fpn_backbone(
        backbone_name=name, weights=None, norm_layer=norm, returned_layers=[2, 3, 4], extra_blocks=extra
    )
    return RetinaNet(backbone, classes, **options)


@torch.no_grad()
def randomize(model: RetinaNet, seed: int, middle: float = -4.5, spread: float = 1.5) -> RetinaNet:
    """Weights that keep activations of order one, and spread the logits around ``middle``: much is found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batch = torch.stack([picture(128, 128, seed=100 + i) / 51 - 2.5 for i in range(2)])
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, std=0.2)
            elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.uniform_(layer.weight, 0.3, 0.9)
                nn.init.normal_(layer.bias, std=0.3)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of one batch
        model.backbone.train()
        model.backbone(batch)
        model.eval()
        for norm in norms:
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None
            assert var is not None
            mean += 0.2 * var.sqrt() * torch.randn(len(mean))
            var *= torch.empty(len(var)).uniform_(0.7, 1.4)
        heads = model.head.classification_head, model.head.regression_head
        fpn = model.backbone.fpn
        makers = *(block[0] for block in fpn.layer_blocks), fpn.extra_blocks.p6, fpn.extra_blocks.p7
        for level, layer in enumerate(makers):  # without this, the coarse levels would find nothing
            layer.weight /= list(model.backbone(batch).values())[level].std()
        features = list(model.backbone(batch).values())
        for layer, outputs, centre, deviation in (
            (heads[0].cls_logits, heads[0], middle, spread),
            (heads[1].bbox_reg, heads[1], 0.0, 0.3),
        ):
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight *= deviation / outputs(features).std()
            nn.init.normal_(layer.bias, mean=centre, std=deviation / 3)
            # centred, so that no class and no side is preferred by more than its bias
            layer.bias -= outputs(features).mean() - centre
    return model


class Seen(NamedTuple):
    """What one detector makes of a picture."""

    batch: Tensor
    logits: list[Tensor]
    deltas: list[Tensor]
    found: Detections


def see_theirs(model: RetinaNet, image: Tensor) -> Seen:
    seen: dict[str, Any] = {}

    def transformed(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["batch"] = output[0].tensors

    def predicted(module: nn.Module, inputs: Any, output: dict[str, Tensor]) -> None:
        sizes = [9 * feature.shape[-2] * feature.shape[-1] for feature in inputs[0]]
        seen.update({name: list(torch.split(values, sizes, dim=1)) for name, values in output.items()})

    hooks = model.transform.register_forward_hook(transformed), model.head.register_forward_hook(predicted)
    with torch.inference_mode():
        (result,) = model([image / 255])
    for hook in hooks:
        hook.remove()
    found = Detections.of_one_image(*(result[name].numpy() for name in ("boxes", "scores", "labels")))
    return Seen(seen["batch"], seen["cls_logits"], seen["bbox_regression"], found)


def see_ours(detector: Detector, image: Tensor) -> Seen:
    seen: dict[str, Any] = {}

    def predicted(module: nn.Module, inputs: tuple[Tensor], output: Outputs) -> None:
        seen.update(batch=inputs[0], outputs=output)

    hook = detector.network.register_forward_hook(predicted)
    (found,) = detector.detect([image])
    hook.remove()
    return Seen(seen["batch"], seen["outputs"].logits, seen["outputs"].deltas, found)


def unpaired(ours: Detections, theirs: Detections) -> int:
    """Detections of either side without one of the same class, box and score on the other."""
    distance = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(axis=2)
    same = distance < 0.05
    same &= np.abs(ours.scores[:, None] - theirs.scores[None]) < 1e-4
    same &= ours.labels[:, None] == theirs.labels[None]
    assert same.sum(axis=0).max() <= 1  # duplicates are suppressed: a partner is the only one
    return int((~same.any(axis=0)).sum() + (~same.any(axis=1)).sum())


def assert_same_outputs(ours: Seen, theirs: Seen) -> None:
    assert ours.batch.shape == theirs.batch.shape
    torch.testing.assert_close(ours.batch, theirs.batch, rtol=0, atol=1e-5)
    for our_levels, their_levels in ((ours.logits, theirs.logits), (ours.deltas, theirs.deltas)):
        assert [level.shape for level in our_levels] == [level.shape for level in their_levels]
        for our, their in zip(our_levels, their_levels, strict=True):
            assert (our - their).abs().max() <= 1e-4 * their.abs().max()


def assert_same_detections(ours: Detections, theirs: Detections, allowed: int = 0) -> None:
    assert len(ours.scores) == len(theirs.scores)
    assert (np.diff(ours.scores) <= 0).all()
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-4)  # rank by rank
    assert unpaired(ours, theirs) <= allowed


def assert_varied(found: Detections, least: int = 100) -> None:
    """Otherwise equality says little."""
    assert len(found.scores) > least
    assert found.scores.max() > 0.5
    assert found.scores.max() < 0.9995
    assert found.scores.max() - found.scores.min() > 0.3
    assert len(set(found.scores.tolist())) > 0.9 * len(found.scores)
    assert len(set(found.labels.tolist())) >= 3
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert sides.max() > 4 * sides.min()


def assert_parity(detector: Detector, model: RetinaNet, image: Tensor, least: int = 100) -> None:
    ours, theirs = see_ours(detector, image), see_theirs(model, image)
    assert_varied(theirs.found, least)
    assert_same_outputs(ours, theirs)
    # From the same outputs, the same detections without exception …
    config = detector.info.config
    (height, width), padded = scaled_size(model, image), tuple(theirs.batch.shape[-2:])
    grid = make_grid(config.anchors, (padded[0], padded[1]))
    (found,) = postprocess(Outputs(theirs.logits, theirs.deltas), grid, [(height, width)], config.decode)
    assert_same_detections(found.rescaled((height, width), image.shape[-2:]), theirs.found)
    # … and from ours, whose last bits differ, all but the few that hang on an IoU of 0.5 ± 1e-6.
    assert_same_detections(ours.found, theirs.found, allowed=len(theirs.found.scores) // 50)


def scaled_size(model: RetinaNet, image: Tensor) -> tuple[int, int]:
    images, _ = model.transform([image / 255])
    height, width = images.image_sizes[0]
    return height, width


def imported(model: RetinaNet, size: int | None = SIZE, longest: int = LONGEST, **options: Any) -> Detector:
    """The import of ``model`` and, unless ``size`` is None, the scaling that ``model`` was given."""
    detector = from_torchvision(model.state_dict(), "fp32", "cpu", **options)
    if size is not None:
        config = detector.info.config
        data = replace(config.data, size=size, max_size=longest)
        detector.info = replace(detector.info, config=replace(config, data=data))
    return detector


@pytest.fixture(scope="module")
def v1() -> RetinaNet:
    options = {"weights": None, "weights_backbone": None, "min_size": SIZE, "max_size": LONGEST}
    return randomize(retinanet_resnet50_fpn(num_classes=7, **options), seed=1)


@pytest.fixture(scope="module")
def v1_imported(v1: RetinaNet) -> Detector:
    return imported(v1)


@pytest.fixture(scope="module")
def v2() -> RetinaNet:
    options = {"weights": None, "weights_backbone": None, "min_size": SIZE, "max_size": LONGEST}
    return randomize(retinanet_resnet50_fpn_v2(num_classes=7, **options), seed=1)


@pytest.fixture(scope="module")
def v2_imported(v2: RetinaNet) -> Detector:
    return imported(v2)


@pytest.fixture(scope="module")
def light() -> RetinaNet:
    """On a ResNet-18, for what does not depend on the backbone."""
    return randomize(resnet_retinanet("resnet18", 7, min_size=SIZE, max_size=LONGEST), seed=3, middle=-10.0, spread=2.2)


@pytest.fixture(scope="module")
def light_imported(light: RetinaNet) -> Detector:
    return imported(light)


SHAPES = [
    pytest.param((240, 320), id="landscape"),
    pytest.param((310, 230), id="portrait"),
    pytest.param((60, 70), id="enlarged"),
    pytest.param((130, 700), id="longest-side-decides"),
    pytest.param((257, 331), id="odd"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_first_version_equals_torchvision(v1: RetinaNet, v1_imported: Detector, shape: tuple[int, int]) -> None:
    assert_parity(v1_imported, v1, picture(*shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_second_version_equals_torchvision(v2: RetinaNet, v2_imported: Detector, shape: tuple[int, int]) -> None:
    assert_parity(v2_imported, v2, picture(*shape))


@torch.inference_mode()
def assert_same_function(detector: Detector, model: RetinaNet) -> None:
    """In float64, where the order of additions hardly shows."""
    exact, ours = copy.deepcopy(model).double(), copy.deepcopy(detector.model).double()
    batch = (picture(96, 160).double() / 51 - 2.5)[None]
    theirs = exact.head(list(exact.backbone(batch).values()))
    outputs = ours(batch)
    for our, their in (
        (torch.cat(outputs.logits, dim=1), theirs["cls_logits"]),
        (torch.cat(outputs.deltas, dim=1), theirs["bbox_regression"]),
    ):
        assert their.std() > 0.1
        assert (our - their).abs().max() <= 1e-10 * their.abs().max()


def test_first_version_is_the_same_function(v1: RetinaNet, v1_imported: Detector) -> None:
    assert_same_function(v1_imported, v1)


def test_second_version_is_the_same_function(v2: RetinaNet, v2_imported: Detector) -> None:
    assert_same_function(v2_imported, v2)


def test_few_enough_to_keep_all(light: RetinaNet, light_imported: Detector) -> None:
    """Where the limit of 300 cuts nothing off, weak detections and those of coarse levels are compared too."""
    image = picture(240, 320)
    found = see_theirs(light, image).found
    assert len(found.scores) < 300
    assert found.scores.min() < 0.06
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1).max() > 200
    assert_parity(light_imported, light, image)


def test_pictures_of_several_shapes_at_once(light: RetinaNet, light_imported: Detector) -> None:
    """torchvision pads a batch to one size, which moves its coarse anchors; here no picture depends on the others."""
    pictures = [picture(240, 320), picture(310, 230, seed=1), picture(240, 320, seed=2)]
    for image, found in zip(pictures, light_imported.detect(pictures), strict=True):
        theirs = see_theirs(light, image).found
        assert_varied(theirs)
        assert_same_detections(found, theirs, allowed=2)


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
    image = picture(240, 320)
    detector = imported(theirs)
    assert_parity(detector, theirs, image)
    assert_same_function(detector, theirs)
    # the epsilon would show
    overwrite_eps(theirs, 1e-5)
    other = see_theirs(theirs, image)
    assert (other.logits[0] - see_ours(detector, image).logits[0]).abs().max() > 0.1
    assert unpaired(detector.detect([image])[0], other.found) > 100


def test_a_variance_that_cannot_be_divided_by(light: RetinaNet) -> None:
    key = "backbone.body.layer2.1.bn2.running_var"
    state = {name: value.clone() for name, value in light.state_dict().items()}
    frozen_state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    state[key][3] = 0
    from_torchvision(state, "fp32", "cpu")  # has an epsilon
    from_torchvision(frozen_state, "fp32", "cpu", norm_eps=1e-5)
    with pytest.raises(CheckpointError, match=r"variance of 0.*--norm-eps 1e-5") as caught:
        from_torchvision(frozen_state, "fp32", "cpu")
    assert key in str(caught.value)
    state[key][3] = -1e-3
    refused(state, key, "-0.001", "below 0")


def test_at_the_real_size(light: RetinaNet) -> None:
    """800/1333, as torchvision's models come: the 7 rows of the coarsest level are 114 pixels apart."""
    model = resnet_retinanet("resnet18", 7).eval()
    model.load_state_dict(light.state_dict())
    detector = imported(model, size=None)
    image = picture(480, 512)
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
    assert_parity(detector, model, picture(230, 310))


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
    v1: RetinaNet, v2: RetinaNet, light: RetinaNet, v1_imported: Detector, v2_imported: Detector
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


# Names of the keys


def tensors(detector: Detector) -> dict[str, Tensor]:
    return detector.model.state_dict()


def assert_equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def named_as_before_0_13(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d)\.0\.(\w+)", key):
            key = f"{match[1]}.{2 * int(match[2])}.{match[3]}"
        result[re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key)] = value
    return result


def test_key_names_of_older_releases(light: RetinaNet, light_imported: Detector) -> None:
    old = named_as_before_0_13(light.state_dict())
    for key in (
        "head.classification_head.conv.0.weight",
        "head.classification_head.conv.6.bias",
        "head.regression_head.conv.4.weight",
        "backbone.fpn.inner_blocks.0.weight",
        "backbone.fpn.layer_blocks.2.bias",
    ):
        assert key in old
        assert key not in light.state_dict()
    copy.deepcopy(light).load_state_dict(dict(old))  # torchvision itself still reads these names
    assert_equal(tensors(from_torchvision(old, "fp32", "cpu")), tensors(light_imported))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: {f"module.{key}": value for key, value in state.items()}, id="data-parallel"),
        pytest.param(lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}}, id="reference-scripts"),
        pytest.param(
            lambda state: {
                "state_dict": {f"model.{key}": value for key, value in state.items()},
                "hyper_parameters": {"lr": 0.1},
                "callbacks": [],
            },
            id="lightning",
        ),
        pytest.param(
            lambda state: {
                "state_dict": {
                    **{f"model.{key}": value for key, value in state.items()},
                    "metric.confmat": torch.zeros(2, 2),
                }
            },
            id="lightning-with-a-metric",
        ),
        pytest.param(
            lambda state: {
                "model_state_dict": {f"model.module.{k}": v for k, v in named_as_before_0_13(state).items()}
            },
            id="all-of-it",
        ),
    ],
)
def test_wrapped_state_dicts(
    light: RetinaNet, light_imported: Detector, wrap: Callable[[dict[str, Tensor]], Mapping[str, Any]]
) -> None:
    assert_equal(tensors(from_torchvision(wrap(light.state_dict()), "fp32", "cpu")), tensors(light_imported))


def test_half_precision_is_widened(light: RetinaNet) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in light.state_dict().items()}
    widened = tensors(from_torchvision(half, "fp32", "cpu"))
    exact = tensors(from_torchvision({k: v.float() for k, v in half.items()}, "fp32", "cpu"))
    assert {value.dtype for value in widened.values()} == {torch.float32, torch.int64}
    assert_equal(widened, exact)


# Classes


@pytest.mark.parametrize("classes", [1, 7, 91])
def test_any_number_of_classes(classes: int) -> None:
    model = randomize(resnet_retinanet("resnet18", classes, min_size=64, max_size=128), seed=6)
    detector = imported(model, size=64, longest=128)
    assert detector.model.num_classes == classes
    names = detector.classes
    assert len(names) == len(set(names)) == classes
    if classes == 91:
        assert names[:3] == ("__background__", "person", "bicycle")
        assert names[90] == "toothbrush"
    else:
        assert names == tuple(f"class {index}" for index in range(classes))
    ours, theirs = see_ours(detector, picture(80, 100)), see_theirs(model, picture(80, 100))
    assert_same_outputs(ours, theirs)
    assert_same_detections(ours.found, theirs.found, allowed=2)
    assert len(set(theirs.found.labels.tolist())) >= min(classes, 5)


def test_given_class_names(light: RetinaNet) -> None:
    assert from_torchvision(light.state_dict(), "fp32", "cpu", classes=list("abcdefg")).classes == tuple("abcdefg")
    for names in (list("abcdef"), list("abcdefgh"), list("abcdeff"), []):
        with pytest.raises(
            CheckpointError, match=f"^{len(names)} class names for 7 outputs; give 7 different"
        ) as caught:
            from_torchvision(light.state_dict(), "fp32", "cpu", classes=names)
        assert "\n" not in str(caught.value)


# Refusals


def refused(state: Any, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught, torch.device("meta"):  # which spares the unused weights
        from_torchvision(state, "fp32", "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert "expected the state dict of torchvision's retinanet_resnet50_fpn" in message
    for word in words:
        assert word in message


def test_other_models_are_refused() -> None:
    with torch.device("meta"):
        refused(resnet50().state_dict(), "cls_logits.weight", "conv1.weight")
        refused(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), "cls_logits.weight")
        fcos = fcos_resnet50_fpn(weights=None, weights_backbone=None)  # whose heads carry the same names
        refused(fcos.state_dict(), "91 and 4 outputs a location")


def test_other_anchors_are_refused() -> None:
    anchors = AnchorGenerator(tuple((size,) for size in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    with torch.device("meta"):
        model = resnet_retinanet("resnet18", 4, anchor_generator=anchors)
    refused(model.state_dict(), "12 and 12 outputs a location", "9 anchors")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, ("nothing",)),
        ({"model": {}}, ("nothing",)),
        ({"epoch": 3}, ("epoch",)),
        ([torch.zeros(1)], ("list",)),
        (None, ("NoneType",)),
    ],
)
def test_what_is_no_state_dict_is_refused(state: Any, words: tuple[str, ...]) -> None:
    refused(state, *words)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.body.layer2.0.conv1.weight",
        "backbone.body.bn1.running_mean",
        "backbone.fpn.inner_blocks.1.0.weight",
        "backbone.fpn.extra_blocks.p6.weight",
        "backbone.fpn.extra_blocks.p7.bias",
        "head.classification_head.conv.2.0.weight",
        "head.classification_head.cls_logits.weight",
        "head.classification_head.cls_logits.bias",
        "head.regression_head.conv.3.0.bias",
        "head.regression_head.bbox_reg.weight",
    ],
)
def test_missing_and_wrong_tensors_are_refused(light: RetinaNet, key: str) -> None:
    state = light.state_dict()
    missing = {name: value for name, value in state.items() if name != key}
    refused(missing, f"{key!r} is missing")
    refused({**state, key: "text"}, "str and not a tensor", key)
    refused({**state, key: None}, "NoneType and not a tensor", key)
    larger = torch.zeros(tuple(side + 1 for side in state[key].shape))
    shapes = (f"{tuple(larger.shape)} instead of {tuple(state[key].shape)}",)
    refused({**state, key: larger}, *(() if ".cls_logits" in key or ".bbox_reg" in key or ".p6" in key else shapes))
    refused({**state, key: larger[None]})
    for kind in (torch.int8, torch.int64, torch.bool):
        refused(
            {**state, key: torch.zeros(state[key].shape, dtype=kind)}, f"{key!r} is not a dense tensor", str(kind)[6:]
        )
    refused({**state, key: torch.zeros(())})
    refused({**state, f"{key}.more": torch.zeros(1)}, "more")


def test_a_tower_of_another_depth_is_refused(light: RetinaNet) -> None:
    state = light.state_dict()
    for part in ("weight", "bias"):
        key = f"head.classification_head.conv.4.0.{part}"
        state[key] = state[key.replace("4.0", "3.0")]
    refused(state, "missing")


def test_odd_tensors_are_refused(light: RetinaNet) -> None:
    state, key = light.state_dict(), "backbone.fpn.extra_blocks.p7.weight"
    with pytest.raises(CheckpointError, match="its tensors hold no values"):
        from_torchvision({**state, key: state[key].to("meta")}, "fp32", "cpu")
    refused({**state, key: state[key].to_sparse()}, key, "not a dense tensor")
    refused({**state, key: state[key].to(torch.complex64)}, key, "not a dense tensor")
    refused({**state, key: state[key] * math.nan}, key, "NaN")
    none = {name: torch.zeros(0, *value.shape[1:]) for name, value in state.items() if ".cls_logits." in name}
    refused({**state, **none}, "0 and 36 outputs a location")


def test_a_checkpoint_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {}
    state["model"] = state
    refused(state, "cls_logits.weight")


@pytest.mark.parametrize("classes", ["ab", ["a", ""], [1, 2]])
def test_class_names_are_texts(light: RetinaNet, classes: Any) -> None:
    with pytest.raises(CheckpointError, match="class name"):
        from_torchvision(light.state_dict(), "fp32", "cpu", classes=classes)


# Round trip


def test_saved_and_loaded_again(light: RetinaNet, light_imported: Detector, tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    save_weights(path, tensors(light_imported), light_imported.info)
    loaded = retinanet.load(path, "fp32", "cpu")
    assert loaded.info == light_imported.info
    image = picture(240, 320)
    (expected,) = light_imported.detect([image])
    (found,) = loaded.detect([image])
    assert_varied(found)
    for name in ("boxes", "scores", "labels"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    # and through the front door
    theirs = see_theirs(light, image).found
    result = loaded(image.permute(1, 2, 0).numpy(), score=0.05)
    assert result.confidence is not None
    assert result.class_id is not None
    public = Detections.of_one_image(
        result.xyxy.astype(np.float32), result.confidence.astype(np.float32), result.class_id.astype(np.int64)
    )
    assert_same_detections(public, theirs, allowed=2)


def test_importing_weights_needs_no_detector() -> None:
    """The layers hold: ``zoo`` lies below ``detect``, and ``from_torchvision`` is looked up on first use."""
    code = "import sys, retinanet.zoo.importers.torchvision; print('retinanet.detection.detector' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_model_is_given_with_its_description(light: nn.Module) -> None:
    model, info = load_torchvision(light.state_dict(), classes=list("abcdefg"))
    assert not model.training
    assert info.classes == tuple("abcdefg")
    assert_equal(model.state_dict(), tensors(from_torchvision(light.state_dict(), "fp32", "cpu")))
