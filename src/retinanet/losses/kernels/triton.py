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
from triton.language.extra import libdevice

from retinanet.anchors.assign import BACKGROUND, IGNORE
from retinanet.losses.terms import Focal, FocalStar, QualityFocal, Terms, Varifocal

# 16 elements a thread: what each thread does once is divided by many, and two loads of 16 bytes are under way.
_BLOCK, _WARPS = 2048, 4
_SCALING_PROGRAMS = 4096  # enough to fill any GPU; each that has nothing to do costs a little
_FOCAL, _STAR, _QUALITY, _VARIFOCAL = (tl.constexpr(kind) for kind in range(4))
_BACKGROUND, _IGNORE = tl.constexpr(BACKGROUND), tl.constexpr(IGNORE)


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
        programs = min(triton.cdiv(gradient.numel(), _BLOCK), _SCALING_PROGRAMS)
        if programs:  # not mul_, which would round the slope to the gradient's precision first
            _scale[(programs,)](gradient, slope, gradient.numel(), block=_BLOCK)
        return gradient.to(logits.dtype), None, None, None, None


def _value_and_gradient(
    logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None, learns: bool
) -> tuple[Tensor, Tensor]:
    kind, alpha, beta = _in_numbers(terms)
    flat, labels = logits.detach().contiguous(), labels.contiguous()
    # float16 cannot hold the gradient before it is scaled
    dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    gradient = torch.empty_like(flat, dtype=dtype) if learns else flat
    blocks, classes = triton.cdiv(flat.numel(), _BLOCK), flat.shape[-1]
    partial = torch.empty(blocks, device=flat.device)
    if blocks:
        _loss_and_gradient[(blocks,)](
            flat,
            labels,
            labels if quality is None else quality.detach().float().contiguous(),
            partial,
            gradient,
            flat.numel(),
            classes,
            terms.dense.weight,
            alpha,
            terms.dense.gamma,
            beta,
            kind=kind,
            square=terms.dense.gamma == 2,
            learns=learns,
            fast=flat.is_cuda,  # else it is Triton's interpreter
            block=_BLOCK,
            near=rows_of_a_block(classes),
            num_warps=_WARPS,
        )
    return partial.sum(dtype=torch.float64).float(), gradient


