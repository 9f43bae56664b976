from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinanet.data.formats import coco
from retinanet.data.formats.open_dataset import read_split
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions


def content(**changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 10, 5], "area": 33.5},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 4, 4], "iscrowd": 0},
            {"id": 3, "image_id": 3, "category_id": 2, "bbox": [5, 5, 20, 20], "iscrowd": 1},
        ],
    }
    return result | changes


def write(folder: Path, data: Any, file: str = "instances_train.json", images: str = "images") -> Path:
    (folder / images).mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 30)).save(folder / images / name)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(data if isinstance(data, str) else json.dumps(data))
    return folder / file


def test_boxes_labels_and_areas(tmp_path: Path) -> None:
    data = coco.read(write(tmp_path, content()), "toy")
    assert data.classes == ("cat", "dog")
    assert data.category_ids == (2, 9)
    assert data.image_ids.tolist() == [7, 3]
    assert data.offsets.tolist() == [0, 1, 3]
    assert data.boxes.tolist() == [[0, 0, 4, 4], [1, 2, 11, 7], [5, 5, 25, 25]]
    assert data.labels.tolist() == [0, 1, 0]
    assert data.ignore.tolist() == [False, False, True]
    assert data.areas.tolist() == [16, 33.5, 400]
    assert data.path(1) == tmp_path / "images" / "b.jpg"
    assert not data.problems


@pytest.mark.parametrize(
    ("file", "images", "split"),
    [
        ("instances_train.json", "images", "train"),
        ("instances_train.json", "images/train", "train"),
        ("instances_val.json", "val", "val"),
        ("instances_train.json", ".", "train"),
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("annotations/instances_default.json", "images/default", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("labels.json", "data", "train"),
        ("my_val_set.json", "images", "val"),
    ],
)
def test_layouts(tmp_path: Path, file: str, images: str, split: str) -> None:
    write(tmp_path, content(), file, images)
    data = read_split(tmp_path, split)
    assert len(data) == 2
    assert data.path(0).is_file()


def test_other_tasks_of_coco_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, content(), "annotations/instances_val2017.json", "val2017")
    for name in ("captions_val2017.json", "person_keypoints_val2017.json"):
        (tmp_path / "annotations" / name).write_text(json.dumps(content()))
    assert list(coco.find(tmp_path)) == ["val2017"]


def test_two_candidates_for_one_split_keep_their_own_names(tmp_path: Path) -> None:
    write(tmp_path, content(), "train.json")
    write(tmp_path, content(), "train_small.json")
    assert sorted(coco.find(tmp_path)) == ["train", "train_small"]


def test_missing_sizes_come_from_the_file(tmp_path: Path) -> None:
    images: list[dict[str, Any]] = [
        {"id": 1, "file_name": "a.jpg"},
        {"id": 2, "file_name": "b.jpg", "width": 0, "height": "?"},
    ]
    data = coco.read(write(tmp_path, content(images=images, annotations=[])), "toy")
    assert data.sizes.tolist() == [[40, 30], [40, 30]]
    (tmp_path / "images" / "b.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"b\.jpg: not a readable image"):
        coco.read(tmp_path / "instances_train.json", "toy")


def test_text_image_ids_are_numbered(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in ("b", "a")]
    data = coco.read(
        write(tmp_path, content(images=images, annotations=[content()["annotations"][0] | {"image_id": "a"}])), "toy"
    )
    assert data.image_ids.tolist() == [1, 2]
    assert data.offsets.tolist() == [0, 0, 1]
    assert "not whole numbers" in data.problems[0].message


def test_unusable_annotations_are_dropped_and_reported(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"id": 12, "image_id": 7, "category_id": 2},
        {"id": 13, "image_id": 7, "category_id": 2, "bbox": [0, 0, 1]},
        {"id": 14, "image_id": 7, "category_id": 2, "bbox": [0, 0, "wide", 1]},
        {"id": 15, "image_id": 7, "category_id": 2, "bbox": [0, 0, float("nan"), 1]},
        {"id": 16, "image_id": 7, "category_id": 2, "bbox": [0, 0, 0, 5]},
        {"id": 17, "image_id": 7, "category_id": 2, "bbox": [10**400, 0, 5, 5]},
    ]
    source = write(tmp_path, content(annotations=bad))
    data = coco.read(source, "toy")
    assert len(data.boxes) == 0
    assert sorted(p.where for p in data.problems) == [f"{source}: annotation {i} (image a.jpg)" for i in range(12, 18)]


def test_annotations_of_images_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    bad = [{"id": 11, "image_id": 99, "category_id": 2, "bbox": [0, 0, 1, 1]}]
    source = write(tmp_path, content(annotations=[*content()["annotations"], *bad]))
    with pytest.raises(DataError, match=r"1 of 4 annotations .* annotation 11 with image_id 99"):
        coco.read(source, "toy")


