from __future__ import annotations

from pathlib import Path

import pytest
from small_coco import names, write_coco

from retinanet.data.formats.open_dataset import read_split
from retinanet.data.formats.train_val import read_eval, read_train_val
from retinanet.errors import ConfigError, DataError


def test_named_splits(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "pets", {"train": names("t", 3), "val": names("v", 2), "test": names("x", 1)})
    train, val, notes = read_train_val(root)
    assert (train.name, len(train)) == ("pets [train]", 3)
    assert (val.name, len(val)) == ("pets [val]", 2)
    assert notes == []
    for name, count in (("train", 3), ("train2017", 3), ("valid", 2), ("Dev", 2), ("test2017", 1)):
        assert len(read_split(root, name)) == count
        assert len(read_eval(root, name)[0]) == count


def test_val_is_set_aside_and_never_test(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": names("t", 20), "test": names("x", 9)})
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
    root = write_coco(tmp_path / "a", {"train": names("t", 4), "val": names("v", 3), "extra": names("e", 5)})
    other = write_coco(tmp_path / "b", {"val": names("o", 2), "train": names("p", 6)}, ("dog",))
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
    root = write_coco(tmp_path, {"train": names("t", 4), "val": names("t", 2)})
    assert read_train_val(root)[2] == ["2 of the 2 val images are also in train: scores on val will be too high"]


def test_classes_are_mapped_by_name(tmp_path: Path) -> None:
    root = write_coco(tmp_path, {"train": names("t", 2)}, ("cat", "dog"))
    write_coco(tmp_path, {"val": names("v", 1)}, ("ant", "cat"))
    _, val, _ = read_train_val(root)
    assert val.labels.tolist() == [0]
    write_coco(tmp_path, {"val": names("v", 1)}, ("cat", "emu"))
    with pytest.raises(DataError, match="class 'emu' is not one of"):
        read_train_val(root)


def test_single_file(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "a", {"train": names("t", 4), "val": names("v", 3)})
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
    root = write_coco(tmp_path, {"train": names("t", 4)})
    with pytest.raises(ConfigError, match="between 0 and 1"):
        read_train_val(root, val_fraction=fraction)


def test_one_image_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        read_train_val(write_coco(tmp_path, {"train": ["a.png"]}))


def test_real_boards_without_val(shared_data: Path) -> None:
    train, val, notes = read_train_val(shared_data / "deeppcb")
    assert (len(train), len(val)) == (900, 100)
    assert len(notes) == 1
    assert "100 of 1000 images are held out at random (seed 0)" in notes[0]
    assert train.classes == ("open", "short", "mousebite", "spur", "copper", "pin-hole")
    again, _ = read_eval(shared_data / "deeppcb", "val")
    assert again.image_ids.tolist() == val.image_ids.tolist()
    assert len(read_split(shared_data / "deeppcb", "test")) == 500
