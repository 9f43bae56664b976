"""Gradients that PyTorch's CPU kernels compute slowly or wrongly, computed from operations that they do well.

Of a training step with EfficientNet-Lite0 and group norm two of them took a third: the weight gradient of depthwise
convolutions larger than 3×3 has no vectorised kernel (5×5 in bf16: 30 × slower than this), and the gradient of group
norm on channels-last memory is walked in strides (10 × slower). Values and gradients are those of the plain layers; a
second derivative is not supported.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """:class:`torch.nn.GroupNorm`, with a quick gradient on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, H, W)``."""
        last = x.ndim == 4 and x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last)
        if not last or not self.affine or not _learns_on_cpu(x, self.weight):
            return super().forward(x)
        result: Tensor = _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return result


def _learns_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient will be asked for, here and of plain tensors."""
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return learns and x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


class StridedConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` whose weight gradient is right for maps one pixel wide, also in bf16 on the CPU.

    Where such a map is all padding to a row of a 3×3 kernel with stride 2, the bf16 kernel of torch 2.15 leaves that
    part of the gradient as the memory was: mostly zeros, sometimes NaN. P7 of a small or narrow image is such a map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)``."""
        if min(x.shape[-2:]) > 1 or not _learns_on_cpu(x, self.weight):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            result: Tensor = super().forward(x.to(self.weight.dtype))
        return result.to(x.dtype)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, height * width, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        (batch, channels, height, width), groups = x.shape, mean.shape[1]
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        values, slope = (t.permute(0, 2, 3, 1).reshape(batch, -1, channels).to(dtype) for t in (x, grad))  # (B, HW, C)
        mean, rstd, scale = mean.to(dtype), rstd.to(dtype), weight.to(dtype)

        def each_channel(of_group: Tensor) -> Tensor:  # (B, groups) → (B, C)
            return of_group.repeat_interleave(channels // groups, dim=1)

        total = slope.sum(dim=1)  # (B, C)
        product = (slope * values).sum(dim=1)  # (B, C)
        d_weight = ((product - each_channel(mean) * total) * each_channel(rstd)).sum(dim=0)
        # weight·rstd·slope − rstd·mean(weight·slope) − rstd·x̂·mean(weight·slope·x̂), written as slope, x and 1 times
        count = height * width * channels // groups
        scaled, scaled_product = ((t * scale).view(batch, groups, -1).sum(dim=2) / count for t in (total, product))
        of_x = (scaled * mean - scaled_product) * rstd**3  # (B, groups)
        constant = -of_x * mean - scaled * rstd
        d_x = values * each_channel(of_x)[:, None]
        d_x.addcmul_(slope, (each_channel(rstd) * scale)[:, None]).add_(each_channel(constant)[:, None])
        d_x = d_x.to(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return d_x, d_weight.to(weight.dtype), total.sum(dim=0).to(weight.dtype), None, None


def speed_up_depthwise(body: nn.Module) -> None:
    """Give the large depthwise convolutions in ``body`` a quick weight gradient on the CPU, in place."""
    for module in body.modules():
        quick = _QUICK.get(type(module))
        if (
            quick is not None
            and isinstance(module, nn.Conv2d)
            and not isinstance(module.padding, str)
            and 1 < module.groups == module.in_channels == module.out_channels
            and module.kernel_size[0] == module.kernel_size[1] >= 3
            and (module.kernel_size[0] > 3 or module.stride != (1, 1))
            and max(module.padding) < module.kernel_size[0]
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
        ):
            module.__class__ = quick  # weights keep their names, copies their behaviour


class _LargeDepthwise(nn.Module):
    """Mixed into depthwise convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        if x.ndim != 4 or not layer.weight.requires_grad or not _learns_on_cpu(x, layer.weight):
            result: Tensor = super().forward(x)
            return result
        if isinstance(self, Conv2dSame):
            x = pad_same(x, list(self.kernel_size), list(self.stride))
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        bias = None if layer.bias is None else layer.bias.to(dtype)
        with torch.autocast("cpu", enabled=False):
            y: Tensor = _Depthwise.apply(x.to(dtype), layer.weight.to(dtype), bias, layer.stride, layer.padding)
        return y


class LargeDepthwise(_LargeDepthwise, nn.Conv2d):
    """A depthwise convolution."""


class LargeDepthwiseSame(_LargeDepthwise, Conv2dSame):
    """A depthwise convolution that pads as TensorFlow does."""


_QUICK: dict[type[nn.Module], type[nn.Conv2d]] = {nn.Conv2d: LargeDepthwise, Conv2dSame: LargeDepthwiseSame}


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_x = of_weight = of_bias = None
        if needs_x:
            of_x = _input_gradient(grad, x, weight, ctx.stride, ctx.padding)
        if needs_weight:
            of_weight = _weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        if needs_bias:
            of_bias = grad.sum(dim=(0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The convolution of the gradient, with zeros between its rows and columns, with the kernel turned round."""
    size, (batch, channels, height, width) = weight.shape[-1], x.shape
    spread = grad.new_zeros(batch, height + size - 1, width + size - 1, channels).permute(0, 3, 1, 2)
    top, left = size - 1 - padding[0], size - 1 - padding[1]
    rows = slice(top, top + (grad.shape[-2] - 1) * stride[0] + 1, stride[0])
    columns = slice(left, left + (grad.shape[-1] - 1) * stride[1] + 1, stride[1])
    spread[..., rows, columns] = grad
    return F.conv2d(spread, weight.flip(-1, -2), groups=channels)


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The kernel is covered by 3×3 kernels; each one's gradient is that of a 3×3 convolution of a shifted input."""
    size, channels = weight.shape[-1], len(weight)
    offsets = sorted({*range(0, size - 2, 3), size - 3})
    height, width = ((n - 1) * step + 3 for n, step in zip(grad.shape[-2:], stride, strict=True))
    small = weight.new_empty(channels, 3, 3, 1).permute(0, 3, 1, 2)
    result = torch.empty_like(weight)
    for i in offsets:
        for j in offsets:
            top, left = padding[0] - i, padding[1] - j  # negative: cut off
            part = F.pad(x, (left, width - x.shape[-1] - left, top, height - x.shape[-2] - top))
            result[..., i : i + 3, j : j + 3] = torch.ops.aten.convolution_backward(
                grad, part, small, None, stride, (0, 0), (1, 1), False, (0, 0), channels, [False, True, False]
            )[1]
    return result
