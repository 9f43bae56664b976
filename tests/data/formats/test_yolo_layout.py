"""Layouts of darknet, CVAT's YOLO 1.1 and other tools; each has one box in each of train and val."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats.open_dataset import read_all, read_split
from retinanet.data.formats.train_val import read_train_val
from retinanet.read_options import ReadOptions

BOX = "1 0.5 0.5 0.5 0.5\n"


def image(file: Path, label: Path | None = None, line: str = BOX) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(file)
    label = label or file.with_suffix(".txt")
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(line)


def darknet(root: Path, prefix: str = "data/", val: str = "valid") -> Path:
    for folder, split in (("train", "train"), (val, val)):
        image(root / f"obj_{folder}_data" / "day 1" / f"{split}.PNG")
        (root / f"{split}.txt").write_text(f"{prefix}obj_{folder}_data/day 1/{split}.PNG\n")
    lists = f"train = {prefix}train.txt\n{val} = {prefix}{val}.txt\n"
    (root / "obj.data").write_text(f"classes = 2\n{lists}names = {prefix}obj.names\nbackup = backup/\neval = coco\n")
    (root / "obj.names").write_text("cat\ndog\n")
    return root


def check(path: Path, options: ReadOptions | None = None) -> None:
    train, val, _ = read_train_val(path, options=options or ReadOptions())
    assert train.classes == val.classes == ("cat", "dog")
    for data in (train, val):
        assert data.boxes.tolist() == [[10, 5, 30, 15]]
        assert data.labels.tolist() == [1]
        assert data.path(0).is_file()


@pytest.mark.parametrize("prefix", ["data/", "", "./", "/home/me/darknet/data/", "C:\\darknet\\data\\"])
@pytest.mark.parametrize("val", ["valid", "val", "validation"])
def test_darknet_is_read_from_its_folder_or_data_file(tmp_path: Path, prefix: str, val: str) -> None:
    root = darknet(tmp_path / "export", prefix, val)
    check(root)
    check(root / "obj.data")
    assert read_split(root / "train.txt", "train").class_counts() == {"cat": 0, "dog": 1}


def test_lists_and_names_without_a_data_file_are_enough(tmp_path: Path) -> None:
    root = darknet(tmp_path / "export")
    (root / "obj.data").unlink()
    check(root)


def test_data_file_in_a_folder_of_settings(tmp_path: Path) -> None:
    darknet(tmp_path / "data")
    (tmp_path / "cfg").mkdir()
    (tmp_path / "data" / "obj.data").rename(tmp_path / "cfg" / "obj.data")
    check(tmp_path / "cfg" / "obj.data")


@pytest.mark.parametrize("names", ["Training", "train_set", "TRAIN", "train2014"])
def test_spellings_of_train(tmp_path: Path, names: str) -> None:
    image(tmp_path / names / "images" / "a.png", tmp_path / names / "labels" / "a.txt")
    image(tmp_path / "dev" / "images" / "b.png", tmp_path / "dev" / "labels" / "b.txt")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    check(tmp_path)


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "labels/train/classes.txt", "my.names"])
def test_class_names_are_found_where_tools_put_them(tmp_path: Path, place: str) -> None:
    for split in ("train", "val"):
        image(tmp_path / "images" / split / f"{split}.png", tmp_path / "labels" / split / f"{split}.txt")
    (tmp_path / place).write_text("cat\ndog\n")
    check(tmp_path)


@pytest.mark.parametrize("place", ["data.yaml", "labels/data.yaml", "../dataset.yaml"])
def test_class_names_are_taken_from_a_yaml_file_without_splits(tmp_path: Path, place: str) -> None:
    root = tmp_path / "inner"
    for split in ("train", "val"):
        image(root / "images" / split / f"{split}.png", root / "labels" / split / f"{split}.txt")
    (root / place).write_text("names: [cat, dog]\nnc: 2\n")
    check(root)


@pytest.mark.parametrize("base", ["/content/data/", "C:\\data\\", "/mnt/x/y/"])
def test_paths_of_another_computer_in_the_yaml_file(tmp_path: Path, base: str) -> None:
    for split in ("train", "valid"):
        image(tmp_path / split / "images" / f"{split}.png", tmp_path / split / "labels" / f"{split}.txt")
    slash = "\\" if "\\" in base else "/"
    lines = [f"train: {base}train{slash}images", f"val: {base}valid{slash}images", "names: [cat, dog]"]
    (tmp_path / "data.yaml").write_text("\n".join(lines))
    check(tmp_path)
    train, val, _ = read_train_val(tmp_path)
    assert [(problem.code, problem.count) for problem in train.problems] == [("folder-found", 2)]
    assert not val.problems  # told once


def test_images_behind_links_are_read_once(tmp_path: Path) -> None:
    image(tmp_path / "disk" / "day1" / "a.png", tmp_path / "data" / "labels" / "day1" / "a.txt")
    image(tmp_path / "data" / "images" / "day2" / "b.png", tmp_path / "data" / "labels" / "day2" / "b.txt")
    (tmp_path / "data" / "images" / "day1").symlink_to(tmp_path / "disk" / "day1")
    (tmp_path / "data" / "images" / "day1" / "up").symlink_to(tmp_path / "data" / "images")
    [data] = read_all(tmp_path / "data").values()
    assert sorted(data.files) == ["images/day1/a.png", "images/day2/b.png"]
    assert len(data.boxes) == 2


@pytest.mark.parametrize(
    ("line", "box", "code"),
    [
        ("1 0.5 0.5 0.5 0.5 0.9", [10, 5, 30, 15], "scored-box"),
        ("1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75", [10, 5, 30, 15], "shape-box"),
        ("1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75 0.8", [10, 5, 30, 15], "shape-box"),
        ("1.0 0.5 0.5 0.5 0.5 17", [10, 5, 30, 15], None),
    ],
)
def test_lines_with_more_numbers(tmp_path: Path, line: str, box: list[float], code: str | None) -> None:
    image(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.txt", line)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = read_split(tmp_path, "train")
    assert data.boxes.tolist() == [pytest.approx(box)]
    assert code is None or code in [problem.code for problem in data.problems]


def test_boxes_with_a_low_score_are_left_out_on_request(tmp_path: Path) -> None:
    lines = "1 0.5 0.5 0.5 0.5 0.9\n" * 2 + "1 0.5 0.5 0.5 0.5 0.2"
    image(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.txt", lines)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = read_split(tmp_path, "train", ReadOptions(min_score=0.5))
    assert len(data.boxes) == 2
    assert [(problem.code, problem.count) for problem in data.problems] == [("scored-box", 2), ("low-score", 1)]


@pytest.mark.parametrize("suffix", ["avif", "mpo", "jpe"])
def test_images_of_further_formats_are_read(tmp_path: Path, suffix: str) -> None:
    image(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.txt")
    kind = {"avif": "avif", "mpo": "jpeg", "jpe": "jpeg"}[suffix]
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / f"b.{suffix}", kind)
    (tmp_path / "labels" / "b.txt").write_text(BOX)
    assert len(read_split(tmp_path, "train").boxes) == 2


def test_files_that_are_not_read_are_counted_by_their_kind(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.txt")
    for name in ("b.mp4", "c.mp4", "d.NEF"):
        (tmp_path / "images" / name).write_bytes(b"")
    messages = [p.message for p in read_split(tmp_path, "train").problems if p.code == "unread-files"]
    assert [message.split(":")[0] for message in messages] == ["2 MP4 files left out", "1 NEF file left out"]


def test_darknet_project_with_its_settings_beside_its_data(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image(tmp_path / "data" / "img" / f"{split}.jpg")
        (tmp_path / "data" / f"{split}.txt").write_text(f"data/img/{split}.jpg\n")
    (tmp_path / "data" / "my.names").write_text("cat\ndog\n")
    (tmp_path / "cfg").mkdir()
    lists = "train=data/train.txt\nvalid=data/valid.txt\n"
    (tmp_path / "cfg" / "my.data").write_text(f"classes=2\n{lists}names=data/my.names\n")
    check(tmp_path)


def test_labels_of_an_export_whose_images_are_elsewhere(tmp_path: Path) -> None:
    root = darknet(tmp_path / "export")
    (tmp_path / "photos").mkdir()
    for file in root.rglob("*.PNG"):
        file.rename(tmp_path / "photos" / file.name)
    check(root, ReadOptions(images=str(tmp_path / "photos")))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images_{}", "labels_{}"),
        ("{}_images", "{}_labels"),
        ("Images/{}", "Labels/{}"),
        ("images/{}", "annotations/{}"),
        ("{}/Images", "{}/Labels"),
    ],
)
def test_folders_of_labels_in_other_spellings(tmp_path: Path, images: str, labels: str) -> None:
    for split in ("train", "val"):
        image(tmp_path / images.format(split) / "a.jpg", tmp_path / labels.format(split) / "a.txt")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    check(tmp_path)


@pytest.mark.parametrize("spelling", ["{}1", "{}-v2", "01_{}", "data_{}"])
def test_split_names_with_numbers_and_other_words(tmp_path: Path, spelling: str) -> None:
    for split in ("train", "val"):
        image(tmp_path / spelling.format(split) / "a.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    check(tmp_path)


def test_class_names_of_label_studio_notes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / "images" / split / "a.jpg", tmp_path / "labels" / split / "a.txt")
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}')
    check(tmp_path)


def test_test_split_that_is_only_named_is_left_out_when_all_splits_are_read(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image(tmp_path / split / "images" / "a.jpg", tmp_path / split / "labels" / "a.txt")
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    (tmp_path / "data.yaml").write_text(paths + "names: [cat, dog]\n")
    splits = read_all(tmp_path)
    assert list(splits) == ["train", "val"]
    assert [problem.code for problem in splits["train"].problems] == ["absent-split"]
