"""Pair boxes of two sets one to one, so that the sum of their IoU is as large as possible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retinanet.overlaps import BoxIndex, pair_iou

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def best_pairs(boxes: Floats, labels: Ints, others: Floats, other_labels: Ints, least: float) -> tuple[Ints, Ints]:
    """Pair boxes with others of the same class, one to one; the sum of the IoU of all pairs is the largest possible.

    The Hungarian algorithm takes cubic time, so it runs on each group of boxes that overlap, directly or through
    others. In most videos such groups are small, also if there are thousands of boxes.

    Args:
        boxes: ``(M, 4)`` ``xyxy``, finite.
        labels: ``(M,)``, at least 0.
        others: ``(N, 4)`` ``xyxy``, finite.
        other_labels: ``(N,)``, at least 0.
        least: lowest IoU of a pair, above 0.

    Returns:
        Positions in ``boxes``, ascending, and in ``others``.
    """
    first, second, overlap = _overlapping(boxes, labels, others, other_labels, least)
    if not len(first):
        return first, second
    nodes = len(boxes) + len(others)
    graph = coo_array((np.ones(len(first)), (first, len(boxes) + second)), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1][first]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    chosen = [_chosen(first, second, overlap, rows) for rows in np.split(order, starts[1:])]
    rows = np.concatenate(chosen)
    rows = rows[np.argsort(first[rows])]
    return first[rows], second[rows]


def _overlapping(
    boxes: Floats, labels: Ints, others: Floats, other_labels: Ints, least: float
) -> tuple[Ints, Ints, Floats]:
    """All pairs of a class with an IoU of at least ``least``, and the IoU of each, in ascending order."""
    found = BoxIndex(others, least, other_labels).search(boxes, labels)
    parts = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)), *found.chunks()] if found.total else []
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    first, second = (np.concatenate(column) for column in zip(*parts, strict=True))
    overlap = pair_iou(boxes[first], others[second])
    rows = np.flatnonzero(overlap >= least)
    rows = rows[np.lexsort((second[rows], first[rows]))]
    return first[rows], second[rows], overlap[rows]


def _chosen(first: Ints, second: Ints, overlap: Floats, rows: Ints) -> Ints:
    """Choose the pairs of a group. ``rows`` are positions in the list of pairs, and so is the result."""
    if len(rows) == 1:
        return rows
    boxes, row = np.unique(first[rows], return_inverse=True)
    others, column = np.unique(second[rows], return_inverse=True)
    gain = np.zeros((len(boxes), len(others)))
    gain[row, column] = overlap[rows]
    place = np.full(gain.shape, -1)
    place[row, column] = rows
    chosen: Ints = place[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]  # the algorithm may also pair boxes that do not overlap
