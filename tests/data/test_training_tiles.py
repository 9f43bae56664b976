"""The tiles of large images in training: which there are, where they are cut, and their ground truth."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.loader import TileSource, load_tile, training_loader
from retinanet.data.sample import Sample
from retinanet.data.sampling import TrainingOrder
from retinanet.data.tile_pixels import TilePixels, decode_images, decoded_file, images_to_decode, require_room
from retinanet.data.training_tiles import TrainingTiles, training_tiles
from retinanet.data.transforms import cut_ground_truth
from retinanet.data.windows import Window
from retinanet.errors import DataError, RetinaNetError

Box = tuple[float, float, float, float]


def dataset(*images: tuple[int, int, list[Box]], root: Path = Path(), ignored: tuple[int, ...] = ()) -> Dataset:
    """Images of a width, a height and boxes; the boxes whose numbers are ``ignored`` are ignore regions."""
    builder, number = DatasetBuilder("set", root, ("part", "rare")), 0
    for i, (width, height, boxes) in enumerate(images):
        builder.add_image(f"{i}.png", width, height)
        for box in boxes:
            builder.add_box(box, number % 2, f"{i}", ignore=number in ignored)
            number += 1
    return builder.build()


def scattered(width: int, height: int, count: int, longest: float, seed: int = 0) -> list[Box]:
    """Random boxes with fractions of pixels."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(2, longest, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - size)
    return [tuple(row) for row in np.concatenate([corner, corner + size], axis=1).tolist()]


def config(tile: int = 64, **others: object) -> DataConfig:
    return replace(DataConfig(size=64, tile=tile, workers=0, flip=0.0), **others)  # type: ignore[arg-type]


def holds(window: Window, box: Box) -> bool:
    top, left, height, width = window
    return left <= box[0] and top <= box[1] and box[2] <= left + width and box[3] <= top + height


def windows(tiles: TrainingTiles, seed: int) -> list[Window]:
    return [tiles.window(i, random.Random(f"{seed}/{i}")) for i in range(len(tiles))]


sizes = st.integers(20, 400)


@given(width=sizes, height=sizes, tile=st.integers(64, 150), count=st.integers(0, 60), seed=st.integers(0, 10**6))
@settings(max_examples=80)
def test_every_epoch_shows_every_object_wholly(width: int, height: int, tile: int, count: int, seed: int) -> None:
    longest = min(width, height, tile - 2)  # a box of `tile` pixels need not lie on whole pixels
    data = dataset((width, height, scattered(width, height, count, longest, seed)))
    tiles = training_tiles(data, config(tile))
    cut = windows(tiles, seed)
    assert tiles.too_large == 0
    for each in cut:
        assert (each.height, each.width) == (min(tile, height), min(tile, width))
        assert 0 <= each.top <= height - each.height
        assert 0 <= each.left <= width - each.width
    owners = np.zeros(count, dtype=int)
    for i, window in enumerate(cut):
        for row in tiles.rows[tiles.offsets[i] : tiles.offsets[i + 1]]:
            owners[row] += 1
            assert holds(window, data.boxes[row].tolist())
    assert (owners == 1).all()


@given(width=sizes, height=sizes, tile=st.integers(64, 150), seed=st.integers(0, 10**6))
@settings(max_examples=50)
def test_the_tiles_can_show_every_pixel(width: int, height: int, tile: int, seed: int) -> None:
    tiles = training_tiles(dataset((width, height, scattered(width, height, 3, 20, seed))), config(tile))
    shown = np.zeros((height, width), dtype=bool)
    for i in range(len(tiles)):
        (top, left), (bottom, right) = tiles.first[i], tiles.last[i]
        tall, wide = tiles.shape(i)
        shown[top : bottom + tall, left : right + wide] = True
    assert shown.all()


