"""Looking only at anchors near a box finds what looking at all of them finds, to the last bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinanet.anchors import AnchorGrid, AnchorSpec, assign, assign_batch, make_grid
from retinanet.anchors.assign import best_overlap, cover_nearby, cover_overlap, force_best
from retinanet.anchors.nearby import pairs_by_iou
from retinanet.config import AssignConfig

SPECS = [
    AnchorSpec(),
    AnchorSpec(layout="torchvision"),
    AnchorSpec(sizes=(24.0, 70.0), scales=(1.0, 1.7), ratios=(0.2, 1.0, 3.0), strides=(8, 16)),
    AnchorSpec(sizes=(16.0,), scales=(1.0,), ratios=(1.0,), strides=(32,)),
]


def dense(grid: AnchorGrid, boxes: list[Tensor], config: AssignConfig) -> Tensor:
    """The rule of the paper, from all overlaps."""
    image = torch.repeat_interleave(torch.tensor([len(b) for b in boxes]))
    best, index = best_overlap(grid, torch.cat(boxes), image, len(boxes))
    matched = torch.where(best >= config.foreground, index, -2)
    return torch.where(best < config.background, -1, matched).view(len(boxes), -1)


def random_boxes(rng: np.random.Generator, grid: AnchorGrid, size: tuple[int, int], count: int) -> Tensor:
    """Boxes of all sizes in and around the image; some near an anchor, some just one, some twice, some of no size."""
    height, width = size
    corner = rng.uniform(-0.3, 1.1, (count, 2)) * [width, height]
    side = np.exp(rng.uniform(0, np.log(2 * max(size)), (count, 1))) * np.exp(rng.uniform(-1, 1, (count, 2)))
    boxes = torch.from_numpy(np.concatenate([corner, corner + side], axis=1)).float()
    kind = torch.from_numpy(rng.uniform(size=count))
    near = grid.boxes[torch.from_numpy(rng.integers(0, len(grid.boxes), count))]
    boxes = torch.where((kind < 0.5)[:, None], near + torch.from_numpy(rng.normal(0, 2, (count, 4))).float(), boxes)
    boxes = torch.where((kind < 0.3)[:, None], near, boxes)  # ties with neighbours, and overlaps of exactly 1
    boxes = torch.where((kind < 0.1)[:, None], boxes.round(), boxes)
    boxes[kind > 0.97, 2:] = boxes[kind > 0.97, :2]
    return torch.cat([boxes, boxes[: count // 5]])


def test_equal_to_comparing_all_with_all_in_a_thousand_cases() -> None:
    outcomes = np.zeros(3, dtype=int)
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        spec = SPECS[seed % len(SPECS)]
        size = (int(rng.integers(1, 260)), int(rng.integers(1, 260)))
        grid = make_grid(spec, size)
        background = float(rng.choice([0.4, 0.3, 0.1, 0.5]))
        config = AssignConfig(background=background, foreground=float(rng.choice([0.5, 0.7, background])))
        boxes = [random_boxes(rng, grid, size, int(rng.integers(0, 25))) for _ in range(int(rng.integers(1, 4)))]
        found = assign_batch(grid, boxes, [torch.zeros(0, 4)] * len(boxes), config)
        assert torch.equal(found, dense(grid, boxes, config)), seed
        outcomes += [int((found >= 0).sum()), int((found == -1).sum()), int((found == -2).sum())]
    assert (outcomes > 10_000).all()


def test_regions_equal_to_comparing_all_with_all() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        size = (int(rng.integers(1, 200)), int(rng.integers(1, 200)))
        grid = make_grid(SPECS[seed % len(SPECS)], size)
        regions = [random_boxes(rng, grid, size, int(rng.integers(0, 12))) for _ in range(2)]
        image = torch.repeat_interleave(torch.tensor([len(r) for r in regions]))
        share = float(rng.choice([0.5, 0.05, 1.0]))
        arguments = (grid, torch.cat(regions), image, 2, share)
        found = cover_nearby(*arguments)
        assert torch.equal(found, cover_overlap(*arguments)), seed
        covered += int(found.sum())
    assert covered > 10_000


@settings(max_examples=60, deadline=None)
@given(
    lowest=st.floats(0.05, 0.95),
    box=st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(0.1, 300), st.floats(0.1, 300)),
    spec=st.sampled_from(SPECS),
)
def test_no_pair_is_missed_and_few_are_in_vain(
    lowest: float, box: tuple[float, float, float, float], spec: AnchorSpec
) -> None:
    from torchvision.ops import box_iou

    grid = make_grid(spec, (97, 130))
    left, top, width, height = box
    boxes = torch.tensor([[left, top, left + width, top + height]])
    pairs = pairs_by_iou(grid, boxes, lowest)
    assert len(set(pairs.anchor.tolist())) == len(pairs.anchor)
    overlap = box_iou(boxes, grid.boxes)[0]
    wanted = set(torch.nonzero(overlap >= lowest).squeeze(1).tolist())
    assert wanted <= set(pairs.anchor.tolist())
    assert (overlap[pairs.anchor] > 0).float().mean() > 0.5 or len(pairs.anchor) < 200


def test_without_a_lower_bound_all_are_compared() -> None:
    """Background 0: an anchor without any overlap is ignored, not background."""
    grid = make_grid(SPECS[3], (64, 64))
    matched = assign(grid, torch.tensor([[0.0, 0.0, 8.0, 8.0]]), None, AssignConfig(background=0.0, foreground=0.1))
    assert matched.tolist() == [0, -2, -2, -2]


def test_images_do_not_mix() -> None:
    grid = make_grid(AnchorSpec(), (128, 96))
    rng = np.random.default_rng(3)
    boxes = [random_boxes(rng, grid, (128, 96), n) for n in (7, 0, 20, 1)]
    ignore = [random_boxes(rng, grid, (128, 96), n) for n in (0, 3, 1, 0)]
    for method in ("iou", "atss"):
        for forced in (False, True):
            config = AssignConfig(method=method, force_best=forced)
            start = 0
            for row, image in enumerate(assign_batch(grid, boxes, ignore, config)):
                alone = assign(grid, boxes[row], ignore[row], config)
                assert torch.equal(image, torch.where(alone >= 0, alone + start, alone))
                start += len(boxes[row])


MEMORY = """
import sys, torch
from pathlib import Path
from retinanet.anchors import AnchorSpec, assign, make_grid
from retinanet.config import AssignConfig

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

