from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from baseline_scene import all_levels, cross_entropy, gradients, scene
from retinanet.anchors import IGNORE, Matches
from retinanet.config import LossConfig
from retinanet.losses import detection_losses
from retinanet.model import Outputs


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        (LossConfig(classification="ce"), None),
        (LossConfig(classification="ce", alpha=0.75, gamma=5.0), None),
        (LossConfig(classification="alpha_ce"), 0.25),
        (LossConfig(classification="alpha_ce", alpha=0.75, gamma=5.0), 0.75),
        (LossConfig(classification="alpha_ce", alpha=None), None),
    ],
)
def test_cross_entropy_by_name(config: LossConfig, alpha: float | None) -> None:
    """Neither reads γ, and plain cross entropy no α."""
    outputs, grid, matched, boxes, classes, labels = scene()
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, classes, config)
    values, gradient = cross_entropy(all_levels(outputs.logits), labels, alpha)
    foreground = int((labels >= 0).sum())
    assert losses.foreground.item() == foreground > 3
    assert losses.classification.item() == pytest.approx(values.sum() / foreground, rel=1e-12)
    found = gradients(losses.classification, outputs.logits)
    np.testing.assert_allclose(found, gradient / foreground, rtol=1e-10, atol=1e-14)
    assert (found[labels == IGNORE] == 0).all()
    assert (found[labels != IGNORE] != 0).all()


@pytest.mark.parametrize("name", ["ce", "alpha_ce"])
def test_cross_entropys_gradient_by_finite_differences(name: str) -> None:
    outputs, grid, matched, boxes, classes, _ = scene()
    config = LossConfig(classification=name)  # type: ignore[arg-type]

    def loss(*logits: Tensor) -> Tensor:
        predicted = Outputs(list(logits), outputs.deltas)
        return detection_losses(predicted, grid, Matches.from_dense(matched), boxes, classes, config).classification

    assert torch.autograd.gradcheck(loss, tuple(outputs.logits))


@pytest.mark.parametrize("name", ["ce", "alpha_ce", "ohem", "ohem_1_3"])
@pytest.mark.parametrize("normalizer", ["batch", "image", "rank", "moving"])
def test_the_box_loss_does_not_depend_on_the_classification_loss(name: str, normalizer: str) -> None:
    outputs, grid, matched, boxes, classes, _ = scene(torch.float32)
    focal, other = (
        detection_losses(
            outputs,
            grid,
            Matches.from_dense(matched),
            boxes,
            classes,
            LossConfig(classification=kind, normalizer=normalizer, ohem_batch=8),  # type: ignore[arg-type]
        )
        for kind in ("focal", name)
    )
    assert other.classification.item() != focal.classification.item()
    assert other.box.item() == focal.box.item() > 0
    assert other.foreground.item() == focal.foreground.item()
    assert (gradients(other.total, outputs.deltas) == gradients(focal.box, outputs.deltas)).all()
