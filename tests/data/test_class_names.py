"""Names of one class, in one list and between two lists."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from retinanet.data.class_names import NO_CLASS, all_classes, class_positions, merged_classes
from retinanet.data.formats.open_dataset import read_all
from retinanet.data.formats.train_val import read_train_val


def test_names_that_differ_by_case_or_spaces_are_one_class() -> None:
    classes, labels, firsts = merged_classes(["Car", "van", "car", "Traffic Light", "traffic  light", "trafficlight"])
    assert classes == ("Car", "van", "Traffic Light")
    assert labels == {"Car": 0, "van": 1, "car": 0, "Traffic Light": 2, "traffic  light": 2, "trafficlight": 2}
    assert firsts == [0, 1, 3]


def test_single_letters_differ_by_case() -> None:
    assert merged_classes(["a", "A", "b"])[0] == ("a", "A", "b")


def test_names_of_another_list_are_matched_but_never_guessed() -> None:
    positions, matched = class_positions(["CAR", "van", "bus"], ["van", "car"])
    assert positions == {"CAR": 1, "van": 0, "bus": NO_CLASS}
    assert matched == [("CAR", "car")]
    assert class_positions(["CAR"], ["car", "Car"])[0] == {"CAR": NO_CLASS}


def write(root: Path, split: str, names: list[str], used: list[int]) -> None:
    root.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / f"{split}.jpg")
    content = {
        "images": [{"id": 1, "file_name": f"{split}.jpg", "width": 40, "height": 30}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": 1, "category_id": c, "bbox": [i, 1, 9, 9]} for i, c in enumerate(used)],
    }
    (root / f"{split}.json").write_text(json.dumps(content))


def test_a_name_in_another_spelling_is_matched_with_a_note(tmp_path: Path) -> None:
    write(tmp_path, "train", ["cup", "Wine Glass"], [0, 1])
    write(tmp_path, "val", ["wine glass", "Cup"], [0, 0, 1])
    train, val, _ = read_train_val(tmp_path)
    assert train.classes == val.classes == ("cup", "Wine Glass")
    assert val.labels.tolist() == [1, 1, 0]
    assert [problem.code for problem in val.problems] == ["matched-class", "matched-class"]
    assert {data.classes for data in read_all(tmp_path).values()} == {("cup", "Wine Glass")}


def test_a_class_that_only_val_has_is_kept_with_a_note(tmp_path: Path) -> None:
    write(tmp_path, "train", ["cup"], [0])
    write(tmp_path, "val", ["ball", "cup"], [0, 0, 1])
    train, val, _ = read_train_val(tmp_path)
    assert train.classes == val.classes == ("cup", "ball")
    assert val.class_counts() == {"cup": 1, "ball": 2}
    [problem] = val.problems
    assert (problem.code, problem.message) == ("unlearnt-class", "'ball' has 2 boxes here")


def test_two_categories_of_one_name_become_one_class(tmp_path: Path) -> None:
    write(tmp_path, "train", ["car", "van", "car "], [0, 1, 2])
    [data] = read_all(tmp_path).values()
    assert data.class_counts() == {"car": 2, "van": 1}
    assert [problem.code for problem in data.problems] == ["merged-class"]


def test_the_most_frequent_spelling_of_a_class_comes_first() -> None:
    counts = {"caT": 1, "cat": 8, "dog": 2, "Bird": 1, "bird": 1}
    assert all_classes(["sun"], counts) == ["sun", "Bird", "bird", "cat", "caT", "dog"]
    assert all_classes(["caT"], counts)[0] == "caT"
