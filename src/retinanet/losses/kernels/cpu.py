"""A classification loss and its gradient in pieces that stay in the processor's cache.

Whole-tensor operations would write and read a temporary as large as the logits at each of some twenty steps; memory,
not arithmetic, would set the time. Here every piece goes through all steps while it is in the cache, the logits are
read once and the gradient is written once. Nearly all logits are background, whose formulas are worked out by hand; the
few foreground ones go through :class:`retinanet.losses.terms.Terms` and automatic differentiation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retinanet.anchors.assign import BACKGROUND, IGNORE
from retinanet.losses.terms import Dense, Terms

# Logits a piece: large enough to be shared by several threads, small enough that three of them fit a cache.
_PIECE = 1 << 18


def summed_on_cpu(logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None) -> Tensor:
    """:func:`retinanet.losses.terms.summed` for tensors on the CPU."""
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
        dense, where, of_foreground = gradient
        dense.mul_(ctx.terms.dense.weight * slope)  # a scalar keeps its own precision
        dense.view(-1)[where] = (of_foreground * slope).to(dense.dtype)
        return dense.view(logits.shape).to(logits.dtype), None, None, None, None


def _value_and_gradient(
    logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None, learns: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """The loss, and of its gradient: the background's without its weight, which elements are foreground, and theirs."""
    classes, exact = logits.shape[-1], torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.detach().reshape(-1, classes)  # (A, K)
    labels = labels.reshape(-1)
    special = torch.nonzero(labels != BACKGROUND).squeeze(1)
    kinds = labels[special]
    foreground, ignored = special[kinds >= 0], special[kinds == IGNORE]  # (P,) and (I,)
    where = foreground * classes + labels[foreground]
    if len(foreground) and int(kinds.max()) >= classes:
        raise ValueError(f"there is a label {int(kinds.max())} and only {classes} classes")

    # float16 cannot hold the gradient before it is scaled
    dtype = exact if logits.dtype == torch.float16 else logits.dtype
    gradient = torch.empty(rows.shape, dtype=dtype) if learns else None
    total = _background(rows, where, ignored, terms.dense, gradient, exact)
    if len(foreground) == 0:
        return total.to(exact), None if gradient is None else (gradient, where, rows.new_zeros(0))
    with torch.enable_grad():
        x = rows.reshape(-1)[where].to(exact).requires_grad_(learns)
        fits = None if quality is None else quality.detach().reshape(-1)[foreground].to(exact).clamp(0, 1)
        loss = terms.foreground(x, fits).sum(dtype=torch.float64)
    total = (total + loss.detach()).to(exact)
    if gradient is None:
        return total, None
    return total, (gradient, where, torch.autograd.grad(loss, x)[0])


def _background(
    rows: Tensor, where: Tensor, ignored: Tensor, terms: Dense, gradient: Tensor | None, exact: torch.dtype
) -> Tensor:
    """The background's loss with its weight (float64 scalar); its gradient without goes to ``gradient``.

    With p = sigmoid(x) and s = softplus(x): loss p^γ s, gradient p^γ (γ (1 − p) s + p).
    """
    count, classes = rows.shape
    step = max(1, _PIECE // max(1, classes))
    foreground_at, ignored_at = [0, len(where)], [0, len(ignored)]
    if count > step:
        starts = torch.arange(0, count + step, step)
        foreground_at = torch.searchsorted(where, starts * classes).tolist()
        ignored_at = torch.searchsorted(ignored, starts).tolist()
    general = terms.beta is None and terms.gamma not in (0, 2)
    copied = rows.dtype != exact or terms.beta is not None
    buffers = torch.empty(4 if general or copied else 3, min(step, count) * classes, dtype=exact)
    sums = []
    for piece, start in enumerate(range(0, count, step)):
        source = rows[start : start + step].reshape(-1)
        p, s, w, *more = buffers[:, : len(source)]
        x = more[0].copy_(source) if copied else source
        if terms.beta is not None:
            x.mul_(terms.gamma).sub_(terms.beta)
        torch.sigmoid(x, out=p)
        torch.ops.aten.softplus.out(x, 1, 40, out=s)  # above 40 it is x, also in float64
        if general:
            torch.sub(x, s, out=w).mul_(terms.gamma).exp_()  # p^γ, as log p = x − s
        skipped = where[foreground_at[piece] : foreground_at[piece + 1]] - start * classes
        left_out = ignored[ignored_at[piece] : ignored_at[piece + 1]] - start
        for values in (p, s):  # no loss and no gradient where both are 0
            if len(skipped):
                values.index_fill_(0, skipped, 0)
            if len(left_out):
                values.view(-1, classes).index_fill_(0, left_out, 0)
        target = None if gradient is None else gradient[start : start + step].view(-1)
        if general:
            sums.append(torch.mul(w, s, out=more[0]).sum())
            if target is not None:
                torch.addcmul(s, p, s, value=-1, out=s)  # (1 − p) s
                torch.add(p, s, alpha=terms.gamma, out=s)
                target.copy_(s.mul_(w))
        elif terms.gamma == 2 and terms.beta is None:
            s.mul_(p)
            sums.append(torch.mul(p, s, out=w).sum())  # a dot product would add in float32 one by one
            if target is not None:  # 2 p · ((1 − p) p s + p² / 2)
                torch.addcmul(s, p, s, value=-1, out=s)
                s.addcmul_(p, p, value=0.5).mul_(2)
                target.copy_(s.mul_(p))
        else:
            sums.append(s.sum())
            if target is not None:
                target.copy_(p)
    total = torch.stack(sums).sum(dtype=torch.float64) if sums else torch.zeros((), dtype=torch.float64)
    return terms.weight * total / (1 if terms.beta is None else terms.gamma)
