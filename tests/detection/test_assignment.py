"""Pairs of boxes with the largest total IoU, compared with all possible pairings."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest

from retinanet.detection.assignment import best_pairs

Floats = npt.NDArray[np.float64]


def iou(a: Floats, b: Floats) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def best_total(gain: Floats) -> float:
    """The largest sum of a one-to-one choice, by trying all."""
    wide = gain if gain.shape[0] <= gain.shape[1] else gain.T
    choices = permutations(range(wide.shape[1]), wide.shape[0])
    return max(sum(float(wide[i, j]) for i, j in enumerate(columns)) for columns in choices)


@pytest.mark.parametrize("seed", range(25))
def test_no_other_pairing_has_a_larger_total(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (int(rng.integers(1, 12)), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 30, corners.shape)], axis=1)
    count = min(len(boxes), 6)
    mine, others = boxes[:count], boxes[-5:] + 2
    labels, other_labels = rng.integers(0, 2, len(mine)), rng.integers(0, 2, len(others))
    gain = np.array([[iou(a, b) for b in others] for a in mine])
    gain[(gain < 0.25) | (labels[:, None] != other_labels[None])] = 0
    rows, columns = best_pairs(mine, labels, others, other_labels, 0.25)
    assert (gain[rows, columns] >= 0.25).all()
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows)
    assert rows.tolist() == sorted(rows.tolist())
    assert gain[rows, columns].sum() == pytest.approx(best_total(gain))


def test_nothing_is_paired_with_nothing() -> None:
    none, zero = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    one, label = np.array([[0.0, 0.0, 5.0, 5.0]]), np.zeros(1, dtype=np.int64)
    for mine, labels, others, other_labels in (
        (none, zero, none, zero),
        (one, label, none, zero),
        (none, zero, one, label),
        (one, label, one + 100, label),
        (one, label, one, label + 1),
    ):
        rows, columns = best_pairs(mine, labels, others, other_labels, 0.2)
        assert len(rows) == len(columns) == 0


def test_a_greedy_choice_would_be_worse() -> None:
    """Box 0 overlaps other 0 most, but then box 1 would have no partner."""
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0]])
    others = np.array([[1.0, 0.0, 11.0, 10.0], [-3.0, 0.0, 7.0, 10.0]])
    rows, columns = best_pairs(boxes, np.zeros(2, dtype=np.int64), others, np.zeros(2, dtype=np.int64), 0.2)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
