"""A classification loss and its gradient on the CPU, computed in chunks that fit into the processor's cache.

Operations on whole tensors take about twenty steps. Each step would write and read a temporary as large as the logits,
so memory would limit the speed. Here each chunk goes through all steps while it is in the cache. The logits are read
once, and the gradient is written once. Nearly all logits are background, and their gradient is computed in closed form.
The few foreground logits use the formula and automatic differentiation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.matches import BACKGROUND, IGNORE
from retinanet.losses.formula import LARGE_LOGIT, Coefficients, Formula

# Logits per chunk: enough to be shared by several threads, and few enough that three chunks fit into a cache.
PIECE_LOGITS = 1 << 18


class Gradient(NamedTuple):
    """A gradient that still has to be scaled.

    Attributes:
        rows: ``(A, K)``, gradient of the background without ``factor``; its values at ``where`` are replaced.
        factor: factor on ``rows``.
        where: int64 ``(P,)``, positions of the foreground logits in the flattened ``rows``.
        foreground: ``(P,)``, gradient of the foreground logits.
    """

    rows: Tensor
    factor: float
    where: Tensor
    foreground: Tensor


def scaled(gradient: Gradient, grad_output: Tensor) -> Tensor:
    """Return ``gradient`` times ``grad_output``, in the memory of ``gradient``."""
    rows, factor, where, foreground = gradient
    rows.mul_(factor * grad_output)  # a 0-d tensor is not rounded to the dtype of rows
    rows.view(-1)[where] = (foreground * grad_output).to(rows.dtype)
    return rows


def value_and_gradient(
    logits: Tensor, labels: Tensor, formula: Formula, quality: Tensor | None, divisor: float, requires_grad: bool
) -> tuple[Tensor, Gradient | None]:
    """Return :func:`retinanet.losses.sum.summed_loss` of CPU tensors, and its gradient if ``requires_grad``."""
    classes, exact = logits.shape[-1], torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.detach().reshape(-1, classes)  # (A, K)
    labels = labels.reshape(-1)
    special = torch.nonzero(labels != BACKGROUND).squeeze(1)
    kinds = labels[special]
    foreground, ignored = special[kinds >= 0], special[kinds == IGNORE]  # (P,) and (I,)
    where = foreground * classes + labels[foreground]

    # float16 cannot hold the gradient before it is scaled
    dtype = exact if logits.dtype == torch.float16 else logits.dtype
    gradient = torch.empty(rows.shape, dtype=dtype) if requires_grad else None
    coefficients = formula.coefficients
    total = _background(rows, where, ignored, coefficients, gradient, exact)
    factor = coefficients.background / divisor
    if len(foreground) == 0:
        nothing = rows.new_zeros(0)
        return (total / divisor).to(exact), None if gradient is None else Gradient(gradient, factor, where, nothing)
    with torch.enable_grad():
        x = rows.reshape(-1)[where].to(exact).requires_grad_(requires_grad)
        fits = None if quality is None else quality.detach().reshape(-1)[foreground].to(exact).clamp(0, 1)
        loss = formula.foreground(x, fits).sum(dtype=torch.float64) / divisor
    total = (total / divisor + loss.detach()).to(exact)
    if gradient is None:
        return total, None
    return total, Gradient(gradient, factor, where, torch.autograd.grad(loss, x)[0])


def _background(
    rows: Tensor,
    where: Tensor,
    ignored: Tensor,
    coefficients: Coefficients,
    gradient: Tensor | None,
    exact: torch.dtype,
) -> Tensor:
    """Return the background's weighted loss (float64 scalar); write its unweighted gradient to ``gradient``.

    With p = sigmoid(x) and s = softplus(x): loss p^γ s, gradient p^γ (γ (1 − p) s + p).
    """
    count, classes = rows.shape
    step = max(1, PIECE_LOGITS // max(1, classes))
    foreground_at, ignored_at = [0, len(where)], [0, len(ignored)]
    if count > step:
        starts = torch.arange(0, count + step, step)
        foreground_at = torch.searchsorted(where, starts * classes).tolist()
        ignored_at = torch.searchsorted(ignored, starts).tolist()
    star, gamma = coefficients.kind == "focal_star", coefficients.gamma
    general = not star and gamma not in (0, 2)
    copied = rows.dtype != exact or star
    buffers = torch.empty(4 if general or copied else 3, min(step, count) * classes, dtype=exact)
    sums = []
    for piece, start in enumerate(range(0, count, step)):
        source = rows[start : start + step].reshape(-1)
        p, s, w, *more = buffers[:, : len(source)]
        x = more[0].copy_(source) if copied else source
        if star:
            x.mul_(gamma).sub_(coefficients.beta)
        torch.sigmoid(x, out=p)
        torch.ops.aten.softplus.out(x, 1, 40, out=s)  # above 40, softplus(x) is x, also in float64
        if star:  # γ x may overflow; where it is large, the loss is x − β / γ
            large = source.to(exact) - coefficients.beta / gamma
            torch.where(x > LARGE_LOGIT, large, s.div_(gamma), out=s)
        if general:
            torch.sub(x, s, out=w).mul_(gamma).exp_()  # p^γ, because log p = x − s
        skipped = where[foreground_at[piece] : foreground_at[piece + 1]] - start * classes
        left_out = ignored[ignored_at[piece] : ignored_at[piece + 1]] - start
        for values in (p, s):  # loss and gradient are 0 where p and s are 0
            if len(skipped):
                values.index_fill_(0, skipped, 0)
            if len(left_out):
                values.view(-1, classes).index_fill_(0, left_out, 0)
        target = None if gradient is None else gradient[start : start + step].view(-1)
        sums.append(_sum_of_piece(p, s, w, more, coefficients, target))
    total = torch.stack(sums).sum(dtype=torch.float64) if sums else torch.zeros((), dtype=torch.float64)
    return coefficients.background * total


def _sum_of_piece(
    p: Tensor, s: Tensor, w: Tensor, more: list[Tensor], coefficients: Coefficients, target: Tensor | None
) -> Tensor:
    """Return the unweighted sum of a piece's background losses; write their gradient to ``target``.

    ``s`` may be overwritten. ``w`` is overwritten only if γ = 2.

    Args:
        p: sigmoid(x), 0 where there is no background.
        s: softplus(x), divided by γ for FL*; 0 where there is no background.
        w: p^γ if γ is neither 0 nor 2.
        more: a buffer if γ is neither 0 nor 2.
        coefficients: coefficients of the loss.
        target: the piece's part of the gradient; None if no gradient is needed.
    """
    gamma = coefficients.gamma
    if coefficients.kind == "focal_star" or gamma == 0:
        total = s.sum()
        if target is not None:
            target.copy_(p)
    elif gamma == 2:
        s.mul_(p)
        total = torch.mul(p, s, out=w).sum()  # a dot product would accumulate sequentially in float32
        if target is not None:  # 2 p · ((1 − p) p s + p² / 2)
            torch.addcmul(s, p, s, value=-1, out=s)
            s.addcmul_(p, p, value=0.5).mul_(2)
            target.copy_(s.mul_(p))
    else:
        total = torch.mul(w, s, out=more[0]).sum()
        if target is not None:
            torch.addcmul(s, p, s, value=-1, out=s)  # (1 − p) s
            torch.add(p, s, alpha=gamma, out=s)
            target.copy_(s.mul_(w))
    return total
