"""A classification loss and its gradient in one GPU kernel, which reads each logit and writes each gradient once.

Foreground and background are distinguished by comparing each label with the class index. So nothing is gathered, no
matrix of targets is created, and the GPU never waits for the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from retinanet.anchors.matches import BACKGROUND, IGNORE
from retinanet.losses.formula import LARGE_LOGIT, Formula

# Bytes of logits that a block reads: 8 float32 numbers per thread, or 16 in half precision, which needs fewer
# instructions per number. The size was chosen on an H100, compared with half and twice this size.
BLOCK_BYTES, WARPS = 4096, 4
_SCALING_PROGRAMS = 4096  # enough to fill any GPU; each idle block has a small cost
_KINDS = ("focal", "focal_star", "quality_focal", "varifocal")
_FOCAL, _STAR, _QUALITY, _VARIFOCAL = (tl.constexpr(kind) for kind in range(4))
_LARGE = tl.constexpr(LARGE_LOGIT)
_BACKGROUND, _IGNORE = tl.constexpr(BACKGROUND), tl.constexpr(IGNORE)


def value_and_gradient(
    logits: Tensor, labels: Tensor, formula: Formula, quality: Tensor | None, divisor: float, requires_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return :func:`retinanet.losses.sum.summed_loss` on a GPU, and its gradient if ``requires_grad``.

    The precision of the logits is float32 or lower.
    """
    numbers = formula.coefficients
    flat, labels = logits.detach().contiguous(), labels.contiguous()
    # float16 cannot hold the gradient before it is scaled
    dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    gradient = torch.empty_like(flat, dtype=dtype) if requires_grad else flat
    block, classes = block_size(flat.dtype), flat.shape[-1]
    blocks = triton.cdiv(flat.numel(), block)
    partial = torch.empty(blocks, device=flat.device)
    if blocks:
        loss_kernel[(blocks,)](
            flat,
            labels,
            labels if quality is None else quality.detach().float().contiguous(),
            partial,
            gradient,
            flat.numel(),
            classes,
            # loss and gradient are proportional to these two factors, so divide the factors instead
            numbers.background / divisor,
            numbers.foreground / divisor,
            numbers.gamma,
            numbers.beta,
            kind=_KINDS.index(numbers.kind),
            square=numbers.gamma == 2,
            requires_grad=requires_grad,
            fast=flat.is_cuda,  # on the CPU, Triton's interpreter runs the kernel
            block=block,
            near=rows_of_a_block(classes, block),
            num_warps=WARPS,
        )
    return partial.sum(dtype=torch.float64).float(), gradient


def scaled(gradient: Tensor, grad_output: Tensor) -> Tensor:
    """Multiply ``gradient`` by ``grad_output`` in place and return it."""
    block = block_size(gradient.dtype)
    programs = min(triton.cdiv(gradient.numel(), block), _SCALING_PROGRAMS)
    if programs:  # mul_ would first round grad_output to the gradient's precision
        scale_kernel[(programs,)](gradient, grad_output, gradient.numel(), block=block)
    return gradient


def block_size(dtype: torch.dtype) -> int:
    """Number of logits per block."""
    return BLOCK_BYTES // dtype.itemsize


