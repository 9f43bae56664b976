from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet.detection.tile_merge import COVERED, CUT_WITHIN, Tiles, merge_tiles
from retinanet.detection.tile_plan import TileOptions, Tiling

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def tiles_of(height: int, width: int, side: int, overlap: int, shortest: float = 0.0) -> Tiles:
    windows = Tiling.choose(TileOptions(side, overlap), None, side).windows((height, width))
    corners = np.array([(w.left, w.top, w.left + w.width, w.top + w.height) for w in windows], dtype=np.float64)
    return Tiles(corners, (height, width), np.full(len(corners), CUT_WITHIN), np.full(len(corners), shortest))


def merge(boxes: Floats, scores: Floats, labels: Ints, owners: Ints, tiles: Tiles, threshold: float = 0.5) -> list[int]:
    return merge_tiles(boxes, scores, labels, owners, tiles, threshold).tolist()


def intersection(a: Floats, b: Floats) -> float:
    return float(max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1])))


def area(box: Floats) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def is_cut(box: Floats, owner: int, tiles: Tiles) -> bool:
    edges = [0, 0, tiles.size[1], tiles.size[0]]
    window = tiles.windows[owner]
    return any(window[k] != edges[k] and abs(box[k] - window[k]) <= CUT_WITHIN for k in range(4))


def brute_force(boxes: Floats, scores: Floats, labels: Ints, owners: Ints, tiles: Tiles, threshold: float) -> list[int]:
    """The rules, with every box compared with every other box."""
    count = range(len(boxes))
    cut = [is_cut(boxes[i], int(owners[i]), tiles) for i in count]
    fine = [i for i in count if max(boxes[i][2:] - boxes[i][:2]) >= tiles.shortest[owners[i]]]

    def rivals(i: int) -> list[int]:
        return [j for j in fine if labels[i] == labels[j] and owners[i] != owners[j]]

    def covered(i: int) -> bool:
        own = boxes[i]
        return area(own) > 0 and any(
            (not cut[j] or area(boxes[j]) > area(own)) and intersection(own, boxes[j]) >= COVERED * area(own)
            for j in rivals(i)
        )

    remaining = [i for i in fine if not (cut[i] and covered(i))]
    kept: list[int] = []
    for i in sorted(remaining, key=lambda i: (cut[i], -scores[i])):
        shared = [intersection(boxes[i], boxes[j]) for j in kept]
        unions = [area(boxes[i]) + area(boxes[j]) - s for s, j in zip(shared, kept, strict=True)]
        near = {j for s, u, j in zip(shared, unions, kept, strict=True) if u > 0 and s / u > threshold}
        if not near & set(rivals(i)):
            kept.append(i)
    return sorted(kept, key=lambda i: (-scores[i], i))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.3, 0.5, 1.0]))
def test_merging_agrees_with_the_comparison_of_all_boxes(seed: int, count: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    tiles = tiles_of(int(rng.integers(60, 260)), 250, 100, int(rng.integers(0, 50)), float(rng.choice([0, 12])))
    owners = rng.integers(0, len(tiles.windows), count)
    windows = tiles.windows[owners]
    # Few centers, so that boxes of different tiles are of one object; many boxes are clipped by their tile.
    centers = rng.integers(0, 8, (count, 2)) * 32 + rng.normal(0, 2, (count, 2))
    sides = rng.choice([8, 20, 40], (count, 2)) * rng.uniform(0.8, 1.2, (count, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    boxes = np.clip(boxes, np.tile(windows[:, :2], 2), np.tile(windows[:, 2:], 2))
    scores, labels = rng.choice([0.2, 0.5, 0.7, 0.9], count), rng.integers(0, 2, count)
    arguments = boxes, scores, labels, owners, tiles, threshold
    assert merge(*arguments) == brute_force(*arguments)


def test_a_cut_box_yields_to_the_whole_one_even_with_a_better_score() -> None:
    tiles = tiles_of(100, 180, 100, 20)  # tiles 0–100 and 80–180
    boxes = np.array([[85, 10, 100, 30], [85, 10, 115, 30]], dtype=np.float64)
    assert merge(boxes, np.array([0.9, 0.6]), np.zeros(2, np.int64), np.array([0, 1]), tiles) == [1]
    # of another class, or of the same tile: it stays
    assert merge(boxes, np.array([0.9, 0.6]), np.array([0, 1]), np.array([0, 1]), tiles) == [0, 1]
    assert merge(boxes, np.array([0.9, 0.6]), np.zeros(2, np.int64), np.array([1, 1]), tiles) == [0, 1]


def test_a_box_at_the_edge_of_the_image_is_not_cut() -> None:
    tiles = tiles_of(100, 180, 100, 20)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 30, 30]], dtype=np.float64)
    assert merge(boxes, np.array([0.9, 0.6]), np.zeros(2, np.int64), np.array([0, 1]), tiles) == [0, 1]


