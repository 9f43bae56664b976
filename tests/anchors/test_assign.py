from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from retinanet.anchors import BACKGROUND, IGNORE, AnchorSpec, assign, assign_batch, make_grid, match_batch
from retinanet.config import AssignConfig

# One square anchor [-16, -16, 16, 16] for an image of one location.
ONE = make_grid(AnchorSpec(sizes=(32.0,), scales=(1.0,), ratios=(1.0,), strides=(32,)), (32, 32))
NO_BOXES = torch.zeros(0, 4)

Array = npt.NDArray[np.float64]


def overlap(a: Array, b: Array) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union)


def oracle(anchors: Array, boxes: Array, foreground: float = 0.5, background: float = 0.4) -> tuple[list[int], float]:
    """Section 4 by loops in float64; also the smallest distance of a decision from turning the other way."""
    result, margin = [], 1.0
    for anchor in anchors:
        overlaps = [overlap(anchor, box) for box in boxes]
        best = max(overlaps, default=0.0)
        margin = min(margin, abs(best - foreground), abs(best - background))
        others = [o for o in overlaps if o != best]
        if best >= background:
            margin = min(margin, best - max(others, default=0.0))
        if best >= foreground:
            result.append(overlaps.index(best))
        else:
            result.append(BACKGROUND if best < background else IGNORE)
    return result, margin


def boxes_strategy(limit: float, low: float = -40.0) -> st.SearchStrategy[list[list[float]]]:
    """Boxes of 1–200 px whose corner may lie outside the image."""
    side = st.floats(1, 200, width=32)
    corner = st.floats(low, limit, width=32)
    box = st.tuples(corner, corner, side, side).map(lambda v: [v[0], v[1], v[0] + v[2], v[1] + v[3]])
    return st.lists(box, max_size=6)


@settings(max_examples=40)
@given(boxes=boxes_strategy(120), size=st.tuples(st.integers(1, 120), st.integers(1, 120)))
def test_against_a_slow_oracle(boxes: list[list[float]], size: tuple[int, int]) -> None:
    spec = AnchorSpec(sizes=(24.0, 48.0), scales=(1.0, 1.5), ratios=(0.5, 1.0), strides=(16, 32))
    grid = make_grid(spec, size)
    truth = torch.tensor(boxes).reshape(-1, 4)
    expected, margin = oracle(grid.boxes.double().numpy(), truth.double().numpy())
    assume(margin > 1e-5)
    assert assign(grid, truth).tolist() == expected


def test_against_the_oracle_on_the_papers_anchors() -> None:
    rng = np.random.default_rng(0)
    grid = make_grid(AnchorSpec(), (96, 128))
    # objects of every size, and each within a few pixels of some anchor so that all three outcomes occur
    chosen = grid.boxes[torch.from_numpy(rng.integers(0, len(grid.boxes), 12))].numpy()
    truth = torch.from_numpy((chosen + rng.uniform(-3, 3, chosen.shape)).astype(np.float32))
    expected, margin = oracle(grid.boxes.double().numpy(), truth.double().numpy())
    assert margin > 1e-6
    assert {BACKGROUND, IGNORE} < set(expected)
    assert assign(grid, truth).tolist() == expected


