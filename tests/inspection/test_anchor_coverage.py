"""Coverage of a dataset's boxes by anchors: against all anchors compared with all boxes, image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from retinanet.anchors import AnchorSpec, assign, make_grid
from retinanet.config import AssignConfig, Config, DataConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.sample import Sample
from retinanet.data.transforms import normalized_batch, resize
from retinanet.inspection.anchor_coverage import best_overlaps, positives
from retinanet.read_options import ReadOptions

SPECS = [
    AnchorSpec(),
    AnchorSpec(layout="torchvision"),
    AnchorSpec(sizes=(9.5, 20.0, 77.0, 130.0, 260.0), scales=(0.6, 1.7), ratios=(0.1, 1.0, 4.0)),
]


def random_dataset(seed: int, images: int = 4, boxes: int = 12, largest: int = 300) -> Dataset:
    """Boxes of all sizes and shapes, slivers and whole images among them, in images of odd shapes; some ignored."""
    rng = np.random.default_rng(seed)
    options = ReadOptions(box_form="format", box_frame="format")  # most boxes reach beyond their images
    builder = DatasetBuilder("random", Path(), ["a", "b"], options=options)
    for number in range(images):
        width, height = (int(v) for v in np.exp(rng.uniform(np.log(20), np.log(largest), 2)))
        builder.add_image(f"{number}.png", width, height)
        for _ in range(int(rng.integers(0, boxes + 1))):
            side = np.exp(rng.uniform(np.log(0.5), np.log(1.5 * largest), 2))
            x, y = rng.uniform(-0.2, 1, 2) * (width, height)
            corners = (float(x), float(y), float(x + side[0]), float(y + side[1]))
            builder.add_box(corners, int(rng.integers(2)), "here", ignore=rng.uniform() < 0.2)
    return builder.build()


def scaled(dataset: Dataset, index: int, data: DataConfig) -> tuple[Sample, tuple[int, int]]:
    """The image through the real transforms, and the size of a batch of it alone."""
    width, height = dataset.sizes[index].tolist()
    rows = dataset.rows(index)
    ignore = torch.from_numpy(dataset.ignore[rows])
    boxes = torch.from_numpy(dataset.boxes[rows])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    labels = torch.zeros(int((~ignore).sum()), dtype=torch.int64)
    sample = resize(Sample(image, boxes[~ignore], labels, boxes[ignore], 1, index, (width, height)), data)
    batch = normalized_batch([sample.image], [0.5] * 3, [0.5] * 3)
    return sample, (batch.shape[-2], batch.shape[-1])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    spec=st.sampled_from(SPECS),
    size=st.integers(32, 400),
    narrow=st.booleans(),
    bilinear=st.booleans(),
)
def test_equal_to_comparing_all_with_all(seed: int, spec: AnchorSpec, size: int, narrow: bool, bilinear: bool) -> None:
    data = DataConfig(
        size=size, max_size=size + 8 if narrow else None, resize="bilinear" if bilinear else "antialiased"
    )
    dataset = random_dataset(seed)
    found = best_overlaps(dataset, spec, data)
    assert found.dtype == np.float32
    assert found.shape == (len(dataset.boxes),)
    np.testing.assert_array_equal(np.isnan(found), dataset.ignore)
    for index in dataset:
        sample, canvas = scaled(dataset, index, data)
        rows = dataset.rows(index)
        expected = box_iou(sample.boxes.double(), make_grid(spec, canvas).boxes.double()).amax(dim=1)
        np.testing.assert_allclose(found[rows][~dataset.ignore[rows]], expected, rtol=1e-3, atol=2e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(["iou", "atss"]), forced=st.booleans())
def test_positives_are_those_of_each_image_alone(seed: int, method: str, forced: bool) -> None:
    config = Config.from_dict(
        {
            "assign": {"method": method, "force_best": forced},
            "data": {"size": 96},
            "anchors": {"sizes": [10, 20, 40, 80, 160]},
        }
    )
    dataset = random_dataset(seed)
    seen: list[int] = []
    found = positives(dataset, config, seen.append)
    assert sum(seen) == len(dataset)
    for index in dataset:
        sample, canvas = scaled(dataset, index, config.data)
        rows = dataset.rows(index)
        objects = np.flatnonzero(~dataset.ignore[rows]) + rows.start
        sample.labels = torch.from_numpy(objects)  # so that they stay with their boxes
        sample.drop_degenerate()
        matched = assign(make_grid(config.anchors, canvas), sample.boxes, sample.ignore, config.assign)
        expected = dict.fromkeys(objects.tolist(), 0)
        for number, row in enumerate(sample.labels.tolist()):
            expected[row] = int((matched == number).sum())
        assert {row: int(found[row]) for row in expected} == expected
        assert (found[rows][dataset.ignore[rows]] == -1).all()


def test_the_papers_rule_agrees_with_the_overlap() -> None:
    """Alone in its image, a box has positives exactly if its best anchor overlaps it by at least 0.5."""
    dataset = random_dataset(5, images=400, boxes=1)
    config = Config(data=DataConfig(size=128), assign=AssignConfig())
    objects = ~dataset.ignore
    covered = best_overlaps(dataset, config.anchors, config.data)[objects] >= 0.5
    large = positives(dataset, config)[objects] > 0
    assert 20 < covered.sum() < len(covered) - 20
    np.testing.assert_array_equal(covered, large)


def test_no_boxes() -> None:
    builder = DatasetBuilder("empty", Path(), ["a"])
    builder.add_image("0.png", 30, 40)
    dataset = builder.build()
    assert best_overlaps(dataset, AnchorSpec(), DataConfig()).shape == (0,)
    assert positives(dataset, Config()).shape == (0,)


def many_boxes(count: int) -> Dataset:
    rng = np.random.default_rng(0)
    images = max(1, count // 10)
    builder = DatasetBuilder("many", Path(), ["a"])
    for number in range(images):
        builder.add_image(f"{number}.png", 640, 480 + number % 50)
    dataset = builder.build()
    corner = rng.uniform(0, 400, (count, 2))
    side: npt.NDArray[np.float64] = np.exp(rng.uniform(1, 4, (count, 2)))
    return Dataset(
        **{
            **vars(dataset),
            "offsets": np.linspace(0, count, images + 1).astype(np.int64),
            "boxes": np.concatenate([corner, corner + side], axis=1).astype(np.float32),
            "labels": np.zeros(count, dtype=np.int32),
            "ignore": np.zeros(count, dtype=np.bool_),
            "areas": side.prod(axis=1).astype(np.float32),
        }
    )


@pytest.mark.parametrize("layout", ["paper", "torchvision"])
def test_memory_does_not_grow_with_the_grid(layout: str) -> None:
    """50,000 boxes against the 96,000 anchors of their images would be 19 GB."""
    import tracemalloc

    dataset = many_boxes(50_000)
    spec = Config.from_dict({"anchors": {"layout": layout}}).anchors
    tracemalloc.start()
    best_overlaps(dataset, spec, DataConfig())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