def test_of_two_whole_boxes_the_better_one_stays() -> None:
    tiles = tiles_of(100, 180, 100, 40)
    boxes = np.array([[84, 10, 96, 22], [85, 10, 97, 22], [84, 10, 96, 22]], dtype=np.float64)
    owners = np.array([0, 1, 0])  # the third is of the tile of the first, so only the network may suppress it
    assert merge(boxes, np.array([0.8, 0.9, 0.7]), np.zeros(3, np.int64), owners, tiles) == [1]
    assert merge(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64), owners, tiles) == [0, 2]


def test_a_reduced_pass_finds_only_what_the_tiles_may_have_cut() -> None:
    fine = tiles_of(200, 200, 100, 20)
    whole = np.array([[0, 0, 200, 200]], dtype=np.float64)
    tiles = Tiles(
        np.concatenate([fine.windows, whole]),
        (200, 200),
        np.append(fine.cut_within, 2 * CUT_WITHIN),
        np.append(fine.shortest, 15.0),
    )
    large = [40.0, 40, 160, 160]
    pieces = [[40, 40, 100, 100], [100, 40, 160, 100], [40, 100, 100, 160], [100, 100, 160, 160]]
    boxes = np.array([*pieces, large, [5, 5, 15, 15], [5, 5, 15, 15]], dtype=np.float64)
    owners = np.array([0, 1, 3, 4, 9, 9, 0])
    scores = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.99, 0.4])
    tiles_with_edges = Tiles(tiles.windows, tiles.size, tiles.cut_within, tiles.shortest)
    for number, piece in zip((0, 1, 3, 4), pieces, strict=True):  # every piece ends at an edge of its tile
        tiles_with_edges.windows[number] = [piece[0] - 50, piece[1] - 50, piece[2], piece[3]]
    assert merge(boxes, scores, np.zeros(7, np.int64), owners, tiles_with_edges) == [4, 6]


def test_nothing_to_merge() -> None:
    tiles = tiles_of(100, 180, 100, 20)
    none = np.zeros(0)
    assert merge(none.reshape(0, 4), none, none.astype(np.int64), none.astype(np.int64), tiles) == []


@pytest.mark.parametrize("spread", ["even", "crowded"])
def test_twenty_thousand_boxes_take_less_than_half_a_second(spread: str) -> None:
    rng = np.random.default_rng(0)
    tiles = tiles_of(12_000, 12_000, 480, 60)
    count = 20_000
    owners = rng.integers(0, len(tiles.windows), count)
    if spread == "crowded":
        owners = np.sort(owners) % 40
    centers = rng.uniform(tiles.windows[owners, :2], tiles.windows[owners, 2:])
    sides = rng.uniform(10, 30, (count, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    boxes = np.clip(boxes, np.tile(tiles.windows[owners, :2], 2), np.tile(tiles.windows[owners, 2:], 2))
    began = time.process_time()
    kept = merge_tiles(boxes, rng.uniform(0, 1, count), np.zeros(count, np.int64), owners, tiles, 0.5)
    assert time.process_time() - began < 2  # measured: 0.1 s; the comparison of all pairs takes 10 s
    assert 0 < len(kept) <= count
