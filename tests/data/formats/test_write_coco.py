from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.formats.write_coco import write
from retinanet.errors import DataError, RetinaNetError


def dataset(root: Path) -> Dataset:
    builder = DatasetBuilder("pets", root, ("cat", "big dog", "newt"), (2, 7, 90))
    for number, name in enumerate(("a.png", "sub/a.png", "empty.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number, 0, 0)).save(root / name)
        builder.add_image(name, 40, 30, 10 * number + 5)
        if name == "a.png":
            builder.add_box((0.1, 1.7, 12.3, 29.95), 1, "a", area=100.25)
            builder.add_box((1 / 3, 2 / 3, 7.7, 30), 0, "b", ignore=True)
        if name == "sub/a.png":
            builder.add_box((0, 0, 40, 30), NO_CLASS, "c", ignore=True)
    return builder.build()


def test_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in")
    write({"train": data, "night": data.subset([2])}, tmp_path / "out")
    again = read_split(tmp_path / "out", "train")
    for name in ("image_ids", "sizes", "offsets", "boxes", "labels", "ignore", "areas"):
        assert np.array_equal(getattr(again, name), getattr(data, name)), name
    assert (again.classes, again.category_ids) == (data.classes, data.category_ids)
    assert list(again.files) == list(data.files)
    assert [again.path(i).read_bytes() for i in again] == [data.path(i).read_bytes() for i in data]
    assert not again.problems
    assert list(read_split(tmp_path / "out", "night").files) == ["empty.png"]


def test_decimals_are_as_short_as_the_source_had_them(tmp_path: Path) -> None:
    write({"train": dataset(tmp_path / "in")}, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert content["annotations"][0]["bbox"] == [0.1, 1.7, 12.2, 28.25]
    assert content["annotations"][0]["area"] == 100.25
    assert content["annotations"][2]["bbox"] == [0, 0, 40, 30]


def test_pycocotools_loads_it(tmp_path: Path) -> None:
    write({"train": dataset(tmp_path / "in")}, tmp_path / "out")
    coco = COCO(tmp_path / "out" / "annotations" / "instances_train.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "big dog", "newt", "ignore"]
    assert coco.getAnnIds(imgIds=[5], iscrowd=True) == [2]
    assert coco.getImgIds() == [5, 15, 25]


def test_ids_that_would_change_the_order_of_the_classes_give_way(tmp_path: Path) -> None:
    data = replace(dataset(tmp_path / "in"), category_ids=(9, 7, 90))
    write({"train": data}, tmp_path / "out")
    again = read_split(tmp_path / "out", "train")
    assert (again.classes, again.category_ids) == (data.classes, (1, 2, 3))


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in")
    (tmp_path / "in" / "empty.png").unlink()
    with pytest.raises(DataError, match="1 of 3 images are missing"):
        write({"train": data}, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_a_filled_folder_is_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "in")
    with pytest.raises(RetinaNetError, match="not an empty folder"):
        write({"train": data}, tmp_path / "in")
    (tmp_path / "out").mkdir()
    write({"train": data}, tmp_path / "out")
