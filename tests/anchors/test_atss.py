from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from retinanet.anchors import BACKGROUND, AnchorGrid, AnchorSpec, assign, make_grid
from retinanet.config import AssignConfig

ATSS = AssignConfig(method="atss")

Array = npt.NDArray[np.float64]


def oracle(grid: AnchorGrid, boxes: Array, k: int = 9) -> tuple[list[int], float]:
    """Algorithm 1 of the ATSS paper, all distances, in float64; also the smallest margin of any decision."""
    anchors = grid.boxes.double().numpy()
    per_location = grid.spec.per_location
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    best = np.zeros(len(anchors))
    owner = np.full(len(anchors), BACKGROUND)
    margin = 1.0
    for index, box in enumerate(boxes):
        middle = (box[:2] + box[2:]) / 2
        candidates: list[int] = []
        start = 0
        for rows, columns in grid.shapes:
            positions = centres[start : start + rows * columns * per_location : per_location]
            distance = np.sqrt(((positions - middle) ** 2).sum(axis=1))
            order = np.argsort(distance)
            if len(order) > k:
                margin = min(margin, distance[order[k]] - distance[order[k - 1]])
            for position in order[:k]:
                candidates += [start + position * per_location + a for a in range(per_location)]
            start += rows * columns * per_location
        chosen = anchors[candidates]
        size = np.clip(np.minimum(chosen[:, 2:], box[2:]) - np.maximum(chosen[:, :2], box[:2]), 0, None)
        shared = size.prod(axis=1)
        union = (chosen[:, 2:] - chosen[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
        iou = shared / union
        threshold = iou.mean() + iou.std(ddof=1)
        edge = np.concatenate([centres[candidates] - box[:2], box[2:] - centres[candidates]], axis=1)
        inside = (edge > 0).all(axis=1)
        if inside.any():
            margin = min(margin, np.abs(iou[inside] - threshold).min())
        margin = min(margin, np.abs(edge).min())
        for anchor, value in zip(np.array(candidates)[inside], iou[inside], strict=True):
            if value >= threshold:
                if owner[anchor] >= 0:
                    margin = min(margin, abs(value - best[anchor]))
                if value > best[anchor]:
                    best[anchor], owner[anchor] = value, index
    return owner.tolist(), margin


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """Objects of 4 px to the whole image, with centres inside it; a third at a border or a corner, partly outside."""
    centre = rng.uniform(0, 1, (count, 2)) * [width, height]
    snapped = rng.integers(0, 2, (count, 2)) * np.array([width, height]) + rng.uniform(-2, 2, (count, 2))
    centre = np.where(rng.uniform(size=(count, 2)) < 0.2, snapped, centre)
    half = np.exp(rng.uniform(np.log(2), np.log(max(height, width, 8) / 2), (count, 2)))
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((256, 320), id="usual"),
        pytest.param((40, 56), id="coarse-levels-of-one-location"),
        pytest.param((8, 8), id="one-location-everywhere"),
        pytest.param((60, 700), id="wide"),
        pytest.param((1400, 100), id="tall"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_against_a_slow_oracle(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng([seed, *size])
    grid = make_grid(AnchorSpec(), size)
    truth = random_boxes(rng, 12, *size)
    expected, margin = oracle(grid, truth.astype(np.float64))
    assert margin > 1e-6  # no decision that float32 could turn
    assert assign(grid, torch.from_numpy(truth), config=ATSS).tolist() == expected


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    count=st.integers(1, 6),
    k=st.sampled_from([1, 4, 9, 12]),
)
def test_against_the_oracle_on_any_size(seed: int, size: tuple[int, int], count: int, k: int) -> None:
    spec = AnchorSpec(sizes=(32.0, 64.0, 128.0), scales=(1.0,), ratios=(0.5, 1.0), strides=(16, 32, 64))
    grid = make_grid(spec, size)
    truth = random_boxes(np.random.default_rng(seed), count, *size)
    expected, margin = oracle(grid, truth.astype(np.float64), k)
    assume(margin > 1e-5)
    assert assign(grid, torch.from_numpy(truth), config=AssignConfig(method="atss", candidates=k)).tolist() == expected


def test_a_tiny_object_still_gets_anchors() -> None:
    grid = make_grid(AnchorSpec(), (256, 256))
    box = torch.tensor([[101.3, 61.2, 107.3, 67.2]])  # 6 px around the location (104, 64)
    assert box_iou(grid.boxes, box).max() < 0.1
    assert set(assign(grid, box).tolist()) == {BACKGROUND}  # by the paper's thresholds it is lost
    matched = assign(grid, box, config=ATSS)
    assert 0 in matched.tolist()
    centres = (grid.boxes[matched == 0][:, :2] + grid.boxes[matched == 0][:, 2:]) / 2
    assert centres.tolist() == [[104.0, 64.0]] * len(centres)


def test_an_object_without_a_centre_inside_gets_none() -> None:
    box = torch.tensor([[105.1, 65.2, 111.3, 71.4]])  # between the locations 104 and 112
    assert set(assign(make_grid(AnchorSpec(), (256, 256)), box, config=ATSS).tolist()) == {BACKGROUND}


def test_equal_boxes_go_to_the_first() -> None:
    box = [60.3, 50.7, 120.1, 140.9]
    matched = assign(make_grid(AnchorSpec(), (200, 200)), torch.tensor([box, box]), config=ATSS)
    assert set(matched.tolist()) == {BACKGROUND, 0}


def test_no_boxes() -> None:
    grid = make_grid(AnchorSpec(), (64, 64))
    assert assign(grid, torch.zeros(0, 4), config=ATSS).tolist() == [BACKGROUND] * len(grid.boxes)


def test_a_box_beyond_the_image_takes_the_nearest_positions() -> None:
    grid = make_grid(AnchorSpec(), (64, 64))
    truth = np.array([[-30.3, -20.2, 25.5, 40.4], [50.1, 40.3, 120.7, 90.9]], dtype=np.float32)
    expected, margin = oracle(grid, truth.astype(np.float64))
    assert margin > 1e-6
    assert {0, 1} < set(expected)
    assert assign(grid, torch.from_numpy(truth), config=ATSS).tolist() == expected


def test_a_single_candidate_is_its_own_threshold() -> None:
    """The standard deviation of one number is taken as 0."""
    spec = AnchorSpec(sizes=(32.0,), scales=(1.0,), ratios=(1.0,), strides=(32,))
    matched = assign(
        make_grid(spec, (96, 96)), torch.tensor([[17.0, 17, 49, 49]]), config=AssignConfig("atss", candidates=1)
    )
    assert matched.tolist() == [BACKGROUND] * 4 + [0] + [BACKGROUND] * 4


def test_a_centre_on_the_border_of_a_box_is_not_inside() -> None:
    spec = AnchorSpec(sizes=(16.0,), scales=(1.0,), ratios=(1.0,), strides=(16,))
    grid = make_grid(spec, (64, 64))
    for box in ([32.0, 25.0, 46.0, 39.0], [18.0, 25.0, 32.0, 39.0], [25.0, 32.0, 39.0, 46.0], [25.0, 18.0, 39.0, 32.0]):
        # the anchor at (32, 32) is the nearest or among the nearest, but its centre lies on an edge
        assert set(assign(grid, torch.tensor([box]), config=ATSS).tolist()) == {BACKGROUND}
        inward = torch.tensor([box]) + torch.tensor([-0.5, -0.5, 0.5, 0.5])
        assert assign(grid, inward, config=ATSS)[2 * 4 + 2] == 0


@pytest.mark.parametrize("size", [(800, 1088), (224, 288), (96, 1344), (32, 64)])
@pytest.mark.parametrize("seed", range(2))
def test_against_the_oracle_on_torchvisions_layout(size: tuple[int, int], seed: int) -> None:
    """Its coarse steps differ from the strides, and between rows and columns."""
    rng = np.random.default_rng([seed, *size])
    spec = AnchorSpec(sizes=(128.0, 256.0, 512.0), scales=(1.0, 1.3), ratios=(0.5, 1.0), strides=(32, 64, 128))
    grid = make_grid(replace(spec, layout="torchvision"), size)
    assert grid.strides != make_grid(spec, size).strides
    truth = random_boxes(rng, 12, *size)
    expected, margin = oracle(grid, truth.astype(np.float64))
    assert margin > 1e-6
    assert assign(grid, torch.from_numpy(truth), config=ATSS).tolist() == expected


def test_of_equally_near_positions_the_first_are_candidates() -> None:
    """A centre between four positions, three candidates: the fourth of equals is left out."""
    spec = AnchorSpec(sizes=(16.0,), scales=(1.0,), ratios=(1.0,), strides=(16,))
    grid = make_grid(spec, (64, 64))
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])  # its centre is (24, 24)
    matched = assign(grid, box, config=AssignConfig(method="atss", candidates=3))
    assert torch.nonzero(matched == 0).squeeze(1).tolist() == [5, 6, 9]


def test_a_centre_far_outside_the_image() -> None:
    """The nearest positions lie in one column then."""
    spec = AnchorSpec(sizes=(64.0,), scales=(1.0,), ratios=(1.0,), strides=(16,))
    grid = make_grid(spec, (320, 320))
    truth = np.array([[-1843.3, 20.5, 176.5, 127.1], [-700.2, 101.3, 21.4, 163.7]], dtype=np.float32)
    expected, margin = oracle(grid, truth.astype(np.float64))
    assert margin > 1e-6
    assert assign(grid, torch.from_numpy(truth), config=ATSS).tolist() == expected
    assert max(expected) >= 0