def test_the_grid_has_as_few_tiles_as_its_overlap_allows() -> None:
    tiles = training_tiles(dataset((1000, 500, scattered(1000, 500, 900, 20))), config(200))
    assert 20 <= tiles.overlap <= 25  # an eighth of a tile, more than the objects
    assert len(tiles) == math.ceil((1000 - 25) / 175) * math.ceil((500 - 25) / 175)


def test_tiles_lie_elsewhere_in_another_epoch() -> None:
    data = dataset((1000, 1000, scattered(1000, 1000, 2000, 20)))
    tiles = training_tiles(data, config(200))
    first, second = (np.array(windows(tiles, seed))[:, :2] for seed in (0, 1))
    assert len(np.unique(np.abs(first - second), axis=0)) > len(tiles) / 2
    assert windows(tiles, 0) == windows(tiles, 0)


def test_an_image_smaller_than_a_tile_is_one_tile() -> None:
    tiles = training_tiles(dataset((50, 40, [(1, 1, 9, 9)]), (50, 400, [])), config(64))
    assert (tiles.images == 0).sum() == 1
    assert tiles.window(0, random.Random(0)) == (0, 0, 40, 50)
    assert all(tiles.shape(i) == (64, 50) for i in range(1, len(tiles)))


def test_objects_that_do_not_fit_together_get_tiles_of_their_own() -> None:
    boxes: list[Box] = [(0, 0, 60, 60), (40, 40, 100, 100), (30, 30, 90, 90)]
    tiles = training_tiles(dataset((200, 200, boxes)), config(64))
    own = np.diff(tiles.offsets)
    assert own.sum() == 3
    assert own.max() == 1


def test_an_object_larger_than_a_tile_is_shown_as_far_as_possible() -> None:
    data = dataset((300, 300, [(100, 110, 180, 150)]))  # 80 of 64 pixels
    tiles = training_tiles(data, config(64, visible=0.75))
    assert (tiles.too_large, tiles.has_objects.sum()) == (0, 1)
    for seed in range(20):
        window = tiles.window(0, random.Random(seed))
        assert 100 <= window.left <= 180 - 64
        assert window.top <= 110
        assert window.top + 64 >= 150
    assert training_tiles(data, config(64, visible=0.81)).too_large == 1


def test_ignore_regions_make_no_tile_of_their_own() -> None:
    tiles = training_tiles(dataset((300, 300, [(10, 10, 20, 20), (200, 200, 220, 220)]), ignored=(1,)), config(64))
    assert tiles.rows.tolist() == [0]
    assert tiles.too_large == 0


def test_as_a_dataset_each_tile_has_its_own_objects() -> None:
    data = dataset((900, 700, scattered(900, 700, 200, 30)), (50, 60, [(1, 2, 10, 12)]))
    tiles = training_tiles(data, config(128))
    images = tiles.as_dataset()
    assert len(images) == len(tiles)
    assert images.sizes.max() == 128
    assert sorted(tiles.rows.tolist()) == list(range(201))
    for i in images:
        top, left, height, width = tiles.middle(i)
        rows = tiles.rows[tiles.offsets[i] : tiles.offsets[i + 1]]
        np.testing.assert_allclose(images.boxes[images.rows(i)] + (left, top, left, top), data.boxes[rows], atol=1e-3)
        assert images.labels[images.rows(i)].tolist() == data.labels[rows].tolist()
        assert images.sizes[i].tolist() == [width, height]
        assert images.path(i) == data.path(int(tiles.images[i]))


def test_the_densest_tile_counts_objects_of_its_neighbours() -> None:
    boxes: list[Box] = [(x, y, x + 10, y + 10) for x in range(0, 1000, 20) for y in range(0, 1000, 20)]
    data = dataset((1000, 1000, boxes))
    assert 9 * 9 <= training_tiles(data, config(200)).most_objects() <= 11 * 11


