"""The sum of a classification loss over all anchors, by the fastest implementation for the device.

:func:`reference_loss` is the definition, in operations on whole tensors. The kernels compute the same value and
gradient in one pass over the logits; the tests compare them with the reference.
"""

from __future__ import annotations

import importlib.util
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from retinanet.anchors.matches import IGNORE
from retinanet.errors import ArgumentError
from retinanet.losses.arguments import out_of_range, require_labels, transforms_are_active
from retinanet.losses.formula import Formula
from retinanet.losses.kernels import cpu

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def summed_loss(
    logits: Tensor, labels: Tensor, formula: Formula, quality: Tensor | None = None, divisor: float = 1.0
) -> Tensor:
    """Sum the loss over all logits that are not ignored, in at least float32, also under autocast.

    The sum can be differentiated any number of times. From the second time on, the readable formula is used.

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class ``0..K-1``, ``BACKGROUND`` (−1, all classes negative) or ``IGNORE`` (−2, no loss).
        formula: which loss.
        quality: ``(…,)``, q of the positive anchors; values of other anchors are not read.
        divisor: number that divides the sum. A kernel needs it to write the final gradient in its only pass.

    Raises:
        ArgumentError: the shapes do not fit, or (on the CPU) a label is out of range. Where a check would have to wait
            for a GPU, such a label makes the sum NaN.
    """
    require_labels(logits, labels)
    if quality is not None and quality.shape != labels.shape:
        raise ArgumentError(f"quality {tuple(quality.shape)} does not fit labels {tuple(labels.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        kernel = _kernel(logits)
        if kernel is None:
            return reference_loss(logits, labels, formula, quality) / divisor
        requires_grad = torch.is_grad_enabled() and logits.requires_grad
        # The CPU kernel scales its gradient in backward() anyway, so autograd can divide at no cost.
        inside = 1.0 if kernel is cpu else divisor
        total: Tensor = SumByKernel.apply(logits, labels, formula, quality, inside, kernel, requires_grad)
        return total / divisor if inside != divisor else total


def reference_loss(logits: Tensor, labels: Tensor, formula: Formula, quality: Tensor | None = None) -> Tensor:
    """Compute :func:`summed_loss` by its definition, in operations on whole tensors."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    positive = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)  # (…, K)
    if quality is not None:
        quality = torch.where(labels >= 0, quality, 0).to(x.dtype).clamp(0, 1)[..., None].expand_as(x)
    loss = torch.where(positive, formula.foreground(x, quality), formula.background(x))
    loss = torch.where((labels != IGNORE)[..., None], loss, 0.0)
    return torch.where(out_of_range(labels, logits.shape[-1])[..., None], math.nan, loss).sum()


class SumByKernel(torch.autograd.Function):
    """Sum and gradient from one call of a kernel: a module with ``value_and_gradient`` and ``scaled``."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        formula: Formula,
        quality: Tensor | None,
        divisor: float,
        kernel: Any,
        requires_grad: bool,
    ) -> Tensor:
        """Compute the sum, and the gradient with it."""
        total, gradient = kernel.value_and_gradient(logits, labels, formula, quality, divisor, requires_grad)
        if requires_grad:
            ctx.save_for_backward(logits, labels, quality)
            ctx.formula, ctx.divisor, ctx.kernel, ctx.gradient = formula, divisor, kernel, gradient
        result: Tensor = total
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient times ``grad_output``."""
        logits, labels, quality = ctx.saved_tensors
        rest = (None,) * 6
        batched = torch._C._functorch.is_legacy_batchedtensor(grad_output)  # is_grads_batched
        if torch.is_grad_enabled() or transforms_are_active() or batched:  # enabled: create_graph
            with torch.enable_grad():
                total = reference_loss(logits, labels, ctx.formula, quality) / ctx.divisor
            (slope,) = torch.autograd.grad(total, logits, create_graph=torch.is_grad_enabled())
            return (slope * grad_output, *rest)
        # The gradient is scaled in place and returned. A second backward pass (retain_graph) computes it again.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = ctx.kernel.value_and_gradient(logits, labels, ctx.formula, quality, ctx.divisor, True)[1]
        scaled = ctx.kernel.scaled(gradient, grad_output)
        return (scaled.view(logits.shape).to(logits.dtype), *rest)


def _kernel(logits: Tensor) -> ModuleType | None:
    """Return the kernel module for the device of ``logits``; None: use the reference."""
    if logits.numel() == 0 or torch.compiler.is_compiling() or transforms_are_active():
        return None
    if logits.device.type == "cpu":
        return cpu
    if logits.device.type == "cuda" and logits.dtype != torch.float64 and _HAS_TRITON:
        from retinanet.losses.kernels import triton

        return triton
    return None
