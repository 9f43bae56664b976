"""The search for overlapping boxes finds every pair that a comparison of all boxes finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet.bench.measure import extra_memory
from retinanet.overlaps import BoxIndex, Floats, Ints, pair_iou, shared_area

Pairs = set[tuple[int, int]]


def some_boxes(rng: np.random.Generator, count: int, side: float) -> tuple[Floats, Ints]:
    """Boxes of all sizes, some without area, and their groups."""
    corner = rng.uniform(0, side, (count, 2))
    size = side * 10.0 ** rng.uniform(-3, 0.3, (count, 2)) * (rng.random((count, 1)) > 0.1)
    boxes = np.concatenate([corner, corner + size], axis=1)
    return np.where(rng.random((count, 1)) < 0.3, boxes.round(), boxes), rng.integers(0, 3, count)


def found(index: BoxIndex, boxes: Floats, groups: Ints, covered: bool) -> Pairs:
    return {
        pair for part in index.search(boxes, groups, covered).chunks() for pair in zip(*map(list, part), strict=True)
    }


@given(
    least=st.one_of(st.sampled_from([0.1, 0.5, 1.0]), st.floats(0.01, 1)),
    side=st.sampled_from([1e-3, 10.0, 1e5]),
    counts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=300, deadline=None)
def test_every_pair_that_overlaps_enough_is_found_once(
    least: float, side: float, counts: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    boxes, groups = some_boxes(rng, counts[0], side)
    others, other_groups = some_boxes(rng, counts[1], side)
    index = BoxIndex(others, least, other_groups)
    near, inside = found(index, boxes, groups, False), found(index, boxes, groups, True)
    assert index.search(boxes, groups).total == len(near)
    for i, box in enumerate(boxes):
        for j, other in enumerate(others):
            if groups[i] != other_groups[j]:
                assert (i, j) not in near | inside
                continue
            pair = box[None], other[None]
            if pair_iou(*pair)[0] >= least:
                assert (i, j) in near
            area = (box[2] - box[0]) * (box[3] - box[1])
            if area > 0 and shared_area(*pair)[0] >= least * area:
                assert (i, j) in inside


@pytest.mark.parametrize("spread", [0.0, 2000.0])
def test_pairs_come_in_parts_of_bounded_size(spread: float) -> None:
    corner = np.random.default_rng(0).uniform(0, spread, (5000, 2))
    boxes = np.concatenate([corner, corner + 30], axis=1)
    index = BoxIndex(boxes, 0.5)

    def read() -> None:
        for first, second in index.search(boxes).chunks():
            assert len(first) == len(second) < 70_000

    taken = extra_memory(read)
    assert taken is None or taken < 20 * 2**20  # all 25 million pairs would take 400 MB


def test_boxes_without_area_have_an_iou_of_zero() -> None:
    point = np.array([[3.0, 3, 3, 3]])
    assert pair_iou(point, point) == 0
    assert BoxIndex(point, 0.5).search(point).total == 0
