"""Which image the boxes of a file of detections refer to: the stored or the turned image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.exif import Header, turned_boxes
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.detections import read_detections
from retinanet.read_options import ReadOptions

Floats = npt.NDArray[np.float64]
ALL, BOXES = [1, 2, 3, 4, 5, 6, 7, 8], 5
CLASSES = ("cat", "dog")


def stored_objects(size: tuple[int, int]) -> Floats:
    """Objects of each image ``(N, BOXES, 4)`` in the stored pixels."""
    rng = np.random.default_rng(3)
    sides = rng.uniform(8, 20, (len(ALL), BOXES, 2))
    corners = rng.random((len(ALL), BOXES, 2)) * (np.array(size) - sides)
    return np.concatenate([corners, corners + sides], axis=2)


def turned_objects(size: tuple[int, int]) -> Floats:
    return np.stack([turned_boxes(b, o, size) for b, o in zip(stored_objects(size), ALL, strict=True)])


def dataset(folder: Path, size: tuple[int, int], options: ReadOptions | None = None) -> Dataset:
    """Images of all orientations, with annotations that refer to the stored pixels."""
    folder.mkdir(exist_ok=True)
    builder = DatasetBuilder("toy", folder, CLASSES, None, False, options or ReadOptions(exif="ignore"))
    for i, orientation in enumerate(ALL):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("L", size).save(folder / f"{i}.png", exif=exif)
        builder.add_image(f"{i}.png", *size, image_id=10 + i)
        for k, (x1, y1, x2, y2) in enumerate(stored_objects(size)[i].tolist()):
            builder.add_box((x1, y1, x2, y2), k % 2, "")
    return builder.build()


def coco_file(folder: Path, boxes: Floats, first: int = 10, **more: Any) -> Path:
    entries = [
        {
            "image_id": first + i,
            "category_id": k % 2 + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 0.9 - 0.1 * k,
            **more,
        }
        for i, image in enumerate(boxes)
        for k, (x1, y1, x2, y2) in enumerate(image.tolist())
    ]
    (folder / "found.json").write_text(json.dumps(entries))
    return folder / "found.json"


def yolo_folder(folder: Path, boxes: Floats, sizes: list[tuple[int, int]]) -> Path:
    (folder / "yolo" / "labels").mkdir(parents=True)
    (folder / "yolo" / "classes.txt").write_text("cat\ndog\n")
    for i, (image, (width, height)) in enumerate(zip(boxes, sizes, strict=True)):
        lines = [
            f"{k % 2} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height} 0.9\n"
            for k, (x1, y1, x2, y2) in enumerate(image.tolist())
        ]
        (folder / "yolo" / "labels" / f"{i}.txt").write_text("".join(lines))
    return folder / "yolo"


def ap(data: Dataset, found: Detections) -> float:
    return coco_metrics(data, found).summary["AP"]


SIZES = [(100, 60), (60, 100), (80, 80)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", ["stored", "turned"])
def test_the_better_frame_is_taken_and_told(tmp_path: Path, size: tuple[int, int], frame: str) -> None:
    data = dataset(tmp_path, size)
    boxes = stored_objects(size) if frame == "stored" else turned_objects(size)
    found, notes = read_detections(coco_file(tmp_path, boxes), data)
    assert ap(data, found) > 0.999
    [note] = notes
    means = "mean IoU with the objects 1.00 as boxes of the turned images"
    if frame == "stored":
        assert note.startswith("detections on 7 images that EXIF turns are taken for boxes of the stored pixels")
        assert means not in note
    else:
        assert note.startswith("detections on 7 images that EXIF turns are boxes of the turned images")
        assert means in note


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", ["stored", "turned"])
def test_fractions_are_of_the_image_that_they_refer_to(tmp_path: Path, size: tuple[int, int], frame: str) -> None:
    data = dataset(tmp_path, size)
    boxes = stored_objects(size) if frame == "stored" else turned_objects(size)
    sizes = [size if frame == "stored" else Header(size, o).upright for o in ALL]
    found, _ = read_detections(yolo_folder(tmp_path, boxes, sizes), data)
    assert ap(data, found) > 0.999


@pytest.mark.parametrize("frame", ["stored", "turned"])
def test_false_positives_of_low_scores_do_not_decide(tmp_path: Path, frame: str) -> None:
    size = (100, 60)
    data = dataset(tmp_path, size)
    boxes = stored_objects(size) if frame == "stored" else turned_objects(size)
    entries = json.loads(coco_file(tmp_path, boxes).read_text())
    rng = np.random.default_rng(0)
    for image in range(len(ALL)):
        for x, y in rng.random((60, 2)).tolist():
            box = [60 * x, 60 * y, 15, 15]
            entries.append({"image_id": 10 + image, "category_id": 1, "bbox": box, "score": 0.02})
    (tmp_path / "found.json").write_text(json.dumps(entries))
    found, notes = read_detections(tmp_path / "found.json", data)
    assert ap(data, found) > 0.999
    assert ("taken for boxes of the stored pixels" in notes[0]) == (frame == "stored")


def test_boxes_beyond_the_turned_images_decide_if_no_object_is_hit(tmp_path: Path) -> None:
    data = dataset(tmp_path, (100, 60))
    boxes = np.full((len(ALL), 1, 4), [85.0, 2.0, 99.0, 4.0])
    found, notes = read_detections(coco_file(tmp_path, boxes), data)
    assert "taken for boxes of the stored pixels" in notes[0]
    assert (found.boxes[:, 2:] <= data.sizes[found.images]).all()


def test_an_unclear_frame_is_assumed_and_told(tmp_path: Path) -> None:
    data = dataset(tmp_path, (80, 80))
    boxes = np.full((len(ALL), 1, 4), [0.0, 0.0, 80.0, 80.0])
    found, notes = read_detections(coco_file(tmp_path, boxes), data)
    assert any(note.startswith("UNCLEAR: detections on 7 images that EXIF turns are assumed") for note in notes)
    assert (found.boxes == [0, 0, 80, 80]).all()


def test_the_flag_about_the_annotations_does_not_decide(tmp_path: Path) -> None:
    size = (100, 60)
    data = dataset(tmp_path, size, ReadOptions(exif="ignore"))
    for boxes in (stored_objects(size), turned_objects(size)):
        assert ap(data, read_detections(coco_file(tmp_path, boxes), data)[0]) > 0.999


def test_an_assumed_frame_of_the_annotations_is_named(tmp_path: Path) -> None:
    """Annotations of stored pixels, with nothing that shows it, and detections of the turned images."""
    data = dataset(tmp_path, (80, 80), ReadOptions())
    found, notes = read_detections(coco_file(tmp_path, stored_objects((80, 80))), data)
    assert ap(data, found) > 0.999
    assert "are boxes of the turned images" in notes[0]
    builder = DatasetBuilder("toy", tmp_path, CLASSES)
    builder.add_image("2.png", 80, 80, image_id=12)  # turned by 180°
    builder.add_box((5, 10, 25, 40), 0, "")
    [box] = turned_boxes(np.array([[5.0, 10.0, 25.0, 40.0]]), 3, (80, 80)).tolist()
    _, notes = read_detections(coco_file(tmp_path, np.array([[box]]), first=12), builder.build())
    assert "if they refer to the turned images, the annotations do not: --data.exif ignore" in notes[0]


@pytest.mark.parametrize("frame", ["stored", "turned"])
def test_numbers_of_images_and_classes_are_recognized_in_both_frames(tmp_path: Path, frame: str) -> None:
    size = (100, 60)
    data = dataset(tmp_path, size)
    boxes = stored_objects(size) if frame == "stored" else turned_objects(size)
    entries = json.loads(coco_file(tmp_path, boxes, first=0).read_text())
    for each in entries:
        each["category_id"] -= 1
    (tmp_path / "found.json").write_text(json.dumps(entries))
    found, _ = read_detections(tmp_path / "found.json", data)
    assert ap(data, found) > 0.999


def test_upright_images_need_no_note(tmp_path: Path) -> None:
    data = dataset(tmp_path, (100, 60))
    entries = json.loads(coco_file(tmp_path, stored_objects((100, 60))).read_text())
    (tmp_path / "found.json").write_text(json.dumps([each for each in entries if each["image_id"] == 10]))
    _, notes = read_detections(tmp_path / "found.json", data)
    assert not any("EXIF" in note for note in notes)
