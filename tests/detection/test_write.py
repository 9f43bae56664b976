from __future__ import annotations

import contextlib
import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from retinanet.detection.input_images import ImageFile
from retinanet.detection.pipeline import ImageResult
from retinanet.detection.record import Record
from retinanet.detection.result_files import write_result_files
from retinanet.detection.write import OutputFormat, OutputNames, Outputs, Writer, refuse_overwriting
from retinanet.detections import Detections
from retinanet.errors import DataError, RetinaNetError

CLASSES = ("nut & bolt", "screw")
FORMATS: tuple[OutputFormat, ...] = ("coco", "csv", "yolo", "voc")

FOUND = Detections.of_one_image(
    boxes=np.array([[1.0, 2.0, 21.5, 30.25], [0.0, 0.0, 40.0, 30.0]], dtype=np.float32),
    scores=np.array([0.875, 0.5], dtype=np.float32),
    labels=np.array([1, 0]),
)
NOTHING = Detections.empty()


def image_result(folder: Path, name: str, found: Detections = FOUND) -> ImageResult:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((32, 40, 3), 90, dtype=np.uint8)
    Image.fromarray(image).save(path)
    return ImageResult(ImageFile(path, Path(name)), (32, 40), found, image)


def write(
    out: Path, images: list[ImageResult], formats: tuple[OutputFormat, ...] = FORMATS, draw: bool = True
) -> list[str]:
    outputs = Outputs(out, CLASSES, formats, draw)
    out.mkdir(parents=True, exist_ok=True)
    record = Record.start(out, CLASSES, {})
    with Writer(outputs, record, OutputNames()) as writer:
        for one in images:
            writer.add(one)
        writer.finish()
    record.close()
    return write_result_files(outputs, record)[1]


def address(result: ImageResult) -> str:
    return result.image.address


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "images"


