"""Checks of what a caller gives to the losses; all public functions share them.

Labels are checked where that costs no waiting: on the CPU. Elsewhere (on a GPU, in ``torch.compile``, in transforms of
``torch.func``) a label out of range makes the loss NaN.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from retinanet.anchors.matches import IGNORE
from retinanet.errors import ArgumentError


def checked_alpha(alpha: float | None) -> float | None:
    """Return ``alpha`` if it lies in [0, 1], and None for None and for −1, torchvision's value for no weights."""
    if alpha is None or (is_number(alpha) and alpha == -1):
        return None
    if not is_number(alpha) or not 0 <= alpha <= 1:
        raise ArgumentError(f"alpha is {alpha!r}; it must lie between 0 and 1, or be None for equal weights")
    return alpha


def require_gamma(gamma: float, positive: bool = False) -> None:
    """Require a finite γ ≥ 0; with ``positive``, γ > 0."""
    if not (is_number(gamma) and math.isfinite(gamma) and (gamma > 0 if positive else gamma >= 0)):
        bound = "above 0, because FL* divides by it" if positive else "at least 0"
        raise ArgumentError(f"gamma is {gamma!r}; it must be a finite number {bound}")


def is_number(value: object) -> bool:
    """Whether an argument is a real number. A string, a bool or a tensor is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_floating(logits: Tensor, name: str = "logits") -> None:
    """Require logits of a floating dtype."""
    if not logits.is_floating_point():
        raise ArgumentError(f"{name} are {logits.dtype}; give real floating numbers, such as torch.float32")


def labels_with_quality(labels: Tensor, quality: Tensor) -> Tensor:
    """Require q of positive anchors in [0, 1].

    Where values cannot be read, an anchor with an invalid q gets a label out of range, which makes the loss NaN.
    """
    if quality.shape != labels.shape:
        raise ArgumentError(f"quality {tuple(quality.shape)} does not fit labels {tuple(labels.shape)}")
    if quality.is_complex():
        raise ArgumentError(f"quality is {quality.dtype}; give real numbers")
    invalid = (labels >= 0) & ~((quality >= 0) & (quality <= 1))  # NaN compares false
    if values_are_known(labels) and values_are_known(quality):
        if bool(invalid.any()):
            raise ArgumentError(f"quality is {quality[invalid][0].item():g} at a positive anchor; give an IoU, 0 to 1")
        return labels
    return torch.where(invalid, IGNORE - 1, labels)


def require_labels(logits: Tensor, labels: Tensor) -> None:
    """Require integer labels of the shape of the logits without classes and, where possible, in their range."""
    require_floating(logits)
    if logits.dim() == 0:
        raise ArgumentError("logits have no dimension; give logits (…, K) of K classes, and labels (…,)")
    if labels.shape != logits.shape[:-1]:
        raise ArgumentError(
            f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}: expected (…,) and (…, K)"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ArgumentError(f"labels are {labels.dtype}; give integers, such as torch.int64")
    if labels.numel() and values_are_known(labels):
        least, most = (int(value) for value in labels.aminmax())
        if least < IGNORE or most >= logits.shape[-1]:
            raise ArgumentError(
                f"there is a label {least if least < IGNORE else most} and only {logits.shape[-1]} classes; labels are "
                f"0 to {logits.shape[-1] - 1}, -1 (background) or -2 (ignored)"
            )


def out_of_range(labels: Tensor, classes: int) -> Tensor:
    """Mark labels that are neither a class, nor background, nor ignored."""
    return (labels < IGNORE) | (labels >= classes)


def values_are_known(tensor: Tensor) -> bool:
    """Whether values can be read without waiting for a GPU and without breaking a trace or a transform."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not transforms_are_active()


def transforms_are_active() -> bool:
    """Whether a transform of ``torch.func`` (``grad``, ``vmap``, …) is running."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active
