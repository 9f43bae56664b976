from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import defects
from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_tolerantly, with_shared_classes
from retinanet.inspection.checks import run_checks
from retinanet.inspection.repair import repair


def read(folder: Path) -> dict[str, Dataset]:
    return with_shared_classes(read_tolerantly(folder)[0])


def cleaned(splits: dict[str, Dataset]) -> tuple[dict[str, Dataset], list[str]]:
    return repair(splits, run_checks(splits, {}, {s: d.classes for s, d in splits.items()}, DataConfig(size=256)))


@pytest.fixture(scope="module")
def repaired(planted: Path) -> tuple[dict[str, Dataset], list[str]]:
    return cleaned(read(planted))


def names(dataset: Dataset) -> set[str]:
    return {dataset.files[index] for index in dataset}


def test_sound_data_stays_as_it_is(sound: Path) -> None:
    before = read(sound)
    after, changes = cleaned(before)
    assert changes == []
    for split, data in after.items():
        assert (data.boxes == before[split].boxes).all()
        assert names(data) == names(before[split])


def test_images(planted: Path, repaired: tuple[dict[str, Dataset], list[str]]) -> None:
    before, (after, changes) = read(planted), repaired
    # truncated; leaked; of the duplicates, the image with fewer boxes or the second one
    gone = names(before["train"]) - names(after["train"])
    assert gone - {defects.DUPLICATED, defects.DUPLICATE} == {defects.TRUNCATED, defects.LEAKED}
    assert len(gone) == 3
    assert names(before["val"]) == names(after["val"])
    for name in gone:
        assert sum(f"/{name}: " in line for line in changes) == 1


def test_boxes(planted: Path, repaired: tuple[dict[str, Dataset], list[str]]) -> None:
    data, changes = repaired[0]["train"], repaired[1]
    index = next(i for i in data if data.files[i] == defects.TWICE_IMAGE)
    rows = data.boxes[data.rows(index)]
    assert (np.abs(rows - defects.TWICE_BOX).max(axis=1) < 0.1).sum() == 1  # TWICE, without TWICE_AGAIN
    assert sum("is a duplicate; dropped" in line for line in changes) == 1
    for number, action in (
        (defects.ZERO_WIDTH, "dropped"),
        (defects.NOT_FINITE, "dropped"),
        (defects.CLIPPED, "clipped"),
        (defects.UNKNOWN_IMAGE, "left out (training would stop)"),
    ):
        assert sum(f"annotation {number}" in line and line.endswith(action) for line in changes) == 1
    assert (data.boxes[:, 2:] <= data.sizes[np.repeat(np.arange(len(data)), np.diff(data.offsets))]).all()


@pytest.mark.parametrize(("splits", "stays"), [(("train", "val"), "val"), (("val2017", "test"), "test")])
def test_shared_images_stay_where_they_are_measured(sound: Path, splits: tuple[str, str], stays: str) -> None:
    data = read(sound)["train"]
    after, changes = cleaned({splits[0]: data.subset(range(6)), splits[1]: data.subset(range(4, 9))})
    assert {split: len(d) for split, d in after.items()} == {splits[0]: 4, splits[1]: 5}
    assert len(changes) == 2
    assert all(f"stays in {stays}" in line for line in changes)


def test_better_labelled_copy_stays(sound: Path) -> None:
    data = read(sound)["train"].subset([0, 0])
    image = np.repeat([0, 1], np.diff(data.offsets))
    fewer = data.with_boxes((image == 1) | (np.arange(len(image)) < 1))
    fewer = replace(fewer, image_ids=np.array([1, 2]))
    after, changes = cleaned({"train": fewer})
    assert len(changes) == 1
    assert after["train"].image_ids.tolist() == [2]
    assert len(after["train"].boxes) == (image == 1).sum() > 1


def test_emptied_split_is_left_out(sound: Path) -> None:
    data = read(sound)["train"].subset(range(3))
    after, changes = cleaned({"train": data, "val": data})
    assert list(after) == ["val"]
    assert changes[-1] == "train: no image is left; removed"
