"""Suppression of arrays keeps the boxes that torchvision's ``nms`` keeps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from retinanet.box_suppression import suppress_boxes, suppress_in_blocks


def boxes_of(count: int, side: float, longest: float, seed: int, whole: bool = False) -> npt.NDArray[np.float64]:
    random = np.random.default_rng(seed)
    corner, size = random.uniform(0, side, (count, 2)), random.uniform(0, longest, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    return np.rint(boxes) if whole else boxes


def reference(boxes: npt.NDArray[np.float64], threshold: float) -> list[int]:
    kept: list[int] = nms(
        torch.from_numpy(boxes), torch.arange(len(boxes), 0, -1, dtype=torch.float64), threshold
    ).tolist()
    return kept


@given(
    count=st.integers(0, 700),
    side=st.sampled_from([10.0, 100.0, 1e4]),
    longest=st.sampled_from([0.0, 30.0, 300.0]),
    whole=st.booleans(),
    threshold=st.one_of(st.sampled_from([0.25, 0.5, 2 / 3, 1.0]), st.floats(0.01, 0.99)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=100)
def test_random_boxes(count: int, side: float, longest: float, whole: bool, threshold: float, seed: int) -> None:
    boxes = boxes_of(count, side, longest, seed, whole)
    expected = reference(boxes, threshold)
    assert suppress_boxes(boxes, threshold).tolist() == expected
    assert suppress_in_blocks(boxes, threshold).tolist() == expected


@pytest.mark.parametrize("most", [1, 50, 1000, 9999])
def test_only_the_first_kept_boxes_are_wanted(most: int) -> None:
    boxes = boxes_of(4000, 900, 40, 0)
    expected = reference(boxes, 0.5)
    assert len(expected) > 1000
    assert suppress_boxes(boxes, 0.5, most).tolist() == expected[:most]
