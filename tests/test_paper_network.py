"""The recipe ``paper`` is the paper: the network, its initialization, and the imbalance of its losses.

The paper's facts and their tests: ``docs/paper-to-code.md``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from retinanet.anchors import BACKGROUND, IGNORE, Matches, assign, assign_batch, make_grid
from retinanet.config import Config
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.image_sizes import PAD_TO, scaled_size
from retinanet.losses import detection_losses, focal_loss
from retinanet.model import Outputs, RetinaNet
from retinanet.recipes import load_recipe

CLASSES = 80


@pytest.fixture(scope="module")
def paper() -> Config:
    return load_recipe("paper")


@pytest.fixture(scope="module")
def network(paper: Config) -> RetinaNet:
    """The recipe's network with random weights instead of ImageNet's, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RetinaNet.from_config(paper.model, paper.anchors, CLASSES, pretrained=False).train()


def on_meta(paper: Config, backbone: str) -> RetinaNet:
    """The recipe's network on another backbone, without memory."""
    with torch.device("meta"):
        model = replace(paper.model, backbone=backbone)
        return RetinaNet.from_config(model, paper.anchors, CLASSES, pretrained=False)


# The network


def test_the_pyramids_convolutions_start_as_in_the_fpn_paper(network: RetinaNet) -> None:
    """Section 4.1: "New layers added for FPN are initialized as in [20]": uniform in ±√(3 / fan-in), bias 0."""
    count = 0
    for name, layer in network.fpn.named_modules():
        if isinstance(layer, nn.Conv2d):
            count += 1
            bound = math.sqrt(3 / layer.weight[0].numel())
            assert 0.99 * bound < layer.weight.abs().max() <= bound, name
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name
            assert layer.bias is not None
            assert not layer.bias.any(), name
    assert count == 3 + 3 + 2  # laterals, outputs, P6 and P7


def test_every_convolution_of_the_subnets_starts_as_the_paper_says(network: RetinaNet, paper: Config) -> None:
    """Section 4.1: N(0, 0.01) and bias 0, but for the last convolution of the classification subnet."""
    count = 0
    for part in (network.classification, network.regression):
        for name, layer in part.named_modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            count += 1
            weight = layer.weight.detach().double()
            noise = 0.01 / math.sqrt(weight.numel())  # of the mean; the deviation's is smaller by √2
            assert abs(weight.mean().item()) < 5 * noise, name
            assert abs(weight.std().item() - 0.01) < 5 * noise, name
            assert layer.bias is not None
            last = layer is network.classification.predict
            prior = -math.log((1 - paper.model.prior) / paper.model.prior)
            assert torch.equal(layer.bias, torch.full_like(layer.bias, prior if last else 0.0)), name
    assert count == 2 * 5


def test_subnets_are_alike_apart_and_used_on_every_level(network: RetinaNet) -> None:
    subnets = (network.classification, network.regression)
    last = [subnet.predict for subnet in subnets]
    calls: list[nn.Module] = []
    handles = [s.register_forward_hook(lambda module, inputs, output: calls.append(module)) for s in [*subnets, *last]]
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    expected: list[nn.Module] = []
    for subnet in subnets:
        expected += [*[subnet.predict] * 5, subnet]  # one module for all levels
    assert calls == expected

    owned = [{p.data_ptr() for p in subnet.parameters()} for subnet in subnets]
    assert not owned[0] & owned[1]
    for subnet in subnets:
        assert [type(layer) for layer in subnet.tower] == [nn.Conv2d, nn.ReLU] * 4
        for layer in [*subnet.tower[::2], subnet.predict]:
            assert isinstance(layer, nn.Conv2d)
            assert (layer.in_channels, layer.kernel_size, layer.stride) == (256, (3, 3), (1, 1))
            assert layer is subnet.predict or layer.out_channels == 256
    assert network.classification.predict.out_channels == CLASSES * 9  # K·A
    assert network.regression.predict.out_channels == 4 * 9  # class-agnostic


def bottleneck_resnet(blocks: tuple[int, int, int, int], widen: int = 1, groups: int = 1) -> int:
    """Parameters of a ResNet of bottlenecks without its classifier."""
    count = 3 * 64 * 7**2 + 2 * 64  # first convolution and its norm
    inputs = 64
    for stage, repeats in enumerate(blocks):
        width, outputs = widen * 64 * 2**stage, 256 * 2**stage
        for block in range(repeats):
            count += inputs * width + width * (width // groups) * 3**2 + width * outputs  # 1×1, 3×3, 1×1
            count += 2 * (width + width + outputs)  # norms: a weight and a bias per channel
            if block == 0:
                count += inputs * outputs + 2 * outputs  # projection of the shortcut
            inputs = outputs
    return count


BACKBONES = {
    "resnet50": bottleneck_resnet((3, 4, 6, 3)),
    "resnet101": bottleneck_resnet((3, 4, 23, 3)),
    "resnext101_32x8d": bottleneck_resnet((3, 4, 23, 3), widen=4, groups=32),
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_papers_backbones_give_p3_to_p7(paper: Config, backbone: str) -> None:
    model = on_meta(paper, backbone)
    assert model.channels == 256
    pyramid = model.fpn(model.backbone(torch.zeros(1, 3, 800, 1344, device="meta")))
    assert [tuple(level.shape) for level in pyramid] == [
        (1, 256, 100, 168),
        (1, 256, 50, 84),
        (1, 256, 25, 42),
        (1, 256, 13, 21),
        (1, 256, 7, 11),
    ]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_number_of_parameters(paper: Config, backbone: str) -> None:
    model = on_meta(paper, backbone)
    conv3 = 256 * 256 * 9 + 256
    pyramid = (512 + 1024 + 2048) * 256 + 3 * 256 + 3 * conv3 + (2048 * 256 * 9 + 256) + conv3  # P6 is made of C5
    classification = 4 * conv3 + 256 * 9 * (CLASSES * 9) + CLASSES * 9
    regression = 4 * conv3 + 256 * 9 * (4 * 9) + 4 * 9
    expected = BACKBONES[backbone] + pyramid + classification + regression
    assert sum(p.numel() for p in model.parameters()) == expected
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = sum(p.numel() for m in norms for p in m.parameters())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected - frozen > 0


# The start of the training


@pytest.fixture(scope="module")
def start(network: RetinaNet, paper: Config) -> tuple[Outputs, Tensor, Tensor, Tensor]:
    """What the untrained network says to a random image, and what its anchors should learn."""
    image = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 12, 60, 50], [70, 40, 120, 120], [30, 64, 50, 100]])
    with torch.no_grad():
        outputs = network(image)
    matched = assign_batch(make_grid(paper.anchors, (128, 160)), [boxes], [torch.zeros(0, 4)], paper.assign)
    return outputs, matched, boxes, torch.tensor([3, 50, 3])


