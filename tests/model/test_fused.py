"""Fused convolutions compute what the plain layers compute, value and gradient; on the CPU by plain operations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retinanet.model import RetinaNet, fused, subnets
from retinanet.model.fused import ConvReLU, FusedBasicBlock, FusedBottleneck
from retinanet.model.inference import for_inference

ONE = ((1, 1), (1, 1), (1, 1), 1)  # stride, padding, dilation, groups


@pytest.fixture
def _fused_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fused, subnets):
        monkeypatch.setattr(module, "is_fused", lambda x: True)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("geometry", [ONE, ((2, 2), (0, 1), (1, 1), 2), ((1, 1), (2, 2), (2, 2), 1)])
def test_value_and_gradient_are_those_of_the_plain_operations(geometry: fused.Geometry, with_residual: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // geometry[-1], 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, weight, bias, *geometry)
    residual = torch.randn_like(plain, requires_grad=True) if with_residual else None
    expected = (plain if residual is None else plain + residual).relu()
    found: Tensor = ConvReLU.apply(x, weight, bias, residual, *geometry)
    assert torch.equal(found, expected)
    leaves = [x, weight, bias, *([] if residual is None else [residual])]
    grad_output = torch.randn_like(expected)
    for own, theirs in zip(
        torch.autograd.grad(found, leaves, grad_output), torch.autograd.grad(expected, leaves, grad_output), strict=True
    ):
        torch.testing.assert_close(own, theirs)


def network(backbone: str) -> RetinaNet:
    """With statistics of batch norm as after a training."""
    torch.manual_seed(0)
    model = RetinaNet(backbone, num_classes=3, channels=32, freeze_stages=1).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model


def value_and_gradients(model: RetinaNet, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    outputs = model(images)
    value = torch.cat([t.flatten() for t in (*outputs.logits, *outputs.deltas)])
    (value * torch.linspace(-1, 1, len(value), dtype=value.dtype)).sum().backward()  # type: ignore[no-untyped-call]
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("backbone", "kind"), [("resnet18", FusedBasicBlock), ("resnext50_32x4d", FusedBottleneck)])
def test_a_network_has_the_same_outputs_and_gradients(
    backbone: str, kind: type[nn.Module], request: pytest.FixtureRequest
) -> None:
    model, images = network(backbone), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert sum(isinstance(module, kind) for module in model.modules()) in (8, 16)
    expected, theirs = value_and_gradients(model, images)
    request.getfixturevalue("_fused_on_the_cpu")
    found, own = value_and_gradients(model, images)
    assert not torch.equal(found, expected)  # batch norm was folded: rounded otherwise
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    assert own.keys() == theirs.keys()
    assert not any("bn" in name for name in own)
    for name, value in own.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5 * float(theirs[name].abs().max()))


@pytest.mark.usefixtures("_fused_on_the_cpu")
def test_statistics_that_change_are_noticed() -> None:
    """By loading a checkpoint, or by averaging weights in place."""
    model, images = network("resnet18"), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        before = model(images).logits[0]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.add_(0.5)
    with torch.no_grad():
        assert not torch.allclose(model(images).logits[0], before)
        assert torch.equal(other(images).logits[0], before)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(images).logits[0], model(images).logits[0])
    assert value_and_gradients(other, images)[1]  # what inference kept does not stop a training


@pytest.mark.usefixtures("_fused_on_the_cpu")
def test_trained_batch_norm_is_not_folded() -> None:
    torch.manual_seed(0)
    model = RetinaNet("resnet18", num_classes=2, channels=32, norm="trained").train()
    statistics = model.backbone.body.layer1[0].bn1.running_mean.clone()  # type: ignore[index, union-attr]
    _, gradients = value_and_gradients(model, torch.randn(2, 3, 64, 64))
    assert any("bn2.weight" in name for name in gradients)
    assert not torch.equal(model.backbone.body.layer1[0].bn1.running_mean, statistics)  # type: ignore[index, union-attr]


@pytest.mark.usefixtures("_fused_on_the_cpu")
def test_a_network_made_ready_to_predict_stays_the_same() -> None:
    model, images = network("resnet18").float().eval(), torch.randn(1, 3, 64, 64)
    ready = for_inference(model)
    with torch.inference_mode():
        found, expected = ready(images), model(images)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_blocks_that_do_more_stay_as_they_are() -> None:
    """Squeeze and excitation, blur pooling, or another activation are not part of the kernel."""
    for backbone in ("seresnet50", "resnetblur50", "resnet50d"):
        kinds = {type(m) for m in RetinaNet(backbone, num_classes=1, channels=32).modules()}
        whole = {"seresnet50": 0, "resnetblur50": 1, "resnet50d": 1}[backbone]
        assert (FusedBottleneck in kinds) <= whole
    assert not fused.is_fused(torch.zeros(1, device="cpu"))
