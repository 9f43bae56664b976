"""The splits of a dataset decide together which images their boxes refer to: stored or turned by EXIF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.data.exif import Header, turned_boxes
from retinanet.data.formats.open_dataset import read_all, read_split, read_tolerantly
from retinanet.data.formats.train_val import read_train_val
from retinanet.data.images import read_image
from retinanet.data.verify import verify_images
from retinanet.inspection import inspect
from retinanet.read_options import ReadOptions

BOX = (10, 5, 40, 25)
COLOR = 200


def add_split(root: Path, split: str, orientations: list[int], size: tuple[int, int], stored: bool) -> None:
    """Images with a bright box, and annotations of it that refer to the stored pixels or to the turned image."""
    folder = root / "images" / split
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i, orientation in enumerate(orientations):
        pixels = np.random.default_rng([i, *split.encode()]).integers(0, 50, (size[1], size[0]), dtype=np.uint8)
        pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = COLOR
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(folder / f"{i}.png", exif=exif)
        [upright] = turned_boxes(np.array([BOX], dtype=np.float64), orientation, size).tolist()
        x1, y1, x2, y2 = BOX if stored else upright
        width, height = size if stored else Header(size, orientation).upright
        images.append({"id": i, "file_name": f"{split}/{i}.png", "width": width, "height": height})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "part"}]}
    (root / f"instances_{split}.json").write_text(json.dumps(content))


def assert_boxes_are_bright(data: Dataset) -> None:
    for i in data:
        pixels = read_image(data.path(i))[:, :, 0]
        [(x1, y1, x2, y2)] = data.boxes[data.rows(i)].astype(int).tolist()
        assert pixels[y1:y2, x1:x2].min() == COLOR
    assert verify_images(data)[1] == []


UNDECIDED = [([3, 3], (120, 80)), ([2, 4, 3], (120, 80)), ([6, 8, 5, 7], (80, 80))]


@pytest.mark.parametrize(("orientations", "size"), UNDECIDED)
@pytest.mark.parametrize("stored", [True, False])
def test_a_split_in_which_nothing_shows_it_follows_the_others(
    tmp_path: Path, orientations: list[int], size: tuple[int, int], stored: bool
) -> None:
    add_split(tmp_path, "train", [6, 8, 3], (120, 80), stored)
    add_split(tmp_path, "val", orientations, size, stored)
    reads = [
        read_split(tmp_path, "val"),
        read_train_val(tmp_path)[1],
        read_all(tmp_path)["val"],
        read_tolerantly(tmp_path)[0]["val"],
        read_tolerantly(tmp_path, "train", "val")[0]["val"],
    ]
    for data in reads:
        assert_boxes_are_bright(data)
        [message] = [problem.message for problem in data.problems if problem.code == "exif-orientation"]
        assert message.endswith(f"refer to the {'stored pixels' if stored else 'turned image'}, as those of train")


def test_train_follows_val_too(tmp_path: Path) -> None:
    add_split(tmp_path, "train", [3], (120, 80), True)
    add_split(tmp_path, "val", [6], (120, 80), True)
    for data in (read_split(tmp_path, "train"), *read_train_val(tmp_path)[:2], *read_all(tmp_path).values()):
        assert_boxes_are_bright(data)


def test_a_flag_is_not_overruled(tmp_path: Path) -> None:
    add_split(tmp_path, "train", [6], (120, 80), True)
    add_split(tmp_path, "val", [3], (120, 80), False)
    assert_boxes_are_bright(read_split(tmp_path, "val", ReadOptions(exif="apply")))


def test_other_splits_that_cannot_be_read_do_not_matter(tmp_path: Path) -> None:
    add_split(tmp_path, "train", [6], (120, 80), True)
    add_split(tmp_path, "val", [3], (120, 80), False)
    (tmp_path / "images" / "train" / "0.png").unlink()
    assert_boxes_are_bright(read_split(tmp_path, "val"))


def test_splits_that_contradict_each_other_keep_their_frames_and_are_reported(tmp_path: Path) -> None:
    add_split(tmp_path, "train", [6, 8, 6], (120, 80), True)
    add_split(tmp_path, "val", [6], (120, 80), False)
    add_split(tmp_path, "test", [3], (120, 80), True)
    splits = read_all(tmp_path)
    for data in splits.values():
        assert_boxes_are_bright(data)
    problems = [p for data in splits.values() for p in data.problems if p.code == "exif-contradiction"]
    assert [p.message for p in problems] == [
        "boxes refer to the stored pixels in train and to the turned image in val; if this is wrong, set --data.exif"
    ]
    train, val, _ = read_train_val(tmp_path)
    assert sum(p.code == "exif-contradiction" for p in (*train.problems, *val.problems)) == 1
    assert "exif-contradiction" in {finding.code for finding in inspect(tmp_path).findings}
