from __future__ import annotations

import math
import typing

import pytest
import torch

from detection_scene import SIZE, SPEC, predictions, scene, slow
from retinanet.anchors import IGNORE, Matches, assign_batch, make_grid
from retinanet.config import Config, LossConfig
from retinanet.losses import detection_losses
from retinanet.model import Outputs
from retinanet.schema import without_effect


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.0), (0.5, 0.5)])
def test_against_a_slow_oracle(alpha: float, gamma: float) -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    losses = detection_losses(
        outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig(alpha=alpha, gamma=gamma)
    )
    classification, box, foreground = slow(outputs, grid, matched, boxes, labels, alpha, gamma)
    assert losses.foreground.item() == foreground > 3
    assert losses.classification.item() == pytest.approx(classification, rel=1e-5)
    assert losses.box.item() == pytest.approx(box, rel=1e-5)
    assert losses.total.item() == pytest.approx(classification + box, rel=1e-5)


def test_the_box_weight_scales_the_box_loss_only() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    once = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    twice = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig(box_weight=2.0))
    assert twice.box.item() == pytest.approx(2 * once.box.item())
    assert twice.classification.item() == once.classification.item()


def test_gradients_flow_only_where_they_should() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    losses.total.backward()  # type: ignore[no-untyped-call]
    for level, part in enumerate(grid.split(matched, 1)):
        logits, deltas = outputs.logits[level].grad, outputs.deltas[level].grad
        assert logits is not None
        assert deltas is not None
        assert torch.equal((logits != 0).all(dim=-1), part != IGNORE)
        assert torch.equal((logits != 0).any(dim=-1), part != IGNORE)
        assert torch.equal((deltas != 0).any(dim=-1), part >= 0)


def test_a_batch_without_objects() -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 2)
    matched = assign_batch(grid, [torch.zeros(0, 4)] * 2, [torch.zeros(0, 4)] * 2)
    nothing, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), nothing, no_labels, LossConfig())
    classification, _, _ = slow(outputs, grid, matched, nothing, no_labels, 0.25, 2.0)
    assert losses.foreground.item() == 0
    assert losses.box.item() == 0
    assert losses.classification.item() == pytest.approx(classification, rel=1e-5)  # divided by 1, not by 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in outputs.logits)
    assert all(t.grad is None or t.grad.abs().sum() == 0 for t in outputs.deltas)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "diou", "ciou"])
def test_objects_that_no_anchor_reaches(kind: str) -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 1)
    boxes, labels = torch.tensor([[3.0, 3.0, 5.0, 5.0]]), torch.tensor([1])
    matched = assign_batch(grid, [boxes], [torch.zeros(0, 4)])
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig(box=kind))  # type: ignore[arg-type]
    assert losses.foreground.item() == 0
    assert losses.box.item() == 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in outputs.logits)


def test_float32_from_bfloat16_outputs() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    rounded = Outputs([t.detach().bfloat16() for t in outputs.logits], [t.detach().bfloat16() for t in outputs.deltas])
    exact = Outputs([t.float() for t in rounded.logits], [t.float() for t in rounded.deltas])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detection_losses(rounded, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    assert losses.total.dtype == torch.float32
    expected = detection_losses(exact, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    assert losses.total.item() == pytest.approx(expected.total.item(), rel=1e-6)


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 1.0), (4.0, 0.0)])
def test_focal_star_by_name(gamma: float, beta: float) -> None:
    """Sum of −α_t log(sigmoid(γ x_t + β)) / γ over foreground anchors (table 3's settings)."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    config = LossConfig(classification="focal_star", alpha=0.4, gamma=gamma, star_beta=beta)
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config)
    logits, total = torch.cat([t.detach() for t in outputs.logits], dim=1).tolist(), 0.0
    for row, matches in zip(logits, matched.tolist(), strict=True):
        for scores, match in zip(row, matches, strict=True):
            for k, x in enumerate(scores if match != IGNORE else []):
                sign, weight = (1, 0.4) if match >= 0 and labels[match] == k else (-1, 0.6)
                total += weight * math.log1p(math.exp(-(gamma * sign * x + beta))) / gamma
    assert losses.classification.item() == pytest.approx(total / losses.foreground.item(), rel=1e-5)


KINDS = {
    "loss.classification": ("alpha", "gamma", "star_beta", "ohem_batch", "ohem_nms"),
    "loss.box": ("beta",),
}
CHANGED = {"alpha": 0.6, "gamma": 1.0, "star_beta": 0.0, "ohem_batch": 4, "ohem_nms": 0.01, "beta": 1.0}


@pytest.mark.parametrize(("choice", "name"), [(choice, name) for choice, names in KINDS.items() for name in names])
def test_settings_are_said_to_have_no_effect_where_they_have_none(choice: str, name: str) -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)

    def total(config: LossConfig) -> float:
        return detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config).total.item()

    chosen = choice.removeprefix("loss.")
    for kind in typing.get_args(typing.get_type_hints(LossConfig)[chosen]):
        values = {chosen: kind, name: CHANGED[name]}
        changed = Config.from_dict({"loss": values}).loss
        equal = total(changed) == total(Config.from_dict({"loss": {chosen: kind}}).loss)
        sentences = [line for line in without_effect(Config(loss=changed)) if name.replace("_", "-") in line]
        assert bool(sentences) == equal, kind
        for sentence in sentences:
            assert sentence.startswith(f"loss.{name.replace('_', '-')} has no effect with {choice} {kind}; it is for ")
