"""A classification loss and its gradient in one kernel on the GPU: logits are read once, the gradient is written once.

Foreground and background are told apart by comparing each label with the class number, so nothing is gathered, no
matrix of targets is made, and the GPU never waits for the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from retinanet.losses.terms import Focal, FocalStar, QualityFocal, Terms, Varifocal

_BLOCK = 1024
_FOCAL, _STAR, _QUALITY, _VARIFOCAL = (tl.constexpr(kind) for kind in range(4))


def summed_on_gpu(logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None) -> Tensor:
    """:func:`retinanet.losses.terms.summed` for tensors on a GPU; float32 or less."""
    learns = torch.is_grad_enabled() and logits.requires_grad
    total: Tensor = _Summed.apply(logits, labels, terms, quality, learns)
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None, learns: bool) -> Tensor:
        total, gradient = _value_and_gradient(logits, labels, terms, quality, learns)
        if learns:
            ctx.save_for_backward(logits, labels, quality)
            ctx.terms, ctx.gradient = terms, gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, quality = ctx.saved_tensors
        # The gradient is scaled in place and given away; a second backward pass (retain_graph) makes a new one.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = _value_and_gradient(logits, labels, ctx.terms, quality, True)[1]
        blocks = triton.cdiv(gradient.numel(), _BLOCK)
        if blocks:  # not mul_, which would round the slope to the gradient's precision first
            _scale[(blocks,)](gradient, slope, gradient.numel(), block=_BLOCK)
        return gradient.to(logits.dtype), None, None, None, None


def _value_and_gradient(
    logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None, learns: bool
) -> tuple[Tensor, Tensor]:
    kind, alpha, beta = _in_numbers(terms)
    flat, labels = logits.detach().contiguous(), labels.contiguous()
    # float16 cannot hold the gradient before it is scaled
    dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    gradient = torch.empty_like(flat, dtype=dtype) if learns else flat
    blocks = triton.cdiv(flat.numel(), _BLOCK)
    partial = torch.zeros(blocks, device=flat.device)
    if blocks:
        _loss_and_gradient[(blocks,)](
            flat,
            labels,
            labels if quality is None else quality.detach().float().contiguous(),
            partial,
            gradient,
            flat.numel(),
            flat.shape[-1],
            terms.dense.weight,
            alpha,
            terms.dense.gamma,
            beta,
            kind=kind,
            square=terms.dense.gamma == 2,
            learns=learns,
            block=_BLOCK,
        )
    return partial.sum(dtype=torch.float64).float(), gradient


def _in_numbers(terms: Terms) -> tuple[int, float, float]:
    """Kind of loss, weight of the foreground, β."""
    match terms:
        case Focal(alpha, _):
            return 0, 1.0 if alpha is None else alpha, 0.0
        case FocalStar(alpha, _, beta):
            return 1, 1.0 if alpha is None else alpha, beta
        case QualityFocal():
            return 2, 1.0, 0.0
        case Varifocal():
            return 3, 1.0, 0.0
    raise NotImplementedError(f"no kernel for {terms}")


@triton.jit
def _softplus(x, small):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), given small = exp(−|x|) in [0, 1].

    log(1 + e) = 2 artanh(e / (2 + e)), whose argument is at most a third: seven terms of the series are as exact as
    float32, keep a small argument's digits, and cost less than a logarithm that does.
    """
    t = small / (2.0 + small)
    z = t * t
    series = z * 0.07692307692 + 0.09090909091
    series = z * series + 0.1111111111
    series = z * series + 0.1428571429
    series = z * series + 0.2
    series = z * series + 0.3333333333
    return tl.maximum(x, 0.0) + 2.0 * t * (1.0 + z * series)


@triton.jit
def _sigmoid(x, small):  # type: ignore[no-untyped-def]
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit  # type: ignore[untyped-decorator]
def _scale(gradient, slope, total, block: tl.constexpr):  # type: ignore[no-untyped-def]
    offset = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offset < total
    factor = tl.load(slope).to(tl.float32)
    if factor != 1.0:  # else the gradient is right as it is, and need not be read and written again
        value = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(gradient + offset, value * factor, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _loss_and_gradient(  # type: ignore[no-untyped-def]
    logits,
    labels,
    qualities,
    partial,
    gradient,
    total,
    classes: tl.constexpr,
    weight,
    alpha,
    gamma,
    beta,
    kind: tl.constexpr,
    square: tl.constexpr,
    learns: tl.constexpr,
    block: tl.constexpr,
):
    # One division of 64 bits a block; within it, 32 bits are enough.
    start = tl.program_id(0).to(tl.int64) * block
    first = start // classes
    local = (start - first * classes).to(tl.int32) + tl.arange(0, block)
    within = local // classes
    offset, row = start + tl.arange(0, block), first + within
    inside = offset < total
    x = tl.load(logits + offset, mask=inside, other=0.0).to(tl.float32)
    label = tl.load(labels + row, mask=inside, other=-2)
    right = label == local - within * classes
    # p = sigmoid(x), q = 1 − p, s = −log(1 − p), r = −log(p), none of them by a difference that loses digits
    small = tl.exp(-tl.abs(x))
    inverse = 1.0 / (1.0 + small)
    p, q = tl.where(x >= 0, 1.0, small) * inverse, tl.where(x >= 0, small, 1.0) * inverse
    s, r = _softplus(x, small), _softplus(-x, small)
    if kind == _STAR:
        y, z = gamma * x - beta, -gamma * x - beta
        small_y, small_z = tl.exp(-tl.abs(y)), tl.exp(-tl.abs(z))
        loss = weight * _softplus(y, small_y) / gamma
        slope = weight * _sigmoid(y, small_y)
        loss = tl.where(right, alpha * _softplus(z, small_z) / gamma, loss)
        slope = tl.where(right, -alpha * _sigmoid(z, small_z), slope)
    else:
        # with the usual γ, no exponential: in bf16 those take longer than reading and writing
        power = p * p if square else tl.exp(-gamma * r)  # p^γ
        loss = weight * power * s
        slope = weight * power * (gamma * q * s + p)
        if kind == _FOCAL:
            power = q * q if square else tl.exp(-gamma * s)  # (1 − p)^γ
            loss = tl.where(right, alpha * power * r, loss)
            slope = tl.where(right, -alpha * power * (gamma * p * r + q), slope)
        else:
            fit = tl.load(qualities + row, mask=inside, other=0.0).to(tl.float32)
            fit = tl.minimum(tl.maximum(fit, 0.0), 1.0)
            entropy = s - fit * x
            if kind == _VARIFOCAL:
                counts = right & (fit > 0)
                loss = tl.where(counts, fit * entropy, loss)
                slope = tl.where(counts, fit * (p - fit), slope)
            else:
                away = tl.maximum(tl.abs(p - fit), 1.2e-38)  # the smallest normal number
                power = tl.exp(gamma * tl.log(away))
                sign = tl.where(p >= fit, 1.0, -1.0)
                loss = tl.where(right, power * entropy, loss)
                bend = tl.where(away > 1.2e-38, gamma * power / away * sign * p * q * entropy, 0.0)
                own = power * (p - fit) + bend
                slope = tl.where(right, own, slope)
    counted = inside & (label != -2)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(counted, loss, 0.0)))
    if learns:
        tl.store(gradient + offset, tl.where(counted, slope, 0.0), mask=inside)