def test_a_thousand_boxes() -> None:
    rng = np.random.default_rng(1)
    spec = AnchorSpec(sizes=(32.0,), scales=(1.0,), ratios=(1.0,), strides=(8,))
    grid = make_grid(spec, (64, 64))
    corner = rng.uniform(-10, 60, (1000, 2))
    truth = np.concatenate([corner, corner + rng.uniform(10, 60, (1000, 2))], axis=1).astype(np.float32)
    expected, margin = oracle(grid.boxes.double().numpy(), truth.astype(np.float64))
    assert margin > 1e-6
    assert max(expected) > 900  # boxes beyond the first chunk win too
    assert assign(grid, torch.from_numpy(truth)).tolist() == expected


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-16, -16, 16, 0], 0),  # half of the anchor: IoU is exactly 0.5
        ([-16, -16, 16, -0.001], IGNORE),  # a hair less
        ([-16, -16, 16, 48], 0),  # twice the anchor: exactly 0.5
        ([-16, -16, 16, 48.01], IGNORE),
        ([-16, -16, 16, 64], IGNORE),  # 1024 / 2560: exactly 0.4
        ([-16, -16, 16, 64.01], BACKGROUND),
        ([-16, -16, 16, 63.99], IGNORE),
        ([16, 16, 48, 48], BACKGROUND),  # touches at a corner
        ([-16, -16, 16, 16], 0),
    ],
)
def test_thresholds_are_inclusive(box: list[float], expected: int) -> None:
    assert assign(ONE, torch.tensor([box], dtype=torch.float32)).tolist() == [expected]


def test_equal_boxes_go_to_the_first() -> None:
    box = [-15.0, -15.0, 17.0, 15.0]
    truth = torch.tensor([[100.0, 100, 120, 120], *([box] * 70)])  # ties within and across chunks
    assert assign(ONE, truth).tolist() == [1]


def test_the_highest_overlap_wins_wherever_it_stands() -> None:
    worse, better = [-16.0, -16, 16, 4], [-16.0, -16, 16, 12]
    assert assign(ONE, torch.tensor([worse] * 40 + [better])).tolist() == [40]
    assert assign(ONE, torch.tensor([better] + [worse] * 40)).tolist() == [0]


def test_no_box_means_background_everywhere() -> None:
    grid = make_grid(AnchorSpec(), (64, 64))
    matched = assign(grid, NO_BOXES)
    assert matched.dtype == torch.int64
    assert matched.tolist() == [BACKGROUND] * len(grid.boxes)


def test_no_object_is_forced_onto_an_anchor() -> None:
    assert set(assign(make_grid(AnchorSpec(), (64, 64)), torch.tensor([[30.0, 30, 34, 34]])).tolist()) == {BACKGROUND}


@pytest.mark.parametrize("method", ["iou", "atss"])
def test_ignore_regions_spare_background_only(method: str) -> None:
    spec = AnchorSpec(sizes=(32.0,), scales=(1.0,), ratios=(1.0,), strides=(32,))
    grid = make_grid(spec, (96, 96))
    config = AssignConfig(method=method)  # type: ignore[arg-type]
    truth = torch.tensor([[17.0, 17, 49, 49]])  # the anchor at (32, 32), moved by a pixel
    plain = assign(grid, truth, None, config)
    assert plain[4] == 0
    region = torch.tensor([[0.0, 0.0, 96.0, 96.0]])
    expected = []
    for anchor, target in zip(grid.boxes.tolist(), plain.tolist(), strict=True):
        inside = max(0.0, min(anchor[2], 96) - max(anchor[0], 0)) * max(0.0, min(anchor[3], 96) - max(anchor[1], 0))
        covered = inside / 32**2 >= 0.5
        expected.append(IGNORE if target == BACKGROUND and covered else target)
    assert IGNORE in expected
    assert BACKGROUND in expected  # the corner anchor is covered by a quarter only
    assert assign(grid, truth, region, config).tolist() == expected


