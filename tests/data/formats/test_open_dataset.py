from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats.open_dataset import read_eval, read_split, read_train_val
from retinanet.errors import ConfigError, DataError


def coco(root: Path, splits: dict[str, list[str]], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        for name in names:
            Image.new("RGB", (20, 20)).save(root / "images" / name)
        content = {
            "images": [{"id": i, "file_name": n, "width": 20, "height": 20} for i, n in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": len(classes) - 1, "bbox": [0, 0, 5, 5]}
                for i in range(len(names))
            ],
            "categories": [{"id": i, "name": c} for i, c in enumerate(classes)],
        }
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}.png" for i in range(count)]


def test_named_splits(tmp_path: Path) -> None:
    root = coco(tmp_path / "pets", {"train": names("t", 3), "val": names("v", 2), "test": names("x", 1)})
    train, val, notes = read_train_val(root)
    assert (train.name, len(train)) == ("pets [train]", 3)
    assert (val.name, len(val)) == ("pets [val]", 2)
    assert notes == []
    for name, count in (("train", 3), ("train2017", 3), ("valid", 2), ("Dev", 2), ("test2017", 1)):
        assert len(read_split(root, name)) == count
        assert len(read_eval(root, name)[0]) == count


def test_val_is_set_aside_and_never_test(tmp_path: Path) -> None:
    root = coco(tmp_path, {"train": names("t", 20), "test": names("x", 9)})
    train, val, notes = read_train_val(root, val_fraction=0.25, seed=3)
    assert (len(train), len(val)) == (15, 5)
    assert notes == [f"no val split in {root}: 5 of 20 images are held out at random (seed 3)"]
    assert not set(train.files) & set(val.files)
    assert set(train.files) | set(val.files) == set(names("t", 20))
    again, more = read_eval(root, "val", val_fraction=0.25, seed=3)
    assert list(again.files) == list(val.files)
    assert more == notes
    other, _ = read_eval(root, "val", val_fraction=0.25, seed=4)
    assert list(other.files) != list(val.files)
    with pytest.raises(DataError, match="no split 'val'"):
        read_split(root, "val")


def test_overrides(tmp_path: Path) -> None:
    root = coco(tmp_path / "a", {"train": names("t", 4), "val": names("v", 3), "extra": names("e", 5)})
    other = coco(tmp_path / "b", {"val": names("o", 2), "train": names("p", 6)}, ("dog",))
    assert len(read_train_val(root, train="extra")[0]) == 5
    assert len(read_train_val(root, val="extra")[1]) == 5
    _, val, _ = read_train_val(root, val=str(other))
    assert len(val) == 2
    assert val.classes == ("cat", "dog")
    assert val.labels.tolist() == [1, 1]
    assert len(read_train_val(root, val=str(other / "instances_train.json"))[1]) == 6
    assert len(read_train_val(root, val="instances_extra.json")[1]) == 5
    assert len(read_eval(root, str(other / "instances_train.json"))[0]) == 6
    with pytest.raises(DataError, match="no split 'nowhere'; choose one of the splits here: extra, train, val"):
        read_train_val(root, val="nowhere")
    with pytest.raises(DataError, match="no split 'test'"):
        read_eval(root, "test")


def test_images_in_both_are_remarked(tmp_path: Path) -> None:
    root = coco(tmp_path, {"train": names("t", 4), "val": names("t", 2)})
    assert read_train_val(root)[2] == ["2 of the 2 val images are also in train: scores on val will be too high"]


def test_classes_are_mapped_by_name(tmp_path: Path) -> None:
    root = coco(tmp_path, {"train": names("t", 2)}, ("cat", "dog"))
    coco(tmp_path, {"val": names("v", 1)}, ("ant", "cat"))
    _, val, _ = read_train_val(root)
    assert val.labels.tolist() == [0]
    coco(tmp_path, {"val": names("v", 1)}, ("cat", "emu"))
    with pytest.raises(DataError, match="class 'emu' is not one of"):
        read_train_val(root)


def test_single_file(tmp_path: Path) -> None:
    root = coco(tmp_path / "a", {"train": names("t", 4), "val": names("v", 3)})
    assert len(read_eval(root / "instances_val.json", "val")[0]) == 3
    assert len(read_split(root / "instances_train.json", "train")) == 4
    lone = root / "boxes.json"
    lone.write_text((root / "instances_train.json").read_text())
    train, val, notes = read_train_val(lone)
    assert (len(train), len(val), len(notes)) == (3, 1, 1)
    assert train.name == "boxes"
    with pytest.raises(DataError, match="no split 'train'"):
        read_train_val(root / "instances_val.json")


@pytest.mark.parametrize("fraction", [0, 1, -1, float("nan")])
def test_bad_fraction(tmp_path: Path, fraction: float) -> None:
    root = coco(tmp_path, {"train": names("t", 4)})
    with pytest.raises(ConfigError, match="between 0 and 1"):
        read_train_val(root, val_fraction=fraction)


def test_one_image_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        read_train_val(coco(tmp_path, {"train": ["a.png"]}))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_split(tmp_path / "gone", "train")
    with pytest.raises(DataError, match="the folder is empty"):
        read_split(tmp_path, "train")
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "some.json").write_text("{}")
    with pytest.raises(DataError, match=r"found notes\.md, some\.json(?s:.*)Pascal VOC"):
        read_split(tmp_path, "train")
    with pytest.raises(DataError, match="not an annotation file"):
        read_split(tmp_path / "notes.md", "train")


def test_the_only_dataset_one_folder_below_is_used_and_told(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    coco(tmp_path / "inner", {"train": ["a.png"]})
    data = read_split(tmp_path, "train")
    assert len(data) == 1
    assert [(p.code, p.where) for p in data.problems] == [("inner-folder", str(tmp_path / "inner"))]
    coco(tmp_path / "second", {"train": ["a.png"]})
    with pytest.raises(DataError, match=r"did you mean .*inner or .*second\?"):
        read_split(tmp_path, "train")


def test_link_loops_end(tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(tmp_path)
    (tmp_path / "images").symlink_to(tmp_path)
    (tmp_path / "labels").symlink_to(tmp_path)
    (tmp_path / "Annotations").symlink_to("Annotations")
    with pytest.raises(DataError, match="no dataset recognized"):
        read_split(tmp_path, "train")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs folders that cannot be read")
def test_unreadable_folder(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o000)
    with pytest.raises(DataError, match="cannot be listed"):
        read_split(locked, "train")


def test_real_boards_without_val(shared_data: Path) -> None:
    train, val, notes = read_train_val(shared_data / "deeppcb")
    assert (len(train), len(val)) == (900, 100)
    assert len(notes) == 1
    assert "100 of 1000 images are held out at random (seed 0)" in notes[0]
    assert train.classes == ("open", "short", "mousebite", "spur", "copper", "pin-hole")
    again, _ = read_eval(shared_data / "deeppcb", "val")
    assert again.image_ids.tolist() == val.image_ids.tolist()
    assert len(read_split(shared_data / "deeppcb", "test")) == 500
