from __future__ import annotations

import math
from itertools import combinations
from typing import Any, Literal

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retinanet.anchors import AnchorSpec, make_grid
from retinanet.config import ModelConfig
from retinanet.errors import ModelError
from retinanet.model import Outputs, RetinaNet
from retinanet.model.fpn import FeaturePyramid
from retinanet.model.gradients import GroupNorm
from retinanet.model.subnets import Subnet

CHANNELS = {
    "resnet18": 256,
    "resnet34": 256,
    "resnet50": 256,
    "tf_efficientnet_lite0": 128,
    "convnext_atto": 128,
    "mobilenetv3_small_100": None,  # 576 in timm's last stage; only that it runs is asserted
}


def images(height: int = 64, width: int = 96, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet("resnet18", num_classes=3).eval()


@pytest.mark.parametrize("backbone", CHANNELS)
def test_every_backbone_trains_and_predicts(backbone: str) -> None:
    torch.manual_seed(0)
    network = RetinaNet(backbone, num_classes=3).train()
    assert network.channels == (CHANNELS[backbone] or network.channels)
    outputs = network(images(64, 96))
    grid = make_grid(AnchorSpec(), (64, 96))
    assert [tuple(level.shape) for level in outputs.logits] == [(1, n, 3) for n in grid.level_sizes]
    assert [tuple(level.shape) for level in outputs.deltas] == [(1, n, 4) for n in grid.level_sizes]
    probability = torch.cat([level.flatten() for level in outputs.logits]).sigmoid()
    assert probability.min() > 0.005  # an untrained network is near the prior everywhere
    assert probability.max() < 0.02
    sum(level.square().sum() for level in (*outputs.logits, *outputs.deltas)).backward()
    for name, parameter in network.named_parameters():
        # an unused parameter would stop a distributed training
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_papers_larger_backbones_can_be_built() -> None:
    with torch.device("meta"):
        network = RetinaNet("resnet101", num_classes=80)
        assert network(torch.zeros(1, 3, 800, 800)).logits[0].shape == (1, 90_000, 80)
    assert network.channels == 256
    body: Any = network.backbone.body
    assert len(body.layer3) == 23
    assert timm.is_model("resnext101_32x8d")


def test_resnet50_has_the_size_of_the_papers_network() -> None:
    with torch.device("meta"):
        network = RetinaNet("resnet50", num_classes=80)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    tower = 4 * (256 * 256 * 9 + 256)
    assert count["classification"] == tower + 256 * 720 * 9 + 720
    assert count["regression"] == tower + 256 * 36 * 9 + 36
    laterals = (512 + 1024 + 2048) * 256 + 3 * 256
    assert count["fpn"] == laterals + 3 * (256 * 256 * 9 + 256) + (2048 * 256 * 9 + 256) + (256 * 256 * 9 + 256)
    assert count["backbone"] == 23_508_032  # ResNet-50 without its classifier


def test_a_setting_that_does_not_exist_is_named() -> None:
    with pytest.raises(TypeError, match="'subnet_deep'"):
        RetinaNet("resnet18", subnet_deep=1)


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_every_anchor_starts_at_the_prior(prior: float) -> None:
    network = RetinaNet("resnet18", num_classes=3, channels=32, prior=prior)
    with torch.no_grad():
        probability = network.classification([torch.zeros(1, 32, 4, 4)])[0].sigmoid()
        deltas = network.regression([torch.zeros(1, 32, 4, 4)])[0]
    torch.testing.assert_close(probability, torch.full_like(probability, prior), rtol=1e-5, atol=0)
    assert deltas.abs().max() == 0  # every box starts at its anchor


def test_convolutions_of_the_subnets_are_gaussian(model: RetinaNet) -> None:
    prior_bias = -math.log(0.99 / 0.01)
    for part in (model.classification, model.regression):
        for name, layer in part.named_modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
            assert abs(layer.weight.mean().item()) < 6 * 0.01 / math.sqrt(layer.weight.numel())
            assert layer.weight.abs().max() > 0.03  # not uniform
            assert layer.bias is not None
            expected = prior_bias if part is model.classification and name == "predict" else 0.0
            torch.testing.assert_close(layer.bias, torch.full_like(layer.bias, expected))


def test_subnets_share_nothing_with_each_other(model: RetinaNet) -> None:
    parts = [model.backbone, model.fpn, model.classification, model.regression]
    owned = [{p.data_ptr() for p in part.parameters()} for part in parts]
    for a, b in combinations(owned, 2):
        assert not a & b
    assert sum(map(len, owned)) == len(list(model.parameters()))
    shapes = [[tuple(p.shape) for p in part.tower.parameters()] for part in (model.classification, model.regression)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(next(model.classification.parameters()), next(model.regression.parameters()))


def test_subnets_are_four_convolutions_with_relu_and_one_without(model: RetinaNet) -> None:
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(2, 256, 3, 5, generator=generator) * 30
    with torch.no_grad():
        hidden = feature
        for layer in (layer for layer in model.classification.tower if isinstance(layer, nn.Conv2d)):
            hidden = F.conv2d(hidden, layer.weight, layer.bias, padding=1).clamp(min=0)
        last = model.classification.predict
        expected = F.conv2d(hidden, last.weight, last.bias, padding=1)  # (2, 9·3, 3, 5)
        assert sum(isinstance(layer, nn.Conv2d) for layer in model.classification.tower) == 4
        found = model.classification([feature])[0]
    assert expected.std() > 0.01
    for image, row, column, anchor, label in [(0, 0, 0, 0, 0), (1, 2, 4, 8, 2), (0, 1, 3, 5, 1), (1, 0, 4, 2, 0)]:
        value = found[image, (row * 5 + column) * 9 + anchor, label]
        torch.testing.assert_close(value, expected[image, anchor * 3 + label, row, column], rtol=1e-4, atol=1e-5)


def test_subnets_are_shared_by_all_levels(model: RetinaNet) -> None:
    with torch.no_grad():
        pyramid = model.fpn(model.backbone(images()))
        outputs = model(images())
        for level, feature in enumerate(pyramid):
            torch.testing.assert_close(outputs.logits[level], model.classification([feature])[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(outputs.deltas[level], model.regression([feature])[0], rtol=1e-4, atol=1e-5)


def _upsampled(coarse: Tensor, like: Tensor) -> Tensor:
    twice = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return twice[:, :, : like.shape[2], : like.shape[3]]


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (5, 6)])
@pytest.mark.parametrize("channels", [5, 8])  # 8: as many as C5 has, so that P6 could be made of P5 unnoticed
@pytest.mark.parametrize("p6_from", ["c5", "p5"])
@pytest.mark.parametrize("relu_before_p7", [True, False])
def test_pyramid_by_hand(
    size: tuple[int, int], channels: int, p6_from: Literal["c5", "p5"], relu_before_p7: bool
) -> None:
    torch.manual_seed(0)
    fpn = FeaturePyramid((4, 6, 8), channels, p6_from, relu_before_p7)
    for parameter in fpn.parameters():
        nn.init.normal_(parameter)
    h, w = size
    c3 = torch.randn(1, 4, h, w)
    c4 = torch.randn(1, 6, -(-h // 2), -(-w // 2))
    c5 = torch.randn(1, 8, -(-h // 4), -(-w // 4))
    weights = fpn.state_dict()

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, weights[f"{name}.bias"], stride=stride, padding=kernel.shape[-1] // 2)

    m5 = conv(c5, "lateral.2")
    m4 = conv(c4, "lateral.1") + _upsampled(m5, c4)
    m3 = conv(c3, "lateral.0") + _upsampled(m4, c3)
    p5 = conv(m5, "output.2")
    p6 = conv(c5 if p6_from == "c5" else p5, "p6", stride=2)
    p7 = conv(p6.clamp(min=0) if relu_before_p7 else p6, "p7", stride=2)
    expected = [conv(m3, "output.0"), conv(m4, "output.1"), p5, p6, p7]
    assert (p6 < 0).any()
    with torch.no_grad():
        found = fpn((c3, c4, c5))
    assert len(found) == 5
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(65, 31), (1, 1), (33, 130), (224, 100)])
def test_any_image_size(model: RetinaNet, size: tuple[int, int]) -> None:
    with torch.no_grad():
        outputs = model(images(*size))
    expected = [math.ceil(size[0] / s) * math.ceil(size[1] / s) * 9 for s in (8, 16, 32, 64, 128)]
    assert [level.shape[1] for level in outputs.logits] == expected
    assert all(torch.isfinite(level).all() for level in (*outputs.logits, *outputs.deltas))


def test_images_of_a_batch_do_not_mix(model: RetinaNet) -> None:
    both = images(64, 64, count=2)
    with torch.no_grad():
        together, alone = model(both), model(both[1:])
    for a, b in zip(together.logits, alone.logits, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-4)


def test_outputs_are_views_of_channels_last_convolutions(model: RetinaNet) -> None:
    storages: list[int] = []
    layouts: list[bool] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        storages.append(output.untyped_storage().data_ptr())
        layouts.append(output.is_contiguous(memory_format=torch.channels_last))

    network = model.to(memory_format=torch.channels_last)
    handle = network.classification.predict.register_forward_hook(record)
    with torch.no_grad():
        outputs: Outputs = network(images(64, 96, count=2))
    handle.remove()
    assert all(layouts)
    assert [level.untyped_storage().data_ptr() for level in outputs.logits] == storages


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_frozen_batch_norm_never_changes(backbone: str) -> None:
    network = RetinaNet(backbone, num_classes=2, channels=32).train()
    before = {name: value.clone() for name, value in network.backbone.named_buffers()}
    assert len(before) > 20
    norms = _norms(network.backbone)
    assert not any(norm.training for norm in norms)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    network(images(count=2))
    after = dict(network.backbone.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)
    network.eval().train()
    assert not any(norm.training for norm in norms)
    assert network.fpn.training


def test_trained_batch_norm_learns_and_counts() -> None:
    network = RetinaNet("resnet18", num_classes=2, channels=32, norm="trained").train()
    norms = _norms(network.backbone)
    assert all(norm.training for norm in norms)
    assert all(p.requires_grad for norm in norms for p in norm.parameters())
    assert norms[0].running_mean is not None
    before = norms[0].running_mean.clone()
    network(images(count=2))
    assert not torch.equal(norms[0].running_mean, before)
    network.eval()
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (0, set()),
        (1, {"conv1"}),
        (2, {"conv1", "layer1"}),
        (4, {"conv1", "layer1", "layer2", "layer3"}),
        (5, {"conv1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_frozen_stages_of_resnet(stages: int, frozen: set[str]) -> None:
    with torch.device("meta"):
        network = RetinaNet("resnet18", num_classes=2, norm="trained", freeze_stages=stages)
    parts: dict[str, set[bool]] = {}
    for name, parameter in network.backbone.body.named_parameters():
        part = name.split(".")[0]
        parts.setdefault("conv1" if part == "bn1" else part, set()).add(parameter.requires_grad)
    assert {part for part, trained in parts.items() if trained == {False}} == frozen
    assert {part for part, trained in parts.items() if trained == {True}} == set(parts) - frozen
    assert all(p.requires_grad for part in (network.fpn, network.regression) for p in part.parameters())


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "mobilenetv3_small_100", "convnext_atto"])
def test_frozen_stages_grow_from_the_stem(backbone: str) -> None:
    with torch.device("meta"):
        plain: Any = RetinaNet(backbone, num_classes=2).backbone.body
        stages = len(plain.feature_info.info)
        frozen = []
        for count in range(stages + 1):
            body = RetinaNet(backbone, num_classes=2, norm="trained", freeze_stages=count).backbone.body
            flags = [not p.requires_grad for p in body.parameters()]
            assert flags == sorted(flags, reverse=True)  # from the stem on, without gaps
            frozen.append(sum(flags))
    assert frozen[0] == 0
    assert frozen == sorted(set(frozen))  # every stage freezes more
    assert frozen[-1] == len(flags)


def test_more_frozen_stages_than_there_are() -> None:
    with pytest.raises(ModelError, match="freeze-stages is 6"), torch.device("meta"):
        RetinaNet("resnet18", num_classes=2, freeze_stages=6)


def test_group_norm_in_the_subnets() -> None:
    network = RetinaNet("resnet18", num_classes=2, channels=64, subnet_norm="group")
    for subnet in (network.classification, network.regression):
        kinds = [type(layer) for layer in subnet.tower]
        assert kinds == [nn.Conv2d, GroupNorm, nn.ReLU] * 4
        assert all(layer.bias is None for layer in subnet.tower if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        assert network(images()).logits[0].shape == (1, 864, 2)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_subnet_depth(depth: int) -> None:
    subnet = Subnet(channels=8, anchors=2, outputs=4, depth=depth)
    assert sum(isinstance(layer, nn.Conv2d) for layer in subnet.modules()) == depth + 1


def test_from_config_honours_every_setting() -> None:
    config = ModelConfig(
        backbone="resnet18",
        pretrained=False,
        norm="trained",
        freeze_stages=1,
        channels=64,
        subnet_depth=2,
        subnet_norm="group",
        prior=0.1,
        p6_from="p5",
        relu_before_p7=False,
    )
    anchors = AnchorSpec(scales=(1.0, 1.5), ratios=(1.0,))
    network = RetinaNet.from_config(config, anchors, num_classes=5)
    assert network.channels == 64
    assert network.fpn.p6.in_channels == 64
    assert network.fpn.relu_before_p7 is False
    assert network.backbone.trained_norm
    assert not next(network.backbone.parameters()).requires_grad
    assert len(network.classification.tower) == 6
    assert network.classification.predict.out_channels == 2 * 5
    assert network.regression.predict.out_channels == 2 * 4
    assert network.classification.predict.bias is not None
    assert network.classification.predict.bias[0].sigmoid().item() == pytest.approx(0.1)


def test_normalisation_follows_the_backbone() -> None:
    with torch.device("meta"):
        assert RetinaNet("resnet18").mean == pytest.approx((0.485, 0.456, 0.406))
        assert RetinaNet("resnet18").std == pytest.approx((0.229, 0.224, 0.225))
        assert RetinaNet("tf_efficientnet_lite0").mean == pytest.approx((0.5, 0.5, 0.5))


def test_group_norm_survives_the_smallest_maps() -> None:
    model = RetinaNet("resnet18", 2, channels=32, subnet_depth=1, subnet_norm="group").train()
    outputs = model(torch.zeros(1, 3, 64, 64))  # P6 and P7 have a single location
    assert all(torch.isfinite(level).all() for level in (*outputs.logits, *outputs.deltas))
