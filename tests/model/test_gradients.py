"""The quick gradients against those of PyTorch's own layers, in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from retinanet.model.fpn import FeaturePyramid
from retinanet.model.gradients import GroupNorm, LargeDepthwise, LargeDepthwiseSame, StridedConv2d, speed_up_depthwise

LARGE_DEPTHWISE = (LargeDepthwise, LargeDepthwiseSame)


def gradients(layer: nn.Module, x: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradient by input and parameters of ``(layer(x) · slope).sum()``."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    return y, *torch.autograd.grad((y * slope).sum(), [x, *parameters])


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, theirs.abs().max().item()))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 8),
    each=st.integers(1, 4),
    batch=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(2, 7),
    shift=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 10_000),
)
def test_group_norm(groups: int, each: int, batch: int, height: int, width: int, shift: float, seed: int) -> None:
    torch.manual_seed(seed)
    channels = groups * each
    ours = GroupNorm(groups, channels, dtype=torch.float64)
    nn.init.normal_(ours.weight)
    theirs = nn.GroupNorm(groups, channels, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x, slope = (
        channels_last(batch, channels, height, width) + shift,
        torch.randn(batch, channels, height, width).double(),
    )
    assert_same(gradients(ours, x, slope), gradients(theirs, x, slope), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_in_training_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, exact = GroupNorm(32, 128), nn.GroupNorm(32, 128, dtype=torch.float64)
    x, slope = channels_last(2, 128, 20, 26, dtype=dtype) + 3, torch.randn(2, 128, 20, 26, dtype=dtype)
    expected = gradients(exact, x.double(), slope.double())
    found = gradients(ours, x, slope)
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    assert found[2].dtype == found[3].dtype == torch.float32
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert_same(tuple(t.double() for t in found), expected, tolerance)


@settings(max_examples=80, deadline=None)
@given(
    kernel=st.sampled_from([3, 4, 5, 6, 7, 9]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    height=st.integers(9, 17),
    width=st.integers(9, 17),
    channels=st.sampled_from([2, 16, 20]),
    bias=st.booleans(),
    same=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_depthwise(
    kernel: int, stride: int, padding: int, height: int, width: int, channels: int, bias: bool, same: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    kind = Conv2dSame if same else nn.Conv2d
    theirs = kind(channels, channels, kernel, stride, min(padding, kernel - 1), groups=channels, bias=bias).double()
    ours = copy.deepcopy(theirs)
    speed_up_depthwise(ours)
    assert isinstance(ours, LARGE_DEPTHWISE) == (kernel > 3 or stride > 1)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = channels_last(2, channels, height, width)
    slope = torch.randn_like(theirs(x))
    assert_same(gradients(ours, x, slope), gradients(theirs, x, slope), 1e-10)


def test_other_convolutions_are_left_alone() -> None:
    layers = nn.Sequential(
        nn.Conv2d(8, 8, 5),
        nn.Conv2d(8, 16, 5, groups=8),
        nn.Conv2d(8, 8, 5, groups=4),
        nn.Conv2d(1, 1, 5),
        nn.Conv2d(8, 8, 5, groups=8, dilation=2),
        nn.Conv2d(8, 8, 5, groups=8, padding="same"),
        nn.Conv2d(8, 8, 5, groups=8, padding=2, padding_mode="reflect"),
        nn.Conv2d(8, 8, (5, 3), groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        StdConv2d(8, 8, 5, padding=2, groups=8),
    )
    speed_up_depthwise(layers)
    assert not any(isinstance(layer, LARGE_DEPTHWISE) for layer in layers)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_backbone(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True).eval().to(memory_format=torch.channels_last)
    ours = copy.deepcopy(theirs)
    speed_up_depthwise(ours)
    assert sum(isinstance(module, LARGE_DEPTHWISE) for module in ours.modules()) > 5
    x = torch.randn(2, 3, 64, 96).to(memory_format=torch.channels_last)
    found = []
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = sum(feature.float().square().mean() for feature in model(x))
        assert isinstance(loss, Tensor)
        found.append(
            (loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        )
    (loss, ours_flat), (expected, theirs_flat) = found
    tolerance = 2e-2 if autocast else 1e-4
    assert abs(loss - expected) <= tolerance * expected
    assert (ours_flat - theirs_flat).norm() <= 2 * tolerance * theirs_flat.norm()


def test_frozen_and_inference_layers_take_the_plain_way() -> None:
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    plain = copy.deepcopy(layer)
    speed_up_depthwise(layer)
    x = torch.randn(1, 8, 9, 9)
    with torch.no_grad():
        assert torch.equal(layer(x), plain(x))
    layer.requires_grad_(False)
    y = layer(x.requires_grad_())
    assert type(y.grad_fn).__name__ == "ConvolutionBackward0"


def test_layers_can_be_copied_pickled_and_traced() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), GroupNorm(4, 8))
    speed_up_depthwise(layers)
    speed_up_depthwise(layers)  # once more changes nothing
    x = channels_last(1, 8, 9, 9, dtype=torch.float32)
    again = pickle.loads(pickle.dumps(layers))
    assert isinstance(again[0], LARGE_DEPTHWISE)
    assert torch.equal(again(x), layers(x))
    traced = torch.jit.trace(layers, x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(x), layers(x))


def test_unusual_inputs_of_group_norm_and_depthwise() -> None:
    plain = GroupNorm(2, 4, affine=False)
    x = channels_last(2, 4, 3, 5, dtype=torch.float32)
    assert torch.equal(plain(x.requires_grad_()), nn.GroupNorm(2, 4, affine=False)(x))
    assert GroupNorm(2, 4)(torch.zeros(0, 4, 3, 5)).shape == (0, 4, 3, 5)
    layer = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    expected = layer(x[0])
    speed_up_depthwise(layer)
    assert torch.equal(layer(x[0]), expected)


def test_half_precision_with_a_small_spread() -> None:
    torch.manual_seed(0)
    ours, exact = GroupNorm(4, 16).half(), nn.GroupNorm(4, 16).double()
    x, slope = channels_last(2, 16, 8, 8, dtype=torch.float16) * 0.01, torch.randn(2, 16, 8, 8, dtype=torch.float16)
    found, expected = gradients(ours, x, slope), gradients(exact, x.double(), slope.double())
    assert all(t.isfinite().all() for t in found)
    assert (found[1].double() - expected[1]).norm() < 0.02 * expected[1].norm()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (3, 1), (1, 5), (2, 2), (5, 5)])
def test_strided_convolution_of_maps_one_pixel_wide_in_bf16(size: tuple[int, int]) -> None:
    """PyTorch leaves parts of this weight gradient unwritten; with NaN in freed memory they become NaN."""
    torch.manual_seed(0)
    layer = StridedConv2d(32, 32, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
    x = channels_last(2, 32, *size, dtype=torch.float32)
    for _ in range(5):
        garbage = [torch.full((count,), float("nan")) for count in (9 * 32 * 32, 5000, 9 * 32 * 16)]
        del garbage
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        slope = torch.randn_like(y)
        (found,) = torch.autograd.grad(y, [layer.weight], slope)
        size_of = layer.weight.shape
        expected = conv2d_weight(x.double(), size_of, slope.double(), stride=2, padding=1)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.1)


def test_small_images_train_in_bf16() -> None:
    """The gradients of all levels are finite and always the same; P7 of a 64-pixel image is one pixel."""
    pyramid = FeaturePyramid((16, 32, 64), 32).to(memory_format=torch.channels_last)
    features = [channels_last(2, c, 64 // s, 64 // s, dtype=torch.float32) for c, s in ((16, 8), (32, 16), (64, 32))]
    found = []
    for _ in range(4):
        garbage = [torch.full((count,), float("nan")) for count in (9 * 32 * 32, 5000, 9 * 32 * 16)]
        del garbage
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = sum(level.float().sum() for level in pyramid(features))
        found.append(torch.autograd.grad(total, list(pyramid.parameters())))
    for gradient in found:
        assert all(torch.equal(a, b) for a, b in zip(gradient, found[0], strict=True))
        assert all(torch.isfinite(a).all() for a in gradient)
