"""Who owns the loss: compared with a plain computation in float64, and with the loss itself."""

from __future__ import annotations

import pytest
import torch

from retinanet.anchors import BACKGROUND, IGNORE, AnchorSpec, Matches, make_grid
from retinanet.config import LossConfig
from retinanet.losses import detection_losses
from retinanet.losses.imbalance import Imbalance, loss_shares
from retinanet.model import Outputs

SPEC = AnchorSpec()
GRID = make_grid(SPEC, (64, 96))
K = 3


def example(seed: int) -> tuple[Outputs, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    count = len(GRID.boxes)
    logits = [3 * torch.randn(2, n, K, generator=rng) - 2 for n in GRID.level_sizes]
    deltas = [0.3 * torch.randn(2, n, 4, generator=rng) for n in GRID.level_sizes]
    boxes = torch.tensor([[3.0, 4, 40, 50], [20, 10, 60, 40], [0, 0, 90, 60]])
    labels = torch.tensor([2, 0, 1])
    matched = torch.full((2, count), BACKGROUND)
    matched[0, torch.randperm(count, generator=rng)[:40]] = 1
    matched[1, torch.randperm(count, generator=rng)[:9]] = 2
    matched[1, torch.randperm(count, generator=rng)[:100]] = IGNORE
    return Outputs(logits, deltas), matched, boxes, labels


@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_computation(seed: int) -> None:
    outputs, matched, boxes, labels = example(seed)
    config = LossConfig()
    found = loss_shares(outputs, GRID, Matches.from_dense(matched), boxes, labels, config)
    x = torch.cat(outputs.logits, dim=1).double()  # (B, A, K)
    p = x.sigmoid()
    foreground = easy = hard = 0.0
    for image, anchor in torch.cartesian_prod(torch.arange(2), torch.arange(len(GRID.boxes))).tolist():
        index = int(matched[image, anchor])
        for k in range(K if index != IGNORE else 0):
            q = float(p[image, anchor, k])
            if index >= 0 and k == int(labels[index]):
                foreground -= 0.25 * (1 - q) ** 2 * float(torch.nn.functional.logsigmoid(x[image, anchor, k]))
                continue
            loss = -0.75 * q**2 * float(torch.nn.functional.logsigmoid(-x[image, anchor, k]))
            if q >= 0.5:
                hard += loss
            else:
                easy += loss
    assert float(found.foreground) == pytest.approx(foreground, rel=1e-5)
    assert float(found.easy) == pytest.approx(easy, rel=1e-5)
    assert float(found.hard) == pytest.approx(hard, rel=1e-5)
    expected = [int((level >= 0).sum()) for level in GRID.split(matched, 1)]
    assert found.positives.tolist() == expected


@pytest.mark.parametrize("kind", ["focal", "focal_star", "ce", "alpha_ce", "quality_focal", "varifocal"])
def test_the_parts_add_up_to_the_loss(kind: str) -> None:
    outputs, matched, boxes, labels = example(7)
    config = LossConfig(classification=kind)  # type: ignore[arg-type]
    found = loss_shares(outputs, GRID, Matches.from_dense(matched), boxes, labels, config)
    divisor = 1.0
    losses = detection_losses(outputs, GRID, Matches.from_dense(matched), boxes, labels, config, divisor=divisor)
    assert float(found.foreground + found.easy + found.hard) == pytest.approx(float(losses.classification), rel=1e-4)


def test_shares_add_up_to_one() -> None:
    values = Imbalance(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(5.0), torch.tensor([3, 0, 1, 0, 0])).to_dict()
    assert values["share_foreground"] + values["share_easy"] + values["share_hard"] == pytest.approx(1)
    assert values["share_hard"] == 0.625
    assert [values[f"positives_p{level}"] for level in range(3, 8)] == [3, 0, 1, 0, 0]


def test_no_loss_at_all() -> None:
    zero = torch.tensor(0.0)
    nothing = Imbalance(zero, zero, zero, torch.zeros(5, dtype=torch.int64))
    assert nothing.to_dict()["share_foreground"] == 0


def test_at_the_start_the_easy_background_owns_cross_entropy_and_not_the_focal_loss() -> None:
    """The paper's argument (section 3.3): with π = 0.01, few foreground anchors and many easy ones."""
    outputs, matched, boxes, labels = example(1)
    prior = Outputs([torch.full_like(level, -4.595) for level in outputs.logits], outputs.deltas)
    cross_entropy = loss_shares(
        prior, GRID, Matches.from_dense(matched), boxes, labels, LossConfig(classification="ce")
    ).to_dict()
    focal = loss_shares(prior, GRID, Matches.from_dense(matched), boxes, labels, LossConfig()).to_dict()
    assert focal["share_easy"] < 0.01 < cross_entropy["share_easy"]