def test_category_called_ignore_and_ignore_flag(tmp_path: Path) -> None:
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 4, 4]},
        {"id": 2, "image_id": 7, "category_id": 9, "bbox": [0, 0, 4, 4], "ignore": 1},
    ]
    categories = [{"id": 5, "name": "Ignore"}, {"id": 9, "name": "dog"}]
    data = coco.read(write(tmp_path, content(annotations=annotations, categories=categories)), "toy")
    assert data.classes == ("dog",)
    assert data.ignore.all()


def test_roboflow_heading_category_is_left_out(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 2, "name": "cat", "supercategory": "pets"},
        {"id": 9, "name": "dog", "supercategory": "pets"},
    ]
    data = coco.read(write(tmp_path, content(categories=categories)), "toy")
    assert data.classes == ("cat", "dog")
    assert "pets" in data.problems[0].message


def test_backslashes_in_file_names(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "images\\a.jpg", "width": 40, "height": 30}]
    data = coco.read(write(tmp_path, content(images=images, annotations=[])), "toy")
    assert data.path(0).is_file()


@pytest.mark.parametrize(
    "name", ["../../etc/a.jpg", "/etc/passwd", "C:\\a.jpg", "x/../../a.jpg", "a\0.jpg", "\ud800.jpg", ""]
)
def test_hostile_file_names_reach_no_file_outside(tmp_path: Path, name: str) -> None:
    images = [{"id": 7, "file_name": name, "width": 40, "height": 30}]
    source = write(tmp_path, content(images=images, annotations=[]))
    if name.endswith("a.jpg") and "\0" not in name:  # found below the data folder by its name
        assert coco.read(source, "toy").path(0) == tmp_path / "images" / "a.jpg"
    else:
        with pytest.raises(DataError, match=r"not found|possible file name|no 'file_name'"):
            coco.read(source, "toy")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "empty"),
        ('{\n "images": [}', r"json:2:13: not valid JSON"),
        ("[" * 100_000, "not usable JSON"),
        ("[]", "results"),
        ("3", "not COCO"),
        ({"a": 1}, "no list 'images'"),
        (content(annotations={}), "no list 'annotations'"),
        (content(categories=[{"id": "x", "name": "cat"}]), "whole-number 'id'"),
        (content(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]), "category id 1 is used twice"),
        (content(categories=[{"id": 2, "name": "cat"}]), r"annotation 1 \(image b.jpg\): category_id 9"),
        (content(images=[]), "no images"),
        (content(images=[{"id": 1}]), "no 'file_name'"),
        (content(images=[{"file_name": "a.jpg"}]), "missing or used twice"),
        (content(images=[{"id": 1, "file_name": "a.jpg"}] * 2), "missing or used twice"),
        (content(annotations=[3]), "annotation number 0"),
        (content(images=[{"id": 1, "file_name": "zzz.jpg"}], annotations=[]), "1 of 1 images not found.*--data.images"),
    ],
)
def test_unusable_files(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        coco.read(write(tmp_path, data), "toy")


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "instances_train.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_split(tmp_path, "train")


def test_many_annotations_in_mixed_order(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": "a.jpg", "width": 40, "height": 30} for i in range(100)]
    annotations = [
        {"id": i, "image_id": i * 37 % 100, "category_id": 2, "bbox": [i % 39, 0, 1, 1]} for i in range(20_000)
    ]
    data = coco.read(write(tmp_path, content(images=images, annotations=annotations)), "toy")
    assert np.diff(data.offsets).tolist() == [200] * 100
    expected = [float(a["bbox"][0]) for a in annotations if a["image_id"] == 5]  # type: ignore[index]
    assert data.boxes[data.rows(5), 0].tolist() == expected


def test_real_people(shared_data: Path) -> None:
    for split, images, boxes in (("train", 2025, 8167), ("val", 668, 2837)):
        data = read_split(shared_data / "coco_person", split)
        assert len(data) == images
        assert data.classes == ("person",)
        assert len(data.boxes) == boxes
        crowds = json.loads((shared_data / "coco_person" / f"instances_{split}.json").read_text())["annotations"]
        assert int(data.ignore.sum()) == sum(a["iscrowd"] for a in crowds) > 0


def test_real_eighty_classes(shared_data: Path) -> None:
    data = read_split(shared_data / "coco80", "val")
    assert len(data.classes) == 80
    assert data.category_ids[-1] == 90
    assert len(data) == 310


@pytest.mark.parametrize("key", ["annotations", "bbox", "id"])
def test_a_key_that_appears_twice_is_refused(tmp_path: Path, key: str) -> None:
    """JSON keeps the last one: a second, empty list of annotations would lose every box."""
    text = json.dumps(content()).replace(f'"{key}":', f'"{key}": [], "{key}":', 1)
    with pytest.raises(DataError, match=f"two keys '{key}'; remove one"):
        coco.read(write(tmp_path, text), "toy")


def test_a_crowd_flag_that_is_neither_0_nor_1_is_reported(tmp_path: Path) -> None:
    odd = [content()["annotations"][0] | {"iscrowd": 7}]
    data = coco.read(write(tmp_path, content(annotations=odd)), "toy")
    assert data.ignore.tolist() == [False]
    assert data.problems[0].message == "iscrowd is 7, neither 0 nor 1"


def test_a_val_file_cut_short_is_refused_and_not_forgotten(tmp_path: Path) -> None:
    write(tmp_path, content(), "train.json")
    write(tmp_path, json.dumps(content())[:60], "val.json")
    with pytest.raises(DataError, match=r"val\.json.*not valid JSON"):
        read_split(tmp_path, "val")


@pytest.mark.parametrize("name", ["n" * 300 + ".jpg", "d/" * 3000 + "a.jpg", "a\0.jpg"])
def test_impossible_file_names_are_refused_in_a_short_line(tmp_path: Path, name: str) -> None:
    images = [content()["images"][0] | {"file_name": name}, content()["images"][1]]
    source = write(tmp_path, content(images=images))
    with pytest.raises(DataError, match="not a possible file name; write the path of an image") as caught:
        coco.read(source, "toy")
    assert len(str(caught.value)) < 300 + len(str(source))


@pytest.mark.parametrize(
    "annotation",
    [
        {"bbox": "[1, 2, 10, 5]"},
        {"bbox": ["1", "2", 10.0, 5]},
        {"bbox": [6, 4.5, 5, 10, 90]},
        {"bbox": [1, 2, 11, 2, 11, 7, 1, 7]},
        {"bbox": [3.5, -0.5, 5, 10], "attributes": {"rotation": 90.0}},
        {"segmentation": [[1, 2, 11, 2, 5, 7]]},
        {"bbox": [], "segmentation": {"size": [30, 40], "counts": [32, 5] + [25, 5] * 9 + [893]}},
    ],
)
def test_objects_told_otherwise_have_their_upright_box_and_a_note(tmp_path: Path, annotation: dict[str, Any]) -> None:
    own = {"id": 1, "image_id": 3, "category_id": 9} | annotation
    data = coco.read(write(tmp_path, content(annotations=[own, own | {"id": 2}])), "toy")
    assert data.boxes.tolist() == [pytest.approx([1, 2, 11, 7])] * 2
    assert [problem.count for problem in data.problems] == [2]
    assert data.problems[0].code in ("text-box", "shape-box")


def test_numbers_may_be_of_another_type(tmp_path: Path) -> None:
    annotations = [{"id": 1, "image_id": 3.0, "category_id": "9", "bbox": [1, 2, 3, 4]}]
    images = [{"id": "3", "file_name": "a.jpg", "width": "40", "height": 30.0}]
    categories = [{"id": 9.0, "name": 7}]
    data = coco.read(write(tmp_path, content(annotations=annotations, images=images, categories=categories)), "toy")
    assert (data.classes, data.image_ids.tolist(), data.sizes.tolist()) == (("7",), [3], [[40, 30]])
    assert data.boxes.tolist() == [[1, 2, 4, 6]]


def test_images_may_lie_in_a_folder_that_an_option_names(tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    source = write(tmp_path / "photos", content(), images="day1").rename(tmp_path / "exports" / "coco.json")
    with pytest.raises(DataError, match=r"2 of 2 images not found, .*--data\.images"):
        coco.read(source, "toy")
    data = coco.read(source, "toy", ReadOptions(images=str(tmp_path / "photos")))
    assert [data.path(i).name for i in data] == ["a.jpg", "b.jpg"]


def test_boxes_as_mappings_and_boxes_of_zeros_with_a_polygon(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    boxes: list[dict[str, Any]] = [
        {"bbox": {"x": 1, "y": 2, "width": "3", "height": 4}},
        {"bbox": {"xmin": 1, "ymin": 2, "xmax": 4, "ymax": 6}},
        {"bbox": [0, 0, 0, 0], "segmentation": [[1, 2, 4, 2, 4, 6]]},
    ]
    annotations = [{"id": i, "image_id": 1, "category_id": 1, **box} for i, box in enumerate(boxes)]
    content = {
        "images": [{"id": 1, "coco_url": "http://images.example/x/a.jpg", "width": 40, "height": 30}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = read_split(tmp_path, "train")
    assert data.boxes.tolist() == [[1, 2, 4, 6]] * 3
    assert {problem.code for problem in data.problems} == {"shape-box", "image-found"}
