"""How the loss is spread: against a recomputation in plain Python, and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from retinanet.anchors import BACKGROUND, IGNORE
from retinanet.losses.distribution import anchor_losses, cumulative, share_of_hardest
from retinanet.model import Outputs

K = 3


def example() -> tuple[Outputs, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    logits = [4 * torch.randn(2, n, K, generator=rng) - 3 for n in (37, 11, 2)]
    deltas = [torch.zeros(2, n, 4) for n in (37, 11, 2)]
    matched = torch.full((2, 50), BACKGROUND)
    matched[0, 3:9] = torch.tensor([0, 1, 1, 2, 0, 2])
    matched[1, 45:] = 2
    matched[1, :7] = IGNORE
    return Outputs(logits, deltas), matched, torch.tensor([2, 0, 1])


def fl(p_t: float, gamma: float) -> float:
    return -math.pow(1 - p_t, gamma) * math.log(p_t)


def naive(gamma: float) -> tuple[list[float], list[float]]:
    """Loss of each foreground and each background anchor, image by image."""
    outputs, matched, labels = example()
    foreground, background = [], []
    for image in range(2):
        logits = [row for level in outputs.logits for row in level[image].double().tolist()]
        for anchor, row in enumerate(logits):
            p = [1 / (1 + math.exp(-x)) for x in row]
            index = int(matched[image, anchor])
            if index >= 0:
                foreground.append(fl(p[int(labels[index])], gamma))
            elif index == BACKGROUND:
                background.append(sum(fl(1 - q, gamma) for q in p))
    return foreground, background


GAMMAS = (0.0, 0.5, 1.0, 2.0)


def test_losses_of_single_anchors() -> None:
    outputs, matched, labels = example()
    foreground, background = anchor_losses(outputs, matched, labels, GAMMAS)
    assert foreground.shape == (4, 11)
    assert background.shape == (4, 82)
    for row, gamma in enumerate(GAMMAS):
        for found, expected in zip((foreground[row], background[row]), naive(gamma), strict=True):
            assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("group", [0, 1])
def test_cumulative_curve(gamma: float, group: int) -> None:
    losses = naive(gamma)[group]
    total, ordered = sum(losses), sorted(losses)
    curve = cumulative(torch.tensor(losses, dtype=torch.float64), len(losses) + 1).tolist()
    assert curve == pytest.approx([sum(ordered[:i]) / total for i in range(len(losses) + 1)])
    for fraction in (0.01, 0.1, 0.5, 1.0):
        count = max(1, round(fraction * len(losses)))
        expected = sum(ordered[-count:]) / total
        assert share_of_hardest(torch.tensor(losses), fraction) == pytest.approx(expected, rel=1e-5)


def test_curve_by_hand() -> None:
    losses = torch.tensor([6.0, 1.0, 3.0, 0.0])
    assert cumulative(losses, 5).tolist() == pytest.approx([0, 0, 0.1, 0.4, 1])
    # between two anchors it is linear
    assert cumulative(losses, 9).tolist() == pytest.approx([0, 0, 0, 0.05, 0.1, 0.25, 0.4, 0.7, 1])
    assert cumulative(losses, 2).tolist() == [0, 1]
    assert share_of_hardest(losses, 0.25) == 0.6
    assert share_of_hardest(losses, 0.001) == 0.6  # at least one anchor
    assert share_of_hardest(losses, 1) == 1


def test_no_loss_and_no_anchor() -> None:
    assert cumulative(torch.zeros(7), 3).tolist() == [0, 0, 0]
    assert cumulative(torch.zeros(0), 3).tolist() == [0, 0, 0]
    assert share_of_hardest(torch.zeros(7), 0.1) == 0
    assert share_of_hardest(torch.zeros(0), 0.1) == 0


def test_gamma_moves_the_background_loss_to_few_anchors() -> None:
    """The paper's finding, on scores as a trained model has them: nearly all background is easy."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 20_000, 1, generator=rng) * 1.5 - 5
    nothing = torch.full((1, 20_000), BACKGROUND)
    outputs = Outputs([logits], [torch.zeros(1, 20_000, 4)])
    _, background = anchor_losses(outputs, nothing, torch.zeros(0, dtype=torch.int64), GAMMAS)
    shares = [share_of_hardest(row, 0.01) for row in background]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[-1] > 0.8