def test_background_takes_a_fifth_of_an_epoch_unless_set() -> None:
    data = dataset((4000, 4000, scattered(1000, 1000, 100, 20)))
    for background, share in ((None, 0.2), (0.0, 0.0), (0.5, 0.5)):
        tiles = training_tiles(data, config(200, background=background))
        order = TrainingOrder(tiles.as_dataset(), 8, 1, 0, factors=tiles.factors())
        shown = np.array([i for batch in order.batches(0) for i in batch])
        assert (~tiles.has_objects[shown]).mean() == pytest.approx(share, abs=0.02)
        assert set(np.flatnonzero(tiles.has_objects)) <= set(shown.tolist())


def test_a_class_is_rare_among_the_tiles_that_are_shown() -> None:
    boxes: list[Box] = [(x, y, x + 10, y + 10) for x in range(50, 3000, 200) for y in range(50, 3000, 200)]
    data = dataset((9000, 9000, boxes))
    labels = np.zeros(len(boxes), dtype=np.int32)
    labels[:9] = 1
    tiles = training_tiles(replace(data, labels=labels), config(200, repeat_rare=0.16))
    shown = tiles.has_objects.sum() / 0.8
    rare = np.zeros(len(tiles), dtype=bool)
    for i in range(len(tiles)):
        rare[i] = (labels[tiles.rows[tiles.offsets[i] : tiles.offsets[i + 1]]] == 1).any()
    factors = tiles.factors()
    assert factors[rare] == pytest.approx(math.sqrt(0.16 * shown / rare.sum()))
    assert (factors[tiles.has_objects & ~rare] == 1).all()


boxes_inside = st.tuples(
    st.floats(0, 90, width=32), st.floats(0, 90, width=32), st.floats(1, 60, width=32), st.floats(1, 60, width=32)
).map(lambda v: (v[0], v[1], min(100.0, v[0] + v[2]), min(100.0, v[1] + v[3])))


@given(
    boxes=st.lists(boxes_inside, max_size=8),
    regions=st.lists(boxes_inside, max_size=3),
    corner=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    size=st.tuples(st.integers(10, 60), st.integers(10, 60)),
    visible=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_cut_objects_are_clipped_or_ignored(
    boxes: list[Box], regions: list[Box], corner: tuple[int, int], size: tuple[int, int], visible: float
) -> None:
    """Compared with the same computation in Python's floats, box by box."""
    (top, left), (height, width) = corner, size
    sample = Sample(
        image=torch.zeros(3, height, width, dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)),
        ignore=torch.tensor(regions, dtype=torch.float32).reshape(-1, 4),
        image_id=1,
        index=0,
        size=(100, 100),
    )
    cut_ground_truth(sample, corner, visible)
    kept, ignored, uncertain = {}, [], set()
    for label, (x1, y1, x2, y2) in enumerate(boxes):
        clipped = (max(x1 - left, 0), max(y1 - top, 0), min(x2 - left, width), min(y2 - top, height))
        inside = max(0, clipped[2] - clipped[0]) * max(0, clipped[3] - clipped[1]) / ((x2 - x1) * (y2 - y1))
        if abs(inside - visible) < 1e-5 and inside < 1:  # float32 may round to the other side
            uncertain.add(label)
        elif inside >= visible:
            kept[label] = clipped
        elif inside > 0:
            ignored.append(clipped)
    found = dict(zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True))
    assert found.keys() - uncertain == kept.keys()
    for label, box in kept.items():
        assert found[label] == pytest.approx(box, abs=1e-4)
    cut = sample.ignore.tolist()[len(regions) :]
    assert len(ignored) <= len(cut) <= len(ignored) + len(uncertain)
    for expected in ignored:
        assert any(box == pytest.approx(expected, abs=1e-4) for box in cut)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """Large black images with white objects at whole pixels, and one image that is smaller than a tile."""
    root = tmp_path_factory.mktemp("large")
    images = []
    rng = np.random.default_rng(5)
    for i, (width, height) in enumerate([(400, 300), (300, 410), (50, 40)]):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        boxes: list[Box] = []
        for x in range(4, width - 14, 24):
            for y in range(4, height - 14, 24):
                if rng.random() < 0.5:
                    continue
                w, h = rng.integers(5, 12, 2).tolist()
                pixels[y : y + h, x : x + w] = 255
                boxes.append((x, y, x + w, y + h))
        Image.fromarray(pixels).save(root / f"{i}.png")
        images.append((width, height, boxes))
    return root, dataset(*images, root=root)