torch.set_num_threads(1)
grid = make_grid(AnchorSpec(), (800, 800))
corner = torch.rand(5000, 2) * 760
forced = sys.argv[1] == "forced"
side = 1 + 5 * torch.rand(5000, 2) if forced else 10 * torch.exp(3 * torch.rand(5000, 2))
boxes = torch.cat([corner, corner + side], dim=1)
config = AssignConfig(force_best=True) if forced else AssignConfig(method=sys.argv[1])
assign(grid, boxes[:10], None, config)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
matched = assign(grid, boxes, None, config)
assert (matched >= 0).sum() > 5000
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of memory this way")
@pytest.mark.parametrize("method", ["iou", "atss", "forced"])
def test_memory_of_five_thousand_boxes(method: str) -> None:
    """The matrix of all overlaps would take 2,400 MB."""
    result = subprocess.run([sys.executable, "-c", MEMORY, method], capture_output=True, text=True, check=True)
    assert 1 < float(result.stdout) < 200


def test_forced_matches_equal_comparing_all_with_all() -> None:
    forced = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        grid = make_grid(SPECS[seed % len(SPECS)], (int(rng.integers(1, 200)), int(rng.integers(1, 200))))
        boxes = [random_boxes(rng, grid, (200, 200), int(rng.integers(0, 20))) for _ in range(2)]
        image = torch.repeat_interleave(torch.tensor([len(b) for b in boxes]))
        every = torch.cat(boxes)
        _, index = best_overlap(grid, every, image, 2)
        plain = dense(grid, boxes, AssignConfig()).view(-1)
        found = assign_batch(grid, boxes, [torch.zeros(0, 4)] * 2, AssignConfig(force_best=True)).view(-1)
        assert torch.equal(found, force_best(grid, every, image, 2, index, plain)), seed
        forced += int((found != plain).sum())
    assert forced > 500


def test_no_images() -> None:
    assert assign_batch(make_grid(AnchorSpec(), (64, 64)), [], []).shape == (
        0,
        len(make_grid(AnchorSpec(), (64, 64)).boxes),
    )
