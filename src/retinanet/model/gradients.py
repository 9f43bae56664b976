"""Replacements for layers whose gradient PyTorch computes slowly or incorrectly on the CPU.

In a training step of EfficientNet-Lite0 with group norm, two gradients took a third of the time. The weight gradient of
depthwise convolutions larger than 3×3 has no vectorized kernel (5×5 in bf16: 30 times slower than the code here).
PyTorch's gradient of group norm reads channels-last memory in strides (10 times slower than here). Values and gradients
equal those of the plain layers; a second derivative is not supported.
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
    """:class:`torch.nn.GroupNorm`, with a fast gradient on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(B, C, H, W)``."""
        last = x.ndim == 4 and x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last)
        if not last or not self.affine or not _needs_grad_on_cpu(x, self.weight):
            return super().forward(x)
        result: Tensor = _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return result


def _needs_grad_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether autograd will compute a gradient of plain tensors on the CPU."""
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return needs_grad and x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


class StridedConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` whose bf16 weight gradient on the CPU is also correct for maps one pixel wide or high.

    With stride 2, a row or column of a 3×3 kernel only ever covers padding on such a map. The bf16 kernel of torch 2.15
    does not write this part of the gradient, so it stays uninitialized: mostly zeros, sometimes NaN. P7 of a small or
    narrow image is such a map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)``."""
        if not _needs_grad_on_cpu(x, self.weight) or min(x.shape[-2:]) > 1:
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
        values, grad_output = (
            t.permute(0, 2, 3, 1).reshape(batch, -1, channels).to(dtype) for t in (x, grad)
        )  # (B, HW, C)
        mean, rstd, scale = mean.to(dtype), rstd.to(dtype), weight.to(dtype)

        def per_channel(of_group: Tensor) -> Tensor:  # (B, groups) → (B, C)
            return of_group.repeat_interleave(channels // groups, dim=1)

        total = grad_output.sum(dim=1)  # (B, C)
        product = (grad_output * values).sum(dim=1)  # (B, C)
        d_weight = ((product - per_channel(mean) * total) * per_channel(rstd)).sum(dim=0)
        # With g = grad_output: weight·rstd·g − rstd·mean(weight·g) − rstd·x̂·mean(weight·g·x̂), in terms of g, x and 1
        count = height * width * channels // groups
        scaled, scaled_product = ((t * scale).view(batch, groups, -1).sum(dim=2) / count for t in (total, product))
        of_x = (scaled * mean - scaled_product) * rstd**3  # (B, groups)
        constant = -of_x * mean - scaled * rstd
        d_x = values * per_channel(of_x)[:, None]
        d_x.addcmul_(grad_output, (per_channel(rstd) * scale)[:, None]).add_(per_channel(constant)[:, None])
        d_x = d_x.to(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return d_x, d_weight.to(weight.dtype), total.sum(dim=0).to(weight.dtype), None, None


def speed_up_depthwise(body: nn.Module) -> None:
    """Give the large depthwise convolutions in ``body`` a fast weight gradient on the CPU, in place."""
    for module in body.modules():
        fast = _FAST.get(type(module))
        if (
            fast is not None
            and isinstance(module, nn.Conv2d)
            and not isinstance(module.padding, str)
            and 1 < module.groups == module.in_channels == module.out_channels
            and module.kernel_size[0] == module.kernel_size[1] >= 3
            and (module.kernel_size[0] > 3 or module.stride != (1, 1))
            and max(module.padding) < module.kernel_size[0]
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
        ):
            module.__class__ = fast  # changing the class keeps parameter names, and copies of the module stay fast


class _LargeDepthwise(nn.Module):
    """Mix-in that gives a depthwise convolution a fast weight gradient."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        if x.ndim != 4 or not layer.weight.requires_grad or not _needs_grad_on_cpu(x, layer.weight):
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


_FAST: dict[type[nn.Module], type[nn.Conv2d]] = {nn.Conv2d: LargeDepthwise, Conv2dSame: LargeDepthwiseSame}


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
    """Insert zeros between the rows and columns of the gradient, and convolve it with the kernel rotated by 180°."""
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
    """Cover the kernel with 3×3 kernels. The gradient of each is that of a 3×3 convolution of a shifted input."""
    size, channels = weight.shape[-1], len(weight)
    offsets = sorted({*range(0, size - 2, 3), size - 3})
    height, width = ((n - 1) * step + 3 for n, step in zip(grad.shape[-2:], stride, strict=True))
    small = weight.new_empty(channels, 3, 3, 1).permute(0, 3, 1, 2)
    result = torch.empty_like(weight)
    for i in offsets:
        for j in offsets:
            top, left = padding[0] - i, padding[1] - j  # negative padding crops the input
            part = F.pad(x, (left, width - x.shape[-1] - left, top, height - x.shape[-2] - top))
            result[..., i : i + 3, j : j + 3] = torch.ops.aten.convolution_backward(
                grad, part, small, None, stride, (0, 0), (1, 1), False, (0, 0), channels, [False, True, False]
            )[1]
    return result