def source(data: Dataset, settings: DataConfig, decoded: Path) -> TileSource:
    tiles = training_tiles(data, settings)
    return TileSource(tiles, TilePixels(data, decoded))


@pytest.mark.parametrize("decoded", [False, True])
def test_boxes_of_a_tile_lie_on_their_pixels(folder: tuple[Path, Dataset], tmp_path: Path, decoded: bool) -> None:
    data = folder[1]
    tiles = source(data, config(64, visible=0.01), tmp_path)
    if decoded:
        decode_images(data, images_to_decode(data, 64), tmp_path)
        assert sorted(tmp_path.iterdir()) == [decoded_file(tmp_path, 0), decoded_file(tmp_path, 1)]
    for index in range(len(tiles)):
        sample = load_tile(tiles, index, random.Random(index))
        assert sample.index == tiles.tiles.images[index]
        drawn = torch.zeros(sample.image.shape[-2:], dtype=torch.bool)
        for x1, y1, x2, y2 in torch.cat([sample.boxes, sample.ignore]).int().tolist():
            drawn[y1:y2, x1:x2] = True
        assert torch.equal(drawn, sample.image[0] > 0)


def test_tiles_and_smaller_images_have_one_scale(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    settings = config(100, size=64, scale=(0.5, 1.5), crop=0.5)
    tiles = source(folder[1], settings, tmp_path)
    order = TrainingOrder(tiles.tiles.as_dataset(), 3, 3, 0, factors=tiles.tiles.factors())
    for batch in training_loader(tiles, order, replace(settings, crop=0.0), seed=1):
        factors = [
            max(image.shape[-2:]) / (50 if index == 2 else 100)
            for image, index in zip(batch.images, batch.indices, strict=True)
        ]
        assert max(factors) - min(factors) < 0.02  # sides are whole pixels
        assert 0.31 < min(factors) < 0.97
    for batch in training_loader(tiles, order, settings, seed=1):
        assert max(max(image.shape[-2:]) for image in batch.images) <= 96


def test_worker_processes_cut_the_same_tiles(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    tiles = source(folder[1], config(64), tmp_path)
    found = []
    for workers in (0, 2):
        order = TrainingOrder(tiles.tiles.as_dataset(), 4, 2, 0, factors=tiles.tiles.factors())
        found.append(list(training_loader(tiles, order, config(64, workers=workers), seed=3)))
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.images, theirs.images, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(ours.boxes, theirs.boxes, strict=True))


def test_an_image_of_another_size_is_refused(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    wrong = replace(folder[1], sizes=folder[1].sizes + 10)
    with pytest.raises(DataError, match=r"0\.png: the image has 400×300 pixels, its annotations say 410×310"):
        TilePixels(wrong, tmp_path).read(0, Window(0, 0, 10, 10))


def test_unreadable_images_are_replaced(folder: tuple[Path, Dataset], tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for file in folder[0].iterdir():
        (root / file.name).write_bytes(b"" if file.name == "1.png" else file.read_bytes())
    tiles = source(replace(folder[1], root=root), config(64), tmp_path)
    decode_images(tiles.tiles.dataset, [0, 1], tmp_path)
    order = TrainingOrder(tiles.tiles.as_dataset(), 4, 1, 0)
    batches = list(training_loader(tiles, order, config(64), seed=3))
    assert any("1.png" in message for batch in batches for message in batch.unreadable)
    assert all(index != 1 for batch in batches for index in batch.indices)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetinaNetError, match=r"need 1000000\.0 GB, but only .* are free"):
        require_room(tmp_path, 10**15)