def rows_of_a_block(classes: int) -> int:
    """Rows of the logits that a block touches at most, rounded up to what Triton can make a range of."""
    rows: int = triton.next_power_of_2((_BLOCK - 2) // classes + 2)
    return rows


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


@triton.jit  # type: ignore[untyped-decorator]
def _scale(gradient, slope, total, block: tl.constexpr):  # type: ignore[no-untyped-def]
    factor = tl.load(slope).to(tl.float32)
    if factor != 1.0:  # else the gradient is right as it is, and need not be read and written again
        start = tl.program_id(0).to(tl.int64) * block
        while start < total:
            offset = start + tl.arange(0, block)
            inside = offset < total
            value = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
            tl.store(gradient + offset, value * factor, mask=inside)
            start += tl.num_programs(0).to(tl.int64) * block


@triton.jit  # type: ignore[untyped-decorator]
def _sigmoid(x, fast: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(−x)), without losing digits where it is small; 0 where exp(−x) overflows."""
    if fast:  # the GPU's own instructions, without corrections for numbers that do not occur here
        return libdevice.fast_dividef(1.0, 1.0 + libdevice.fast_expf(-x))
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x, least):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), given least = min(p, 1 − p) with p = sigmoid(x): max(x, 0) − log(1 − least).

    A polynomial for −log(1 − least) / least on [0, 1/2], whose relative error is at most 3e-7 in float32: exact for
    small p too, and cheaper than a logarithm that is.
    """
    y = least * 1.18493153 - 1.08154027
    y = y * least + 0.785431079
    y = y * least + 0.0380180447
    y = y * least + 0.272250541
    y = y * least + 0.33186262
    y = y * least + 0.500036543
    y = y * least + 0.999999852
    return y * least + tl.maximum(x, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _foreground(  # type: ignore[no-untyped-def]
    x, s, fit, weight, alpha, gamma, beta, kind: tl.constexpr, square: tl.constexpr, fast: tl.constexpr
):
    """Loss and its slope where the class is right, given s = softplus(x), −log(1 − p)."""
    p, q = _sigmoid(x, fast), _sigmoid(-x, fast)
    r = _softplus(-x, tl.minimum(p, q))  # −log p
    if kind == _STAR:
        z = -gamma * x - beta
        chance = _sigmoid(z, fast)
        loss = alpha * _softplus(z, tl.minimum(chance, 1.0 - chance)) / gamma
        slope = -alpha * chance
    elif kind == _FOCAL:
        power = q * q if square else tl.exp(-gamma * s)  # (1 − p)^γ
        loss = alpha * power * r
        slope = -alpha * power * (gamma * p * r + q)
    else:
        fit = tl.minimum(tl.maximum(fit, 0.0), 1.0)
        entropy = s - fit * x
        if kind == _VARIFOCAL:  # a box that does not fit at all is background
            power = p * p if square else tl.exp(-gamma * r)
            loss = tl.where(fit > 0, fit * entropy, weight * power * s)
            slope = tl.where(fit > 0, fit * (p - fit), weight * power * (gamma * q * s + p))
        else:
            away = tl.maximum(tl.abs(p - fit), 1.2e-38)  # the smallest normal number
            power = tl.exp(gamma * tl.log(away))
            sign = tl.where(p >= fit, 1.0, -1.0)
            bend = tl.where(away > 1.2e-38, gamma * power / away * sign * p * q * entropy, 0.0)
            loss = power * entropy
            slope = power * (p - fit) + bend
    return loss, slope


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
    fast: tl.constexpr,
    block: tl.constexpr,
    near: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * block
    offset = start + tl.arange(0, block)
    inside = offset < total
    x = tl.load(logits + offset, mask=inside, other=-float("inf")).to(tl.float32)
    first = start // classes
    row = first + tl.arange(0, near)
    special = tl.load(labels + row, mask=row * classes < tl.minimum(start + block, total), other=_BACKGROUND)

    # As if all were background, with p = sigmoid(x), q = 1 − p and s = −log q. In bf16, some 40 instructions an element
    # take as long as reading it and writing its gradient: each of them counts.
    y = gamma * x - beta if kind == _STAR else x
    p = _sigmoid(y, fast)
    q = 1.0 - p
    s = _softplus(y, tl.minimum(p, q))
    if kind == _STAR:
        loss, slope = weight / gamma * s, weight * p
    else:
        power = (weight * p) * p if square else weight * tl.exp(gamma * (x - s))
        loss, slope = power * s, power * ((gamma * q) * s + p)
    if not square:
        loss = tl.where(inside, loss, 0.0)  # with γ = 2 it is 0 outside

    # Few blocks have anything else, and only these look at each element's label.
    if tl.max((special != _BACKGROUND).to(tl.int32), 0) > 0:
        local = (start - first * classes).to(tl.int32) + tl.arange(0, block)  # in a block, 32 bits are enough
        within = local // classes
        label = tl.load(labels + first + within, mask=inside, other=_IGNORE)
        fit = tl.load(qualities + first + within, mask=inside, other=0.0).to(tl.float32) if kind >= _QUALITY else x
        s = _softplus(x, tl.minimum(_sigmoid(x, fast), _sigmoid(-x, fast)))
        own_loss, own_slope = _foreground(x, s, fit, weight, alpha, gamma, beta, kind, square, fast)
        right = label == local - within * classes
        loss = tl.where(label == _IGNORE, 0.0, tl.where(right, own_loss, loss))
        slope = tl.where(label == _IGNORE, 0.0, tl.where(right, own_slope, slope))
    tl.store(partial + tl.program_id(0), tl.sum(loss))
    if learns:
        tl.store(gradient + offset, slope, mask=inside)