def rows_of_a_block(classes: int, block: int) -> int:
    """Largest number of rows of the logits in a block, rounded up to a power of two, as ``tl.arange`` requires."""
    rows: int = triton.next_power_of_2((block - 2) // classes + 2)
    return rows


@triton.jit  # type: ignore[untyped-decorator]
def scale_kernel(gradient, grad_output, total, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Multiply the ``total`` elements of ``gradient`` by the scalar ``grad_output`` in place."""
    factor = tl.load(grad_output).to(tl.float32)
    if factor != 1.0:  # with a factor of 1 the gradient is final
        start = tl.program_id(0).to(tl.int64) * block
        while start < total:
            offset = start + tl.arange(0, block)
            inside = offset < total
            value = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
            tl.store(gradient + offset, value * factor, mask=inside)
            start += tl.num_programs(0).to(tl.int64) * block


@triton.jit  # type: ignore[untyped-decorator]
def _sigmoid(x, fast: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(−x)), at full relative precision also for small results; 0 where exp(−x) overflows."""
    if fast:  # fast GPU instructions, without corrections for numbers that do not occur here
        return libdevice.fast_dividef(1.0, 1.0 + libdevice.fast_expf(-x))
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x, least):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), given least = min(p, 1 − p) with p = sigmoid(x): max(x, 0) − log(1 − least).

    The polynomial approximates −log(1 − least) / least on [0, 1/2] with a relative error of at most 3e-7 in float32. It
    is accurate for small p, too, and cheaper than an equally accurate logarithm.
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
    """Loss of a foreground logit and its derivative, given s = softplus(x) = −log(1 − p)."""
    p, q = _sigmoid(x, fast), _sigmoid(-x, fast)
    r = _softplus(-x, tl.minimum(p, q))  # −log p
    if kind == _STAR:
        z = -gamma * x - beta
        chance = _sigmoid(z, fast)
        loss = _softplus(z, tl.minimum(chance, 1.0 - chance)) / gamma
        loss = alpha * tl.where(z > _LARGE, -x - beta / gamma, loss)
        slope = -alpha * chance
    elif kind == _FOCAL:
        power = q * q if square else tl.exp(-gamma * s)  # (1 − p)^γ
        loss = alpha * power * r
        slope = -alpha * power * (gamma * p * r + q)
    else:
        fit = tl.minimum(tl.maximum(fit, 0.0), 1.0)
        entropy = s - fit * x
        if kind == _VARIFOCAL:  # a box without overlap counts as background
            power = p * p if square else tl.exp(-gamma * r)
            loss = tl.where(fit > 0, alpha * fit * entropy, weight * power * s)
            slope = tl.where(fit > 0, alpha * fit * (p - fit), weight * power * (gamma * q * s + p))
        else:
            away = tl.maximum(tl.abs(p - fit), 1.2e-38)  # the smallest normal number
            power = tl.exp(gamma * tl.log(away))
            sign = tl.where(p >= fit, 1.0, -1.0)
            bend = tl.where(away > 1.2e-38, gamma * power / away * sign * p * q * entropy, 0.0)
            loss = alpha * power * entropy
            slope = alpha * (power * (p - fit) + bend)
    return loss, slope


@triton.jit  # type: ignore[untyped-decorator]
def loss_kernel(  # type: ignore[no-untyped-def]
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
    requires_grad: tl.constexpr,
    fast: tl.constexpr,
    block: tl.constexpr,
    near: tl.constexpr,
):
    """Write the sum of each block's losses to ``partial`` and, if ``requires_grad``, the gradient of its logits."""
    start = tl.program_id(0).to(tl.int64) * block
    offset = start + tl.arange(0, block)
    inside = offset < total
    x = tl.load(logits + offset, mask=inside, other=-float("inf")).to(tl.float32)
    first = start // classes
    row = first + tl.arange(0, near)
    special = tl.load(labels + row, mask=row * classes < tl.minimum(start + block, total), other=_BACKGROUND)

    # First treat all logits as background, with p = sigmoid(x), q = 1 − p and s = −log q. In bf16, about 40
    # instructions per element take as long as reading the logit and writing its gradient, so every instruction counts.
    y = gamma * x - beta if kind == _STAR else x
    p = _sigmoid(y, fast)
    q = 1.0 - p
    s = _softplus(y, tl.minimum(p, q))
    if kind == _STAR:
        loss, slope = weight * tl.where(y > _LARGE, x - beta / gamma, s / gamma), weight * p
    else:
        power = (weight * p) * p if square else weight * tl.exp(gamma * (x - s))
        loss, slope = power * s, power * ((gamma * q) * s + p)
    if not square:
        loss = tl.where(inside, loss, 0.0)  # with γ = 2 the loss is already 0 outside

    # Few blocks have foreground or ignored logits, and only these compare the label of each element.
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
        wrong = inside & ((label < _IGNORE) | (label >= classes))
        loss, slope = tl.where(wrong, float("nan"), loss), tl.where(wrong, float("nan"), slope)
    tl.store(partial + tl.program_id(0), tl.sum(loss))
    if requires_grad:
        tl.store(gradient + offset, slope, mask=inside)
