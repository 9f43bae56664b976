"""Three images, predictions for them in double precision, and a reference for cross entropy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import detection_scene
from detection_scene import CLASSES
from retinanet.anchors import IGNORE, AnchorGrid
from retinanet.model import Outputs

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def cross_entropy(x: Array, labels: Labels, alpha: float | None) -> tuple[Array, Array]:
    """−α_t log p_t and its derivative α_t y (p_t − 1) (appendix B) of every logit; ``x`` (…, K), ``labels`` (…)."""
    y = np.where(labels[..., None] == np.arange(x.shape[-1]), 1.0, -1.0)
    p_t = 1 / (1 + np.exp(-y * x))
    weight = np.ones_like(y) if alpha is None else np.where(y > 0, alpha, 1 - alpha)
    weight = weight * (labels != IGNORE)[..., None]
    return -weight * np.log(p_t), weight * y * (p_t - 1)


def scene(dtype: torch.dtype = torch.float64) -> tuple[Outputs, AnchorGrid, Tensor, Tensor, Tensor, Labels]:
    """Three images on two levels: two objects and an ignore region, none, one object; and the class of every anchor."""
    grid, matched, boxes, classes = detection_scene.scene()
    labels = np.array([[int(classes[m]) if m >= 0 else m for m in row] for row in matched.tolist()])
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(3, n, CLASSES, generator=generator, dtype=dtype) * 3 for n in grid.level_sizes]
    deltas = [torch.randn(3, n, 4, generator=generator) for n in grid.level_sizes]
    outputs = Outputs([t.requires_grad_() for t in logits], [t.requires_grad_() for t in deltas])
    return outputs, grid, matched, boxes, classes, labels


def all_levels(levels: list[Tensor]) -> Array:
    values: Array = torch.cat([t.detach() for t in levels], dim=1).double().numpy()
    return values


def gradients(loss: Tensor, levels: list[Tensor]) -> Array:
    return all_levels(list(torch.autograd.grad(loss, levels)))