def test_share_covered_by_one_region_at_the_threshold() -> None:
    far = torch.tensor([[500.0, 500.0, 510.0, 510.0]])
    half = torch.tensor([[-16.0, -16.0, 0.0, 16.0]])
    less = torch.tensor([[-16.0, -16.0, -0.01, 16.0]])
    assert assign(ONE, far, half).tolist() == [IGNORE]
    assert assign(ONE, far, less).tolist() == [BACKGROUND]
    assert assign(ONE, far, torch.cat([less, half])).tolist() == [IGNORE]
    assert assign(ONE, far, half, AssignConfig(ignore_overlap=0.51)).tolist() == [BACKGROUND]
    assert assign(ONE, NO_BOXES, half).tolist() == [IGNORE]  # also where there is no object at all
    # Among a hundred anchors, only those near a small region are compared with it.
    hundred = make_grid(AnchorSpec(sizes=(32.0,), scales=(1.0,), ratios=(1.0,), strides=(32,)), (320, 320))
    for moved, last in ((half + 160, IGNORE), (less + 160, BACKGROUND)):  # in the middle of the anchors
        for found in (assign_batch(hundred, [far], [moved]), match_batch(hundred, [far], [moved]).dense()):
            assert found[0, 55] == last
            assert (found == IGNORE).sum() == (last == IGNORE)


def test_other_thresholds() -> None:
    truth = torch.tensor([[-16.0, -16, 16, 0]])  # IoU 0.5
    assert assign(ONE, truth, config=AssignConfig(foreground=0.6, background=0.5)).tolist() == [IGNORE]
    assert assign(ONE, truth, config=AssignConfig(foreground=0.7, background=0.6)).tolist() == [BACKGROUND]
    assert assign(ONE, truth, config=AssignConfig(foreground=0.5, background=0.5)).tolist() == [0]


@settings(max_examples=30)
@given(images=st.lists(boxes_strategy(60), min_size=1, max_size=4))
def test_batch_indices_point_into_the_concatenation(images: list[list[list[float]]]) -> None:
    grid = make_grid(AnchorSpec(sizes=(24.0,), scales=(1.0, 1.5), ratios=(1.0,), strides=(8,)), (64, 64))
    truth = [torch.tensor(boxes).reshape(-1, 4) for boxes in images]
    everything = torch.cat(truth)
    matched = assign_batch(grid, truth, [NO_BOXES] * len(truth))
    assert matched.shape == (len(images), len(grid.boxes))
    for row, boxes in zip(matched, truth, strict=True):
        alone = assign(grid, boxes)
        assert torch.equal(row < 0, alone < 0)
        assert torch.equal(row[row < 0], alone[alone < 0])
        taken: Tensor = everything[row[row >= 0]]
        assert torch.equal(taken, boxes[alone[alone >= 0]])


def test_each_image_of_a_batch_has_its_own_ignore_regions() -> None:
    far, cover = torch.tensor([[500.0, 500, 510, 510]]), torch.tensor([[-16.0, -16, 16, 16]])
    matched = assign_batch(ONE, [far, far], [NO_BOXES, cover])
    assert matched.tolist() == [[BACKGROUND], [IGNORE]]


# torchvision's matcher as the oracle


def torchvision_matches(anchors: Tensor, boxes: Tensor, force_best: bool) -> Tensor:
    matched: Tensor = Matcher(0.5, 0.4, allow_low_quality_matches=force_best)(box_iou(boxes, anchors))
    return matched


@st.composite
def objects(draw: st.DrawFn) -> list[list[float]]:
    """Boxes of 1–300 px in and around the image, at least one."""
    boxes = draw(boxes_strategy(150))
    side = draw(st.floats(1, 300, width=32))
    corner = draw(st.floats(-20, 130, width=32))
    return [*boxes, [corner, corner / 2 + 10, corner + side, corner / 2 + 10 + side * 0.8]]


@pytest.mark.parametrize("force_best", [True, False])
@pytest.mark.parametrize("layout", ["paper", "torchvision"])
@settings(max_examples=40)
@given(boxes=objects(), size=st.sampled_from([(128, 160), (96, 96), (160, 64)]))
def test_equals_torchvisions_matcher(
    layout: str, force_best: bool, boxes: list[list[float]], size: tuple[int, int]
) -> None:
    grid = make_grid(AnchorSpec(layout=layout), size)  # type: ignore[arg-type]
    truth = torch.tensor(boxes)
    assume((box_iou(truth, grid.boxes).amax(dim=1) > 0).all())  # see below for those
    found = assign(grid, truth, config=AssignConfig(force_best=force_best))
    assert torch.equal(found, torchvision_matches(grid.boxes, truth, force_best))