def test_coco(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", [image_result(source, "a.png"), image_result(source, "b.png", NOTHING)], ("coco",))
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [(i["id"], i["width"], i["height"]) for i in content["images"]] == [(1, 40, 32), (2, 40, 32)]
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    first, second = content["annotations"]
    assert first["bbox"] == [1.0, 2.0, 20.5, 28.25]
    assert first["score"] == 0.875
    assert (first["image_id"], first["category_id"], second["category_id"]) == (1, 2, 1)
    assert len({a["id"] for a in content["annotations"]}) == 2


def test_csv(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", [image_result(source, "a, b.png"), image_result(source, "c.png", NOTHING)], ("csv",))
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == ["a, b.png", "a, b.png", "c.png"]
    assert [float(rows[0][k]) for k in ("x1", "y1", "x2", "y2", "score")] == [1.0, 2.0, 21.5, 30.25, 0.875]
    assert rows[1]["class"] == "nut & bolt"
    assert rows[2]["class"] == rows[2]["x1"] == ""


def test_yolo(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", [image_result(source, "trip/a.png"), image_result(source, "b.png", NOTHING)], ("yolo",))
    label, x, y, width, height, score = (tmp_path / "out" / "labels/trip/a.txt").read_text().splitlines()[0].split()
    assert label == "1"
    np.testing.assert_allclose(
        [float(v) for v in (x, y, width, height)], [11.25 / 40, 16.125 / 32, 20.5 / 40, 28.25 / 32], atol=1e-6
    )
    assert float(score) == 0.875
    assert (tmp_path / "out" / "labels" / "b.txt").read_text() == ""
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == list(CLASSES)


def test_images_of_one_name_can_be_told_apart(tmp_path: Path, source: Path) -> None:
    images = [image_result(source, "x.png"), image_result(source, "x.jpg", NOTHING)]
    write(tmp_path / "out", images, ("yolo", "voc"))
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        rows = {row["labels"]: row["path"] for row in csv.DictReader(file)}
    assert rows == {"labels/x.txt": address(images[0]), "labels/x-2.txt": address(images[1])}
    for name, one in zip(("x.xml", "x-2.xml"), images, strict=True):
        root = ET.parse(tmp_path / "out" / "annotations" / name).getroot()
        assert root.findtext("path") == address(one)


def test_voc(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", [image_result(source, "a & b.png")], ("voc",))
    root = ET.parse(tmp_path / "out" / "annotations" / "a & b.xml").getroot()
    assert root.findtext("filename") == "a & b.png"
    assert (root.findtext("size/width"), root.findtext("size/height")) == ("40", "32")
    names = [node.findtext("name") for node in root.iter("object")]
    assert names == ["screw", "nut & bolt"]
    box = root.find("object/bndbox")
    assert box is not None
    assert [float(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax")] == [1.0, 2.0, 21.5, 30.25]


def test_coco_tools_read_the_file(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", [image_result(source, "a.png"), image_result(source, "b.png", NOTHING)], ("coco",))
    with contextlib.redirect_stdout(io.StringIO()):
        content = COCO(str(tmp_path / "out" / "detections.json"))
    assert content.getImgIds() == [1, 2]
    assert [a["category_id"] for a in content.loadAnns(content.getAnnIds(imgIds=[1]))] == [2, 1]
    assert content.getAnnIds(imgIds=[2]) == []


def test_drawn_images_have_the_size_and_place_of_their_source(tmp_path: Path, source: Path) -> None:
    written = write(tmp_path / "out", [image_result(source, "trip/a.png"), image_result(source, "b.png", NOTHING)])
    for name in ("trip/a.jpg", "b.jpg"):
        with Image.open(tmp_path / "out" / name) as drawn:
            assert drawn.size == (40, 32)
    assert "drawn images" in written
    assert "detections.json" in written
    assert not list((tmp_path / "out").rglob(".*.jpg")), "a temporary file stayed"


def test_drawing_longer_than_jpeg_allows_is_scaled_down(tmp_path: Path) -> None:
    image = np.zeros((4, 70_000, 3), dtype=np.uint8)
    write(tmp_path / "out", [ImageResult(ImageFile(tmp_path / "a.png", Path("a.png")), (4, 70_000), NOTHING, image)])
    with Image.open(tmp_path / "out" / "a.jpg") as drawn:
        assert drawn.width == 65_500


def test_no_drawing(tmp_path: Path, source: Path) -> None:
    assert write(tmp_path / "out", [image_result(source, "a.png")], ("csv",), draw=False) == [
        "detections.csv",
        "detections.jsonl",
    ]
    assert {p.name for p in (tmp_path / "out").glob("[!.]*")} == {"detections.csv", "detections.jsonl"}


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    same = [image_result(tmp_path / folder, "a.png") for folder in ("x", "y", "z")]
    same.append(image_result(tmp_path / "x", "a.jpg"))
    write(tmp_path / "out", same)
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4
    assert len(list((tmp_path / "out" / "labels").glob("*.txt"))) == 4
    assert len(list((tmp_path / "out" / "annotations").glob("*.xml"))) == 4


def test_numbered_name_does_not_take_another_images_name(tmp_path: Path) -> None:
    same = [
        image_result(tmp_path / "x", "a.png"),
        image_result(tmp_path / "y", "a.png"),
        image_result(tmp_path / "y", "a-2.png"),
    ]
    write(tmp_path / "out", same)
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3


@pytest.mark.parametrize("folder_first", [False, True])
def test_a_folder_is_named_like_the_drawing_of_an_image(tmp_path: Path, source: Path, folder_first: bool) -> None:
    names = ["x.png", "x.jpg/a.png", "x.TXT/a.png", "x.xml/b.jpg/a.png", "x.jpg_/a.png"]
    images = [image_result(source, name) for name in (names[::-1] if folder_first else names)]
    write(tmp_path / "out", images)
    drawn = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")}
    assert len(drawn) == 5
    assert {"x.jpg", "x.jpg_/a.jpg", "x.jpg_/a-2.jpg", "x.xml_/b.jpg_/a.jpg"} < drawn
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == 5


def test_sources_are_never_overwritten(source: Path) -> None:
    one = image_result(source, "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg would replace"):
        refuse_overwriting(Outputs(source, CLASSES, (), True), [source / "a.jpg"], lambda: [one.image])


def test_json_lines(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", [image_result(source, "trip/a.png"), image_result(source, "b.png", NOTHING)], ("jsonl",))
    first, second = map(json.loads, (tmp_path / "out" / "detections.jsonl").read_text().splitlines())
    assert (first["path"], first["width"], first["height"]) == (str(source / "trip/a.png"), 40, 32)
    assert first["detections"] == [
        {"box": [1.0, 2.0, 21.5, 30.25], "score": 0.875, "label": 1, "class": "screw"},
        {"box": [0.0, 0.0, 40.0, 30.0], "score": 0.5, "label": 0, "class": "nut & bolt"},
    ]
    assert second["detections"] == []


def test_images_that_cannot_be_read_are_listed(tmp_path: Path, source: Path) -> None:
    broken = ImageResult(ImageFile(source / "x.jpg", Path("x.jpg")), error="x.jpg: cannot be decoded")
    written = write(tmp_path / "out", [image_result(source, "a.png"), broken])
    assert (tmp_path / "out" / "failed.txt").read_text() == "x.jpg: cannot be decoded\n"
    assert written[-1] == "failed.txt"
    assert not list((tmp_path / "out").rglob("x.*"))
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_totals(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", [image_result(source, "a.png"), image_result(source, "b.png")], (), draw=False)
    outputs = Outputs(tmp_path / "out", CLASSES, (), False)
    record = Record(tmp_path / "out" / "detections.jsonl", CLASSES, 0, io.BytesIO())
    totals, _ = write_result_files(outputs, record)
    assert (totals.images, totals.counts) == (2, {"screw": 2, "nut & bolt": 2})


def test_failing_drawing_ends_the_run_before_its_entry(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "trip").write_text("a file in the place of a folder")
    with pytest.raises(RetinaNetError, match=r"trip/b\.jpg: cannot be written"):
        write(out, [image_result(source, name) for name in ("a.png", "trip/b.png", "c.png")])
    assert [json.loads(line)["name"] for line in (out / "detections.jsonl").read_text().splitlines()] == ["a"]
