"""Example images: the same ones each time, ground truth in white, names that can be file names."""

from __future__ import annotations

import re
import shutil
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retinanet.data.dataset import Dataset, DatasetBuilder, FileList
from retinanet.data.formats.open_dataset import read_split
from retinanet.detection.detector import Detector
from retinanet.detection.example_images import (
    Album,
    draw_example,
    prediction_images,
    read_example,
    safe_names,
    save_images,
    shrunk,
    spread,
)
from retinanet.detection.loading import load
from retinanet.detections import Detections
from retinanet.errors import DataError

NOTHING = Detections.empty()


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load(weights, "fp32", "cpu")


@pytest.fixture
def dataset(parts: Path) -> Dataset:
    return read_split(parts, "train")


def test_the_same_examples_every_time(detector: Detector, dataset: Dataset) -> None:
    first, second = (prediction_images(detector, dataset, count=3) for _ in range(2))
    assert list(first) == list(second)
    assert len(first) == 3
    for name, image in first.items():
        assert image.dtype == np.uint8
        assert image.shape == (96, 96, 3)
        assert np.array_equal(image, second[name])
    stems = [Path(dataset.files[i]).stem for i in (0, len(dataset) // 2, len(dataset) - 1)]
    assert list(first) == stems


def test_examples_have_objects_where_there_are_any(detector: Detector, dataset: Dataset) -> None:
    only = {3, 5}
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    sparse = replace(dataset, ignore=~np.isin(owner, list(only)))
    assert list(prediction_images(detector, sparse)) == [Path(dataset.files[i]).stem for i in sorted(only)]
    empty = replace(dataset, ignore=np.ones_like(dataset.ignore))
    assert len(prediction_images(detector, empty, count=4)) == 4
    assert prediction_images(detector, dataset, count=0) == {}


def test_detections_are_drawn(detector: Detector, dataset: Dataset) -> None:
    many, none = (prediction_images(detector, dataset, count=1, score=score) for score in (0.05, 0.9999))
    [(name, with_boxes)] = many.items()
    untouched = draw_example(read_example(dataset, 0), dataset, 0, NOTHING)
    assert np.array_equal(none[name], untouched)
    assert not np.array_equal(with_boxes, untouched)


def test_album_leaves_out_what_would_mislead(parts: Path, tmp_path: Path) -> None:
    dataset = read_split(shutil.copytree(parts, tmp_path / "data"), "train")
    album = Album(dataset)
    image = album.image(0)
    assert image is not None
    assert np.array_equal(image, read_example(dataset, 0))
    assert album.remark() is None
    dataset.path(1).write_bytes(b"no image")
    with Image.open(dataset.path(2)) as opened:
        other = opened.resize((48, 96))
    other.save(dataset.path(2))
    for _ in range(2):  # told once, whatever is asked how often
        assert album.image(1) is None
        assert album.image(2) is None
    assert list(album.left_out) == [1, 2]
    remark = album.remark()
    assert remark is not None
    assert remark.startswith(f"2 images cannot be shown on the page; the first: {dataset.path(1)}")
    assert album.left_out[2].endswith("the image has 48×96 pixels, its annotations say 96×96")


def test_truth_is_white_and_ignore_regions_are_not_drawn(tmp_path: Path) -> None:
    builder = DatasetBuilder("black", tmp_path, ["a"])
    builder.add_image("x.png", 50, 40)
    builder.add_box((10, 5, 30, 25), 0, "x:1")
    builder.add_box((35, 5, 45, 25), 0, "x:2", ignore=True)
    drawn = draw_example(np.zeros((40, 50, 3), dtype=np.uint8), builder.build(), 0, NOTHING)
    expected = np.zeros((40, 50, 3), dtype=np.uint8)
    expected[5:25, 10:30] = 255
    expected[6:24, 11:29] = 0
    assert np.array_equal(drawn, expected)


def test_large_images_shrink(detector: Detector, tmp_path: Path) -> None:
    Image.new("RGB", (2048, 512), "gray").save(tmp_path / "wide.png")
    builder = DatasetBuilder("wide", tmp_path, detector.classes)
    builder.add_image("wide.png", 2048, 512)
    assert prediction_images(detector, builder.build())["wide"].shape == (256, 1024, 3)
    assert shrunk(np.zeros((4, 8, 3), dtype=np.uint8), 100).shape == (4, 8, 3)


def test_a_missing_image_is_named(detector: Detector, dataset: Dataset) -> None:
    gone = replace(dataset, files=FileList(f"gone{i}.jpg" for i in dataset))
    with pytest.raises(DataError, match=r"gone0\.jpg"):
        prediction_images(detector, gone, count=1)


def test_images_are_saved_under_their_names(tmp_path: Path) -> None:
    image = np.full((8, 12, 3), 90, dtype=np.uint8)
    save_images(tmp_path / "epoch_0003", {"a": image, "b c": image})
    assert sorted(p.name for p in (tmp_path / "epoch_0003").iterdir()) == ["a.jpg", "b c.jpg"]
    with Image.open(tmp_path / "epoch_0003" / "a.jpg") as saved:
        assert np.abs(np.asarray(saved).astype(int) - 90).max() <= 2


@pytest.mark.parametrize(
    ("names", "safe"),
    [
        (["a", "a", "A"], ["a", "a-2", "A-3"]),
        (["../x", "a/b:c", "", "...", "жук 1"], ["_x", "a_b_c", "_", "_-2", "жук 1"]),
        (["a", "a-2", "a"], ["a", "a-2", "a-3"]),
        (["\udcff.x"], ["_.x"]),
    ],
)
def test_names_are_made_safe(names: list[str], safe: list[str]) -> None:
    assert safe_names(names) == safe


@given(st.lists(st.text(max_size=100) | st.text("a./\\ -", max_size=4)))
def test_safe_names_are_different_and_tame(names: list[str]) -> None:
    safe = safe_names(names)
    assert len({name.lower() for name in safe}) == len(names)
    for name in safe:
        assert name
        assert re.fullmatch(r"[\w.\- ]+", name)
        assert name.strip(". ") == name
        assert not set(name) & (set(string.punctuation) - set("_.-"))


@given(st.integers(1, 200), st.integers(0, 50))
def test_spread_is_even(items: int, count: int) -> None:
    chosen = spread(items, count)
    assert len(chosen) == min(items, count)
    assert chosen == sorted(set(chosen))
    assert all(0 <= i < items for i in chosen)
    if len(chosen) > 1:
        steps = np.diff(chosen)
        assert (chosen[0], chosen[-1]) == (0, items - 1)
        assert steps.max() - steps.min() <= 1
