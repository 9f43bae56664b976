from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet.detections import Detections
from retinanet.exporting.agreement import EXACT, Agreement, Tolerance, compare_detections, compare_raw


def found(seed: int, count: int, classes: int = 3) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 80, (count, 2))], axis=1).astype(np.float32)
    scores = np.sort(rng.uniform(0.06, 1, count).astype(np.float32))[::-1]
    return Detections.of_one_image(boxes, scores, rng.integers(0, classes, count))


@given(seed=st.integers(0, 1000), count=st.integers(0, 60))
def test_detections_agree_with_themselves_in_any_order(seed: int, count: int) -> None:
    ours = found(seed, count)
    theirs = ours.take(np.random.default_rng(seed).permutation(count))
    assert compare_detections(ours, theirs, (500, 500), EXACT) == Agreement(1, count)


LOOSE = Tolerance(raw=1, box=1, score=0.1, differing=0)


def test_small_differences_are_the_largest_ones() -> None:
    ours = found(0, 20)
    boxes, scores = ours.boxes.copy(), ours.scores.copy()
    boxes[3, 2] += 0.25
    scores[7] -= np.float32(0.01)
    theirs = replace(ours, boxes=boxes, scores=scores)
    result = compare_detections(ours, theirs, (500, 500), LOOSE)
    assert result.differing == 0
    assert result.box == pytest.approx(0.25, rel=1e-3)
    assert result.score == pytest.approx(0.01, rel=1e-3)
    assert result.within(LOOSE)
    assert compare_detections(ours, theirs, (500, 500), EXACT) == Agreement(1, 20, differing=2)


def test_a_few_differing_detections_are_accepted_and_more_are_not() -> None:
    ours = found(3, 200)
    for count, accepted in ((2, True), (3, False)):
        boxes = ours.boxes.copy()
        boxes[:count, 0] -= 0.1
        assert compare_detections(ours, replace(ours, boxes=boxes), (500, 500), EXACT).within(EXACT) is accepted
    boxes = ours.boxes.copy()
    boxes[:, 0] = np.nan
    assert compare_detections(ours, replace(ours, boxes=boxes), (500, 500), EXACT).differing == 400


def test_in_larger_images_pixels_count_in_proportion() -> None:
    ours = found(0, 5)
    moved = replace(ours, boxes=ours.boxes + 0.5)
    assert compare_detections(ours, moved, (500, 5000), LOOSE).box == pytest.approx(0.1, rel=1e-3)


def test_missing_and_additional_detections_and_other_classes_are_counted() -> None:
    ours = found(1, 10)
    assert compare_detections(ours, ours.take(slice(2, None)), (500, 500), EXACT).differing == 2
    assert compare_detections(ours.take(slice(2, None)), ours, (500, 500), EXACT).differing == 2
    other = replace(ours, labels=(ours.labels + 1) % 3)
    assert compare_detections(ours, other, (500, 500), EXACT).differing == 20


def test_rounding_at_the_threshold_and_at_the_limit_is_not_counted() -> None:
    ours = found(2, 10)
    floor = float(ours.scores[-1])
    assert compare_detections(ours, ours.take(slice(0, 9)), (500, 500), EXACT, floor).differing == 0
    theirs = replace(ours.take(slice(0, 9)), limited=np.zeros(1, dtype=np.int64))
    assert compare_detections(ours, theirs, (500, 500), EXACT).differing == 0
    higher = replace(ours.take(slice(1, 10)), limited=np.zeros(1, dtype=np.int64))
    assert compare_detections(ours, higher, (500, 500), EXACT).differing == 1


def test_raw_outputs() -> None:
    a = np.array([[1.0, -20.0]])
    assert compare_raw([a], [a + np.array([[0.5, 2.0]])]) == 0.5
    assert compare_raw([a], [a[:, :1]]) == np.inf
    assert compare_raw([a], [np.array([[np.nan, -20.0]])]) == np.inf
    assert not Agreement(raw=float("nan")).within(EXACT)
