"""Round trips between the formats: what is read equals what was written, up to what a format cannot store."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import supervision as sv
from hypothesis import HealthCheck, example, given, settings
from PIL import Image

import retinanet
from drawn_datasets import CROWDED, MISLEADING, Box, Drawn, build, by_image, datasets, short_name
from retinanet.data.convert import Format, write
from retinanet.data.dataset import NO_CLASS, Dataset, FileList
from retinanet.data.formats.open_dataset import read_all, read_split
from retinanet.errors import DataError, RetinaNetError

FORMATS: tuple[Format, ...] = ("coco", "voc", "yolo", "csv")


@pytest.mark.parametrize("to", FORMATS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(drawn=datasets())
@example(drawn=CROWDED)
@example(drawn=MISLEADING)
def test_round_trip(to: Format, drawn: tuple[list[str], list[int], dict[str, list[Drawn]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "there"), Path(folder, "back")
        original = build(Path(folder, "in"), *drawn)
        remarks = write(original, there, to)
        write(read_all(there), back, "coco", "link")
        again = read_all(back)
        assert again.keys() == original.keys()
        lost_class = False
        for split, data in original.items():
            new = again[split]
            assert new.classes == data.classes
            assert new.problems == ()
            assert to != "coco" or new.category_ids == data.category_ids
            before, after = by_image(data), by_image(new)
            assert before.keys() == after.keys()
            if to != "yolo":
                assert list(before) == list(after)  # in the same order
            for key, was in before.items():
                now = after[key]
                assert now["size"] == was["size"]
                assert now["ignore"] == was["ignore"]
                if not any("renamed" in remark for remark in remarks):
                    # Two splits with images of one name stand in folders of their own in VOC.
                    assert now["file"] == short_name(split, data, was["file"])
                marked = [NO_CLASS if i else k for k, i in zip(was["labels"], was["ignore"], strict=True)]
                lost_class |= marked != was["labels"]
                assert now["labels"] == (was["labels"] if to in ("coco", "voc") else marked)
                if to == "yolo":
                    np.testing.assert_allclose(now["boxes"], was["boxes"], rtol=0, atol=1e-6)
                else:
                    assert np.array_equal(now["boxes"], was["boxes"])
                if to == "coco":
                    assert now["id"] == was["id"]
                    assert np.array_equal(now["areas"], was["areas"])
        said = any("lose their class" in remark or "loses its class" in remark for remark in remarks)
        assert said == (lost_class and to in ("yolo", "csv"))


def pets(root: Path) -> dict[str, Dataset]:
    classes, ids, splits = CROWDED
    return build(root, classes, ids, splits)


def test_supervision_reads_the_same_boxes(tmp_path: Path) -> None:
    images = [
        Drawn("a.png", 1, (40, 30), [Box(1, (0.5, 1.25, 12.3, 30), False, None), Box(0, (1, 2, 3, 4), False, None)]),
        Drawn("b.png", 2, (20, 25), [Box(0, (0, 0, 20, 25), False, None)]),
        Drawn("c.png", 3, (20, 25), []),
    ]
    splits = build(tmp_path / "in", ["cat", "dog"], [1, 2], {"train": images})
    for to in FORMATS[:3]:
        write(splits, tmp_path / to, to)
    load = sv.DetectionDataset
    images_folder = "images/train"
    coco, yolo, voc = tmp_path / "coco", tmp_path / "yolo", tmp_path / "voc"
    for found in (
        load.from_coco(str(coco / images_folder), str(coco / "annotations" / "instances_train.json")),
        load.from_yolo(str(yolo / images_folder), str(yolo / "labels" / "train"), str(yolo / "data.yaml")),
        load.from_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations")),
    ):
        assert sorted(found.classes) == ["cat", "dog"]
        for path, _, detections in found:
            image = next(i for i in images if i.name == Path(path).name)
            assert detections.class_id is not None
            assert [found.classes[k] for k in detections.class_id] == [["cat", "dog"][b.label] for b in image.boxes]
            corners = np.array([b.corners for b in image.boxes], dtype=np.float32).reshape(-1, 4)
            np.testing.assert_allclose(detections.xyxy, corners, atol=1e-4)


def test_files_as_other_readers_see_them(tmp_path: Path) -> None:
    splits = {"train": pets(tmp_path / "in")["train"]}
    write(splits, tmp_path / "voc", "voc")
    root = ElementTree.parse(tmp_path / "voc" / "Annotations" / "a.xml").getroot()
    assert [o.findtext("name") for o in root.findall("object")] == ["a", "ignore"]
    assert [o.findtext("difficult") for o in root.findall("object")] == ["1", "1"]
    assert [e.text for e in root.findall("object/bndbox/*")] == ["1.1", "1.2", "12.3", "30", "2", "3", "3", "4"]
    assert (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").read_text() == "a\na.png\n"
    write(splits, tmp_path / "csv", "csv")
    with (tmp_path / "csv" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["class"]) for row in rows] == [
        ("images/train/a.jpg", "ignore"),
        ("images/train/a.jpg", "ignore"),
        ("images/train/a.png", "b"),
    ]
    assert [rows[0][c] for c in ("x1", "y1", "x2", "y2")] == ["0.1", "0.2", "12.3", "30"]
    write(splits, tmp_path / "yolo", "yolo")
    numbers = [float(word) for word in (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().split()]
    expected = [2, 0.155, 15.1 / 30, 0.305, 29.8 / 30, 2, 0.05, 0.1, 0.05, 2 / 30]
    np.testing.assert_allclose(numbers, expected, atol=1e-7)


@pytest.mark.parametrize("to", FORMATS)
def test_remarks_name_what_is_lost(tmp_path: Path, to: Format) -> None:
    remarks = write(pets(tmp_path / "in"), tmp_path / "out", to)
    assert any("category ids" in r for r in remarks) == (to != "coco")
    assert any("image ids" in r for r in remarks) == (to != "coco")
    assert any("the area of 1 box," in r for r in remarks) == (to != "coco")
    assert any("1 ignore region loses its class" in r for r in remarks) == (to in ("yolo", "csv"))
    assert any("1 image is renamed" in r and "'a_2.png'" in r for r in remarks) == (to == "yolo")


def test_boxes_thinner_than_a_pixel_are_said_in_voc(tmp_path: Path) -> None:
    box = Box(0, (4.25, 3, 4.75, 9), False, None)
    splits = build(tmp_path / "in", ["a"], [1], {"train": [Drawn("a.png", 1, (9, 9), [box])]})
    [remark] = write(splits, tmp_path / "voc", "voc")
    assert remark.startswith("1 box is thinner than a pixel: xmin, which counts from 1, exceeds xmax")
    assert read_split(tmp_path / "voc", "train").boxes.tolist() == [[4.25, 3, 4.75, 9]]
    assert write(splits, tmp_path / "csv", "csv") == []


def test_labelmap_and_origin_of_pascal_voc(tmp_path: Path, parts: Path) -> None:
    for origin in (1, 0):
        retinanet.convert_dataset(parts, tmp_path / str(origin), "voc", voc_origin=origin)
    for split, data in read_all(parts).items():
        for origin in (1, 0):
            again = read_all(tmp_path / str(origin))[split]
            np.testing.assert_array_equal(again.boxes, data.boxes)
    lines = (tmp_path / "0" / "labelmap.txt").read_text().splitlines()
    assert lines[:3] == [
        "# label:color_rgb:parts:actions",
        "background:0,0,0::",
        f"{read_split(parts, 'train').classes[0]}:128,0,0::",
    ]
    name = sorted((tmp_path / "0" / "Annotations").rglob("*.xml"))[0].relative_to(tmp_path / "0")
    first, second = (ElementTree.parse(tmp_path / str(origin) / name).find(".//xmin") for origin in (0, 1))
    if first is not None and second is not None:
        assert float(second.text or 0) == float(first.text or 0) + 1


@pytest.mark.parametrize("to", FORMATS)
def test_links_and_no_images(tmp_path: Path, to: Format) -> None:
    splits = pets(tmp_path / "in")
    write({"train": splits["train"].subset([0]), "val": splits["val"]}, tmp_path / "none", to, "none")
    write(splits, tmp_path / "link", to, "link")
    names = [p for p in (tmp_path / "none").rglob("*") if p.suffix in (".jpg", ".png")]
    assert names == []
    again, linked = read_all(tmp_path / "none"), read_all(tmp_path / "link")
    assert len(again["train"]) == 1  # the folder holds another image
    assert again["train"].path(0).read_bytes() == splits["train"].path(0).read_bytes()
    assert len(again["train"].boxes) == 2
    assert os.path.samefile(linked["train"].path(0), splits["train"].path(0))


@pytest.mark.parametrize("to", FORMATS)
def test_hostile_names_stay_in_the_folder(tmp_path: Path, to: Format) -> None:
    data = pets(tmp_path / "a" / "b" / "in")["train"]
    outside = tmp_path / "a" / "x.jpg"
    shutil.copy(data.path(0), outside)
    shutil.copy(pets(tmp_path / "other")["train"].path(1), tmp_path / "a" / "b" / "x.jpg")
    data = replace(data, files=FileList([str(outside), "../../x.jpg"]))
    before = set(tmp_path.rglob("*"))
    write({"train": data}, tmp_path / "out", to)
    assert all(tmp_path / "out" in (p, *p.parents) for p in set(tmp_path.rglob("*")) - before)
    found = by_image(read_all(tmp_path / "out")["train"])
    assert found.keys() == by_image(data).keys()
    for split in ("../up", "a/b", ".", "", ".hidden", "line\nbreak"):
        with pytest.raises(DataError, match="a split is called"):
            write({split: data}, tmp_path / "never", to)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_names_that_readers_pass_over_are_changed(tmp_path: Path, to: Format) -> None:
    names = [".hidden.png", "back\\slash.png", " blank .png", "line\nbreak.png", "noise\udc80.png", ".d/x.png"]
    drawn = [Drawn(name, i, (9, 9), []) for i, name in enumerate(names)]
    splits = build(tmp_path / "in", ["a"], [1], {"train": drawn})
    remarks = write(splits, tmp_path / "out", to)
    assert any("6 images are renamed" in r for r in remarks)
    assert by_image(read_all(tmp_path / "out")["train"]).keys() == by_image(splits["train"]).keys()
    with pytest.raises(DataError, match="use --images copy"):
        write(splits, tmp_path / "none", to, "none")


def test_an_image_listed_twice_stays_two_images(tmp_path: Path) -> None:
    data = pets(tmp_path / "in")["train"]
    data = replace(data, files=FileList(["a.jpg", "a.jpg"]))
    for to in FORMATS:
        write({"train": data}, tmp_path / to, to)
        assert np.diff(read_all(tmp_path / to)["train"].offsets).tolist() == [2, 1]


@pytest.mark.parametrize("to", ["yolo", "csv"])
def test_sizes_that_files_cannot_say_are_refused(tmp_path: Path, to: Format) -> None:
    splits = pets(tmp_path / "in")
    Image.new("L", (80, 60)).save(splits["train"].path(0), "png")
    with pytest.raises(DataError, match=r"1 image is not .*a\.jpg has 80×60 pixels, its annotations say 40×30"):
        write(splits, tmp_path / "out", to)
    write(splits, tmp_path / "voc", "voc")
    assert read_split(tmp_path / "voc", "train").sizes.tolist() == [[40, 30], [40, 30]]


@pytest.mark.parametrize("to", FORMATS)
def test_broken_images_are_copied_as_they_are(tmp_path: Path, to: Format) -> None:
    splits = pets(tmp_path / "in")
    splits["train"].path(0).write_bytes(b"not an image")
    remarks = write(splits, tmp_path / "out", to)
    assert any("1 image is broken and copied" in r for r in remarks) == (to in ("yolo", "csv"))
    assert any(p.read_bytes() == b"not an image" for p in (tmp_path / "out").rglob("*.jpg"))


@pytest.mark.parametrize("to", ["voc", "csv"])
@pytest.mark.parametrize("name", ["", "line\nbreak", "bell\a", "\ud800"])
def test_class_names_that_cannot_be_written(tmp_path: Path, to: Format, name: str) -> None:
    splits = build(tmp_path / "in", ["a", name], [1, 2], {"train": [Drawn("a.png", 1, (9, 9), [])]})
    with pytest.raises(DataError, match="rename the class"):
        write(splits, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_nothing(tmp_path: Path, to: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = pets(tmp_path / "in")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RetinaNetError, match=r"out: cannot be written \(No space left on device\); free some space"):
        write(splits, tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_splits_with_other_classes_get_one_list(tmp_path: Path) -> None:
    for split, classes in (("train", {1: "cat", 5: "dog"}), ("val", {1: "cat", 3: "ant", 4: "dog"})):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / "images" / f"{split}.png")
        content = {
            "images": [{"id": 1, "file_name": f"{split}.png", "width": 9, "height": 9}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": max(classes), "bbox": [0, 0, 5, 5]}],
            "categories": [{"id": i, "name": c} for i, c in classes.items()],
        }
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
    splits = read_all(tmp_path)
    for data in splits.values():
        assert (data.classes, data.category_ids) == (("cat", "ant", "dog"), (1, 3, 5))
        assert data.labels.tolist() == [2]


@pytest.mark.parametrize("name", ["bccd/BCCD", "coco_person", "coco80", "deeppcb"])
def test_real_data_there_and_back(tmp_path: Path, shared_data: Path, name: str) -> None:
    original = {split: d.subset(range(min(30, len(d)))) for split, d in read_all(shared_data / name).items()}
    for to in FORMATS:
        write(original, tmp_path / to, to, "link")
        for split, data in read_all(tmp_path / to).items():
            before, after = by_image(original[split]), by_image(data)
            assert before.keys() == after.keys()
            assert all(np.allclose(before[k]["boxes"], after[k]["boxes"], rtol=0, atol=1e-6) for k in before)
            assert data.classes == original[split].classes


def test_convert_dataset_from_python(tmp_path: Path, parts: Path) -> None:
    conversion = retinanet.convert_dataset(parts, tmp_path / "out", "csv", "link")
    assert list(conversion.splits) == ["train", "val"]
    assert str(conversion).startswith("12 images (train, val), ")
    assert any("image ids" in remark for remark in conversion.remarks)
    assert list(read_all(tmp_path / "out")) == ["train", "val"]
    with pytest.raises(RetinaNetError, match="unknown format 'xml'"):
        retinanet.convert_dataset(parts, tmp_path / "other", "xml")  # type: ignore[arg-type]
