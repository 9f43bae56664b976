"""What one logit adds to each classification loss, and the sum over all of them.

A one-vs-all classifier has two kinds of logit: the class of a foreground anchor, and everything else, which is
background. A loss is a pair of functions of a logit, one for each kind. :func:`summed` adds them up; it takes a fused
kernel where there is one.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from retinanet.anchors.assign import IGNORE


class Terms(Protocol):
    """A classification loss, element by element, for logits in at least float32."""

    def background(self, x: Tensor) -> Tensor:
        """Loss of logits whose class is wrong."""

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of logits whose class is right; ``quality`` in [0, 1] how well the box fits, where a loss uses it."""

    @property
    def dense(self) -> Dense:
        """The background in numbers, as the kernels take it."""


@dataclass(frozen=True)
class Dense:
    """The background's loss as numbers: ``weight · p^γ · softplus(x)``, or ``weight · softplus(γ x − β) / γ``."""

    weight: float
    gamma: float
    beta: float | None = None


@dataclass(frozen=True)
class Focal:
    """``−α_t (1 − p_t)^γ log p_t`` (section 3.2); γ = 0 is (α-balanced) cross entropy."""

    alpha: float | None
    gamma: float

    def background(self, x: Tensor) -> Tensor:
        """See :class:`Terms`."""
        return self.dense.weight * focal(-x, self.gamma)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """See :class:`Terms`."""
        return (1.0 if self.alpha is None else self.alpha) * focal(x, self.gamma)

    @property
    def dense(self) -> Dense:
        """See :class:`Terms`."""
        return Dense(1.0 if self.alpha is None else 1 - self.alpha, self.gamma)


@dataclass(frozen=True)
class FocalStar:
    """``−α_t log(sigmoid(γ x_t + β)) / γ`` (appendix A)."""

    alpha: float | None
    gamma: float
    beta: float

    def background(self, x: Tensor) -> Tensor:
        """See :class:`Terms`."""
        return self.dense.weight * -F.logsigmoid(self.beta - self.gamma * x) / self.gamma

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """See :class:`Terms`."""
        return (1.0 if self.alpha is None else self.alpha) * -F.logsigmoid(self.gamma * x + self.beta) / self.gamma

    @property
    def dense(self) -> Dense:
        """See :class:`Terms`."""
        return Dense(1.0 if self.alpha is None else 1 - self.alpha, self.gamma, self.beta)


@dataclass(frozen=True)
class QualityFocal:
    """``|q − p|^γ · BCE(p, q)`` (https://arxiv.org/abs/2006.04388, equation 5), q = 0 for the background."""

    gamma: float

    def background(self, x: Tensor) -> Tensor:
        """See :class:`Terms`."""
        return focal(-x, self.gamma)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """See :class:`Terms`."""
        assert quality is not None
        away = (quality - x.sigmoid()).abs()
        # for γ < 1 the power's derivative at 0 is infinite; the loss there is 0 anyway
        power = away.clamp(min=torch.finfo(x.dtype).tiny) ** self.gamma
        return power * _cross_entropy(x, quality)

    @property
    def dense(self) -> Dense:
        """See :class:`Terms`."""
        return Dense(1.0, self.gamma)


@dataclass(frozen=True)
class Varifocal:
    """``q · BCE(p, q)`` for q > 0, ``−α p^γ log(1 − p)`` else (https://arxiv.org/abs/2008.13367, equation 2)."""

    alpha: float | None
    gamma: float

    def background(self, x: Tensor) -> Tensor:
        """See :class:`Terms`."""
        return self.dense.weight * focal(-x, self.gamma)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """See :class:`Terms`."""
        assert quality is not None
        return torch.where(quality > 0, quality * _cross_entropy(x, quality), self.background(x))

    @property
    def dense(self) -> Dense:
        """See :class:`Terms`."""
        return Dense(1.0 if self.alpha is None else self.alpha, self.gamma)


def focal(x_t: Tensor, gamma: float) -> Tensor:
    """``−(1 − p_t)^γ log p_t`` for ``x_t``, the logit of being right."""
    log_p = F.logsigmoid(x_t)
    if gamma == 0:
        return -log_p
    # exp(γ log(1 − p_t)) has a finite derivative for every γ ≥ 0; (1 − p_t) ** γ has not where 1 − p_t underflows.
    return -torch.exp(gamma * F.logsigmoid(-x_t)) * log_p


def _cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, target, reduction="none")


def summed(logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None = None) -> Tensor:
    """The loss summed over everything that is not ignored, in at least float32, also under autocast.

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class ``0..K-1``, ``BACKGROUND`` (−1, all classes negative) or ``IGNORE`` (−2, no loss).
        terms: which loss.
        quality: ``(…,)``, of the foreground anchors; the others' is not read.

    Raises:
        ValueError: the shapes do not fit, or (on the CPU) a label is not below K.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}: expected (…,) and (…, K)"
        )
    if quality is not None and quality.shape != labels.shape:
        raise ValueError(f"quality {tuple(quality.shape)} does not fit labels {tuple(labels.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        if logits.numel() == 0:
            return reference(logits, labels, terms, quality)
        if logits.device.type == "cpu" and not torch.compiler.is_compiling():
            from retinanet.losses.kernels.cpu import summed_on_cpu

            return summed_on_cpu(logits, labels, terms, quality)
        if _has_gpu_kernel(logits):
            from retinanet.losses.kernels.triton import summed_on_gpu

            return summed_on_gpu(logits, labels, terms, quality)
        return reference(logits, labels, terms, quality)


def _has_gpu_kernel(logits: Tensor) -> bool:
    if logits.device.type != "cuda" or logits.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    return importlib.util.find_spec("triton") is not None


def reference(logits: Tensor, labels: Tensor, terms: Terms, quality: Tensor | None = None) -> Tensor:
    """:func:`summed` by its definition, from whole tensors; what the kernels are held to."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    positive = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)  # (…, K)
    if quality is not None:
        quality = torch.where(labels >= 0, quality, 0).to(x.dtype).clamp(0, 1)[..., None].expand_as(x)
    loss = torch.where(positive, terms.foreground(x, quality), terms.background(x))
    return torch.where((labels != IGNORE)[..., None], loss, 0.0).sum()