def predicted_loss(config: Config, matched: Tensor, p: float) -> tuple[float, float]:
    """Focal loss per foreground anchor if every probability is ``p``: of the true classes, and of all negatives."""
    foreground, background = int((matched >= 0).sum()), int((matched == BACKGROUND).sum())
    alpha, gamma = config.loss.alpha, config.loss.gamma
    assert alpha is not None
    positive = -alpha * (1 - p) ** gamma * math.log(p)
    negative = -(1 - alpha) * p**gamma * math.log(1 - p)
    return positive, ((CLASSES - 1) * foreground + CLASSES * background) * negative / foreground


def test_the_untrained_network_is_at_the_prior(start: tuple[Outputs, Tensor, Tensor, Tensor]) -> None:
    outputs = start[0]
    probability = torch.cat([level.flatten() for level in outputs.logits]).sigmoid()
    torch.testing.assert_close(probability, torch.full_like(probability, 0.01), rtol=0.02, atol=0)
    assert max(level.abs().max().item() for level in outputs.deltas) < 0.02  # and every box at its anchor


def test_the_first_loss_is_what_the_prior_predicts(
    start: tuple[Outputs, Tensor, Tensor, Tensor], paper: Config
) -> None:
    outputs, matched, boxes, labels = start
    grid = make_grid(paper.anchors, (128, 160))
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, paper.loss)
    positive, negative = predicted_loss(paper, matched, 0.01)
    assert losses.foreground.item() == (matched >= 0).sum() > 20
    assert IGNORE in matched
    assert losses.classification.item() == pytest.approx(positive + negative, rel=0.01)
    assert positive == pytest.approx(1.128, rel=0.001)  # −¼ · 0.99² · ln 0.01
    assert negative < 0.02 * positive  # the background does not drown the objects


def test_without_the_prior_the_background_is_nearly_all_of_the_loss(
    start: tuple[Outputs, Tensor, Tensor, Tensor], paper: Config
) -> None:
    """Why the paper's trainings diverged without it: a bias of 0 lets every anchor start at ½."""
    outputs, matched, boxes, labels = start
    prior_bias = -math.log(0.99 / 0.01)
    even = Outputs([level - prior_bias for level in outputs.logits], outputs.deltas)
    grid = make_grid(paper.anchors, (128, 160))
    at_prior, at_half = (
        detection_losses(o, grid, Matches.from_dense(matched), boxes, labels, paper.loss).classification.item()
        for o in (outputs, even)
    )
    positive, negative = predicted_loss(paper, matched, 0.5)
    assert at_half == pytest.approx(positive + negative, rel=0.01)
    assert negative > 1000 * positive
    assert at_half > 100 * at_prior


# The imbalance that the focal loss is for


def test_easy_background_outweighs_the_objects_in_cross_entropy_but_not_in_focal_loss() -> None:
    """100,000 anchors that are background with 0.9, and 100 objects that are found with 0.1."""
    logit = math.log(0.1 / 0.9)
    easy, hard = torch.full((100_000, 1), logit), torch.full((100, 1), logit)
    background, foreground = torch.full((100_000,), BACKGROUND), torch.zeros(100, dtype=torch.int64)
    shares = {}
    for gamma in (0.0, 2.0):
        of_background = focal_loss(easy, background, None, gamma).item()
        shares[gamma] = of_background / focal_loss(hard, foreground, None, gamma).item()
    assert shares[0.0] > 40
    assert shares[2.0] < 1


def test_a_thousand_background_anchors_for_each_foreground_anchor(shared_data: Path, paper: Config) -> None:
    dataset = read_split(shared_data / "coco80", "val")
    counts = {"anchors": 0, "foreground": 0, "background": 0}
    images = range(0, len(dataset), len(dataset) // 15)
    for index in images:
        width, height = dataset.sizes[index].tolist()
        size = scaled_size(height, width, paper.data)
        scale = torch.tensor([size[1] / width, size[0] / height] * 2)
        rows = dataset.rows(index)
        objects = torch.from_numpy(dataset.boxes[rows][~dataset.ignore[rows]]) * scale
        padded_height, padded_width = (-(-side // PAD_TO) * PAD_TO for side in size)
        matched = assign(make_grid(paper.anchors, (padded_height, padded_width)), objects, None, paper.assign)
        counts["anchors"] += len(matched)
        counts["foreground"] += int((matched >= 0).sum())
        counts["background"] += int((matched == BACKGROUND).sum())
    assert 1e4 < counts["anchors"] / len(images) < 2e5  # "10⁴–10⁵" boxes an image
    assert 300 < counts["background"] / counts["foreground"] < 3000
