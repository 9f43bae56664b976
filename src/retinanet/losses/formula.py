"""The interface of a classification loss; ``losses/sum.py`` and ``losses/kernels/`` work with every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

# At logits beyond this, sigmoid(x) is exactly 0 or 1 and softplus(x) exactly 0 or x, also in float64.
LARGE_LOGIT = 1000.0


@dataclass(frozen=True)
class Coefficients:
    """A formula as numbers, for kernels.

    The loss of a background logit x, with p = sigmoid(x), is ``background · p^γ · softplus(x)``. For the kind
    ``focal_star`` it is ``background · softplus(γ x − β) / γ``.

    Attributes:
        kind: which formula.
        background: factor on the loss of background logits.
        foreground: factor on the loss of foreground logits.
        gamma: focusing parameter γ.
        beta: shift β of ``focal_star``, 0 elsewhere.
    """

    kind: Literal["focal", "focal_star", "quality_focal", "varifocal"]
    background: float
    foreground: float
    gamma: float
    beta: float = 0.0


class Formula(Protocol):
    """A classification loss of single logits, computed in at least float32.

    A one-vs-all classifier has two kinds of logits. The logit of a positive anchor's own class is foreground; all other
    logits are background.
    """

    def background(self, x: Tensor) -> Tensor:
        """Loss of background logits."""

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of foreground logits; ``quality`` in [0, 1] is the IoU of the predicted box, for losses that use it."""

    @property
    def coefficients(self) -> Coefficients:
        """The formula as numbers."""
