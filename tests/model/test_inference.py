"""The network made ready computes what the trained one computes."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from retinanet.model import RetinaNet
from retinanet.model.inference import fold_batch_norm, for_inference

Network = TypeVar("Network", bound=nn.Module)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def randomised(model: Network) -> Network:
    """Batch norm with statistics as after a training."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0)):
                assert tensor is not None
                tensor.uniform_(low, high)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
    if isinstance(model, RetinaNet):
        for part in (model.fpn, model.classification, model.regression):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
    return model.eval()


def count(model: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in model.modules())


@pytest.mark.parametrize(
    ("backbone", "norms"), [("resnet18", 20), ("tf_efficientnet_lite0", 48), ("regnety_002", 44), ("convnext_atto", 0)]
)
def test_the_same_predictions_without_batch_norm(backbone: str, norms: int) -> None:
    torch.manual_seed(0)
    model = randomised(RetinaNet(backbone, num_classes=3, channels=32))
    before = copy.deepcopy(model.state_dict())
    ready = for_inference(model)
    assert count(model) == norms
    assert count(ready) == 0
    images = torch.randn(2, 3, 96, 128)
    with torch.inference_mode():
        expected, found = model(images), ready(images)
    for ours, theirs in zip([*found.logits, *found.deltas], [*expected.logits, *expected.deltas], strict=True):
        assert theirs.std() > 1e-3
        assert (ours - theirs).abs().max() < 5e-3 * theirs.std()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bfloat16_convolutions() -> None:
    torch.manual_seed(0)
    model = randomised(RetinaNet("resnet18", num_classes=3, channels=32, subnet_norm="group"))
    ready = for_inference(model, torch.bfloat16)
    kinds = {type(m).__name__: {p.dtype for p in m.parameters(recurse=False)} for m in ready.modules()}
    assert kinds["Conv2d"] == {torch.bfloat16}
    assert kinds["GroupNorm"] == {torch.float32}
    images = torch.randn(1, 3, 96, 128)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ready(images), model(images)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert (ours - theirs).abs().mean() < 0.05 * theirs.float().std()


class _TakenTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + self._normed(y)

    def _normed(self, y: Tensor) -> Tensor:
        z: Tensor = self.norm(y)
        return z


class _ChangedBetween(_TakenTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self._normed(self.conv(x).relu_())


class _CalledTwice(_TakenTwice):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self._normed(self.conv(self.conv(x)))


class _OneSize(_TakenTwice):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 224, "takes 224 px"
        return self._normed(self.conv(x))


@pytest.mark.parametrize("kind", [_TakenTwice, _ChangedBetween, _CalledTwice, _OneSize])
def test_what_cannot_be_folded_is_left_alone(kind: Any) -> None:
    model = randomised(kind())
    before = copy.deepcopy(model)
    assert fold_batch_norm(model) == 0
    assert count(model) == 1
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(images), before(images))


def test_without_affine_and_with_a_bias() -> None:
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1)))
    expected = copy.deepcopy(model)
    assert fold_batch_norm(model) == 1
    images = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected(images))


def test_a_network_of_one_input_size() -> None:
    """It does not take the probe; there is no batch norm to fold either."""
    model = RetinaNet("swin_tiny_patch4_window7_224", num_classes=2, channels=32, subnet_depth=1).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        for ours, theirs in zip(for_inference(model)(images).logits, model(images).logits, strict=True):
            torch.testing.assert_close(ours, theirs)
