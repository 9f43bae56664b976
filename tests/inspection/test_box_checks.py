from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retinanet.inspection.box_checks import same_boxes

corners = arrays(np.float32, st.tuples(st.integers(0, 8), st.just(4)), elements=st.integers(0, 12).map(float))


@given(corners)
def test_same_boxes_against_the_definition(values: np.ndarray) -> None:
    boxes = np.concatenate([np.minimum(values[:, :2], values[:, 2:]), np.maximum(values[:, :2], values[:, 2:]) + 1], 1)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
        shared = sides[0] * sides[1]
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return float(shared / (sum(areas) - shared))

    expected = []
    for later in range(len(boxes)):
        earlier = [e for e in range(later) if iou(boxes[e], boxes[later]) > 0.95]
        expected += [(earlier[0], later)] if earlier else []
    assert same_boxes(boxes.astype(np.float32)) == expected