@pytest.mark.parametrize("seed", range(3))
def test_equals_torchvisions_matcher_on_many_objects(seed: int) -> None:
    """More than fit one chunk, many of them too small, long or large for any anchor."""
    rng = np.random.default_rng(seed)
    grid = make_grid(AnchorSpec(layout="torchvision"), (320, 448))
    corner = rng.uniform(-10, [440, 310], (90, 2))
    side = np.exp(rng.uniform(np.log(2), np.log(400), (90, 2)))
    truth = torch.from_numpy(np.concatenate([corner, corner + side], axis=1).astype(np.float32))
    best = box_iou(truth, grid.boxes).amax(dim=1)
    assert (best < 0.4).sum() > 20
    assert ((best >= 0.4) & (best < 0.5)).any()
    assert (best >= 0.5).sum() > 10
    forced = assign(grid, truth, config=AssignConfig(force_best=True))
    plain = assign(grid, truth, config=AssignConfig(force_best=False))
    assert torch.equal(forced, torchvision_matches(grid.boxes, truth, force_best=True))
    assert torch.equal(plain, torchvision_matches(grid.boxes, truth, force_best=False))
    assert len(set(forced.tolist())) > len(set(plain.tolist())) + 15  # objects that get an anchor by force alone
    changed = forced != plain
    assert (plain[changed] < 0).all()
    assert (forced[changed] >= 0).all()


def test_a_forced_anchor_keeps_its_own_best_object() -> None:
    """torchvision's rule: the anchor a box forces may go to another box that overlaps it more."""
    small, large = [-2.0, -2, 2, 2], [-16.0, -16, 16, 10]
    truth = torch.tensor([small, large])
    for config in (AssignConfig(), AssignConfig(force_best=True)):
        assert assign(ONE, truth, config=config).tolist() == [1]
    assert assign(ONE, truth[:1]).tolist() == [BACKGROUND]
    assert assign(ONE, truth[:1], config=AssignConfig(force_best=True)).tolist() == [0]


def test_all_anchors_that_overlap_an_object_equally_are_forced() -> None:
    grid = make_grid(AnchorSpec(sizes=(16.0,), scales=(1.0,), ratios=(1.0,), strides=(16,)), (32, 32))
    truth = torch.tensor([[7.0, 7.0, 9.0, 9.0]])  # where four anchors meet
    assert assign(grid, truth).tolist() == [BACKGROUND] * 4
    assert assign(grid, truth, config=AssignConfig(force_best=True)).tolist() == [0] * 4
    assert torchvision_matches(grid.boxes, truth, force_best=True).tolist() == [0] * 4


def test_an_object_outside_of_all_anchors_forces_none() -> None:
    """torchvision would match every anchor with it, because all overlap it equally: not at all."""
    grid = make_grid(AnchorSpec(sizes=(16.0,), scales=(1.0,), ratios=(1.0,), strides=(16,)), (32, 32))
    truth = torch.tensor([[500.0, 500.0, 510.0, 510.0]])
    assert assign(grid, truth, config=AssignConfig(force_best=True)).tolist() == [BACKGROUND] * 4
    assert torchvision_matches(grid.boxes, truth, force_best=True).tolist() == [0] * 4


def test_forced_anchors_are_not_ignored() -> None:
    config = AssignConfig(force_best=True)
    truth, cover = torch.tensor([[-2.0, -2, 2, 2]]), torch.tensor([[-16.0, -16, 16, 16]])
    assert assign(ONE, truth, cover).tolist() == [IGNORE]
    assert assign(ONE, truth, cover, config).tolist() == [0]
    assert assign(ONE, NO_BOXES, config=config).tolist() == [BACKGROUND]
