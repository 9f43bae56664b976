"""Boxes of masks, polygons and rotated boxes, compared with pycocotools and with the corners themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retinanet.data.formats.shapes import (
    box_of_rotated,
    box_of_segmentation,
    to_integer,
    to_number,
    to_numbers,
)


@pytest.mark.parametrize("seed", range(30))
def test_masks_have_the_boxes_of_pycocotools(seed: int) -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 60, 2)
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    for _ in range(random.integers(1, 4)):
        y1, y2 = np.sort(random.integers(0, height + 1, 2))
        x1, x2 = np.sort(random.integers(0, width + 1, 2))
        mask[y1:y2, x1:x2] = 1
    mask[random.integers(height), random.integers(width)] = 1
    encoded = coco_mask.encode(mask)
    x, y, w, h = coco_mask.toBbox(encoded).tolist()
    text = {"size": [int(height), int(width)], "counts": encoded["counts"].decode()}
    assert box_of_segmentation(text) == (x, y, x + w, y + h)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    runs = np.diff(np.concatenate([[0], changes])).tolist()
    assert box_of_segmentation({"size": [int(height), int(width)], "counts": runs}) == (x, y, x + w, y + h)


@pytest.mark.parametrize(
    "segmentation",
    [
        *(None, [], [[]], {}, [["a", 1, 2, 3]], [[1, 2, 3]], "text", 5),
        *({"size": [2, 2], "counts": counts} for counts in ([9], [1, 9], [4], "\x7f", None)),
        {"size": [3], "counts": [1]},
    ],
)
def test_unusable_segmentations_have_no_box(segmentation: object) -> None:
    assert box_of_segmentation(segmentation) is None


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 5, 2, 3, 9]], [1, 2, 5, 2, 3, 9], [[1, 2, 5, 2], [3, 9, 3, 8]], [[[1, 2], [5, 2], [3, 9]]]]
)
def test_polygons_have_the_box_of_their_points(segmentation: object) -> None:
    assert box_of_segmentation(segmentation) == (1, 2, 5, 9)


@pytest.mark.parametrize("angle", [0.0, 0.5, -2.1, math.pi / 2, 7.0])
def test_rotated_boxes_have_the_box_of_their_corners(angle: float) -> None:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = np.array([[-4, -1], [4, -1], [4, 1], [-4, 1]]) @ turn.T + [10, 20]
    expected = [*corners.min(axis=0), *corners.max(axis=0)]
    assert box_of_rotated(10, 20, 8, 2, angle) == pytest.approx(expected)


def test_numbers_may_be_text_or_of_another_type() -> None:
    assert [to_number(value) for value in (1, 2.5, "3", " 4.5 ", "x", None, True, [1])] == [1, 2.5, 3, 4.5] + [None] * 4
    assert to_number(10**400) == math.inf
    assert [to_integer(value) for value in (1, 2.0, "3", "4.0", 1.5, "x", math.nan, True)] == [1, 2, 3, 4] + [None] * 4


@pytest.mark.parametrize("text", ["[1, 2, 3, 4]", "1 2 3 4", "(1.0,2,3,4.0)", "1;2;3;4", "['1', '2', '3', '4']"])
def test_lists_of_numbers_may_be_text(text: str) -> None:
    assert to_numbers(text) == [1, 2, 3, 4]


@pytest.mark.parametrize("value", ["", "box 1 2", "[1, x]", [1, None], {"a": 1}, 5])
def test_other_values_are_no_lists_of_numbers(value: object) -> None:
    assert to_numbers(value) is None
