"""Convolution, frozen batch norm, residual and ReLU as one GPU kernel, for the blocks of ResNets and for the subnets.

PyTorch runs these operations as separate kernels, and each kernel reads and writes the whole feature map. On a large
GPU, the kernels after the convolution take longer than the convolution. cuDNN computes all of them in the convolution's
own kernel. Values and gradients equal those of the separate layers up to rounding: the fused kernel rounds once, the
layers round after each operation. A second derivative is not supported. Parameters keep their names. Only
half-precision convolutions on a GPU (autocast) are fused; everywhere else the plain layers run.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


def is_fused(x: Tensor) -> bool:
    """Whether to fuse convolutions of ``x``: on a GPU, in half precision, and not inside ``torch.compile``."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return False
    return compute_dtype(x) in (torch.float16, torch.bfloat16) and torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a convolution of ``x`` computes in: autocast's, or that of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def fuse_residual_blocks(body: nn.Module) -> None:
    """Let the plain residual blocks of a timm ResNet or ResNeXt run fused if :func:`is_fused` allows it, in place."""
    for module in body.modules():
        fused = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}.get(type(module))
        if fused is not None and _is_plain(module):
            module.__class__ = fused  # changing the class keeps parameter names, and copies of the module stay fused


class _FusedBlock(nn.Module):
    """Mix-in that fuses each convolution of a residual block with norm and ReLU, and the last one with the residual."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` → ``(B, C', H', W')``."""
        block: Any = self
        if not is_fused(x) or _trains_norm(self):
            result: Tensor = super().forward(x)
            return result
        residual = x if block.downsample is None else _downsampled(x, block.downsample)
        layers = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        layers += [(block.conv3, block.bn3)] if hasattr(block, "conv3") else []
        for conv, norm in layers:
            added = residual if conv is layers[-1][0] else None
            x = conv_relu(x, *folded(conv, norm, x), geometry_of(conv), added)
        return x


class FusedBasicBlock(_FusedBlock, BasicBlock):
    """A residual block of two 3×3 convolutions."""


class FusedBottleneck(_FusedBlock, Bottleneck):
    """A residual block of a 1×1, a 3×3 and a 1×1 convolution."""


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry, residual: Tensor | None = None) -> Tensor:
    """``ReLU(conv(x) + bias + residual)``, ``(B, C, H, W)`` → ``(B, O, H', W')``, in the dtype of ``weight``."""
    kind = x.device.type
    with torch.autocast(kind, enabled=False):
        x, residual = x.to(weight.dtype), None if residual is None else residual.to(weight.dtype)
        if not torch.is_grad_enabled():
            return _fused(x, weight, bias, residual, geometry)
        result: Tensor = ConvReLU.apply(x, weight, bias, residual, *geometry)
    return result


class ConvReLU(torch.autograd.Function):
    """``ReLU(conv(x) + bias + residual)`` in one kernel on a GPU. The gradient of ReLU is computed from the result."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        """Compute the result."""
        geometry = (stride, padding, dilation, groups)
        y = _fused(x, weight, bias, residual, geometry)
        ctx.save_for_backward(x, weight, y)
        ctx.geometry = geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight, bias and residual."""
        x, weight, y = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        grad = torch.ops.aten.threshold_backward(grad_output, y, 0)
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            [len(weight)],
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            [needs_x, needs_weight, needs_bias],
        )
        return of_x, of_weight, of_bias, grad if needs_residual else None, None, None, None, None


def _fused(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, geometry: Geometry) -> Tensor:
    """``ReLU(conv(x) + bias + residual)`` in one kernel. On the CPU, plain operations compute it, for tests."""
    if x.device.type != "cuda":
        y = F.conv2d(x, weight, bias, *geometry)
        return (y if residual is None else y + residual).relu()
    if residual is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)


def folded(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that equals ``conv`` and frozen ``norm``, in :func:`compute_dtype`.

    If batch norm was folded before (:func:`retinanet.model.inference.fold_batch_norm`), ``norm`` is another module.
    """
    dtype = compute_dtype(x)
    if not isinstance(norm, BatchNorm):
        assert conv.bias is not None
        return conv.weight.to(dtype), conv.bias.to(dtype)
    scale, shift = _scale_and_shift(norm, dtype)
    return _Scaled.apply(conv.weight, scale, dtype), shift


def geometry_of(conv: nn.Conv2d) -> Geometry:
    """Stride, padding, dilation and groups."""
    assert not isinstance(conv.padding, str)
    return conv.stride, conv.padding, conv.dilation, conv.groups


class _Scaled(torch.autograd.Function):
    """``(weight · scale)`` rounded to ``dtype``, in one kernel in each direction; no gradient for ``scale``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return grad_output * scale, None, None


def _scale_and_shift(norm: BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Frozen batch norm as ``scale · x + shift``: float32 ``(C, 1, 1, 1)`` and ``(C,)`` in ``dtype``.

    They are cached in ``norm``, and computed again if a tensor of ``norm`` has changed.
    """
    tensors = [t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if t is not None]
    versions = (dtype, norm.eps, *((t.data_ptr(), t._version) for t in tensors))
    cached = norm.__dict__.get("_scale_and_shift")
    if cached is None or cached[0] != versions:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.inference_mode(False), torch.no_grad():  # the cached tensors must be usable in training
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.double()
            shift = -norm.running_mean.double() * scale
            shift = shift if norm.bias is None else shift + norm.bias.double()
            cached = versions, scale.float().view(-1, 1, 1, 1), shift.to(dtype)
        norm.__dict__["_scale_and_shift"] = cached
    return cached[1], cached[2]


def _downsampled(x: Tensor, downsample: Any) -> Tensor:
    """The shortcut of a block that changes size or channels: a convolution and its norm."""
    conv, norm = downsample
    weight, bias = folded(conv, norm, x)
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x.to(weight.dtype), weight, bias, *geometry_of(conv))


def _is_plain(block: Any) -> bool:
    """Whether a block has only convolutions, batch norm and ReLU, and its shortcut only one convolution and norm."""
    norms = [getattr(block, name) for name in ("bn1", "bn2", "bn3") if hasattr(block, name)]
    acts = [getattr(block, name) for name in ("act1", "act2", "act3") if hasattr(block, name)]
    shortcut = block.downsample
    plain_shortcut = shortcut is None or [type(part) for part in shortcut] == [nn.Conv2d, nn.BatchNorm2d]
    return (
        plain_shortcut
        and all(type(norm) is nn.BatchNorm2d and norm.track_running_stats for norm in norms)
        and all(type(act) is nn.ReLU for act in acts)
        and isinstance(block.drop_block, nn.Identity)
        and isinstance(block.aa, nn.Identity)
        and block.se is None
        and block.drop_path is None
    )


def _trains_norm(block: nn.Module) -> bool:
    """Whether batch norm of ``block`` uses the batch's statistics or has parameters to train."""
    return any(
        norm.training or (norm.weight is not None and norm.weight.requires_grad)
        for norm in block.modules()
        if isinstance(norm, BatchNorm)
    )
