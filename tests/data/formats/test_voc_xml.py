"""Objects of Pascal VOC files that are not told by four corners, and files in other encodings."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats.open_dataset import read_all, read_split
from retinanet.read_options import ReadOptions

CORNERS = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox>"


def write(root: Path, box: str = CORNERS, name: str = "dog", stems: str = "a", extra: str = "") -> Path:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    for stem in stems:
        Image.new("RGB", (40, 20)).save(root / "JPEGImages" / f"{stem}.jpg")
        text = (
            f"<annotation>{extra}<filename>{stem}.jpg</filename><object><name>{name}</name>{box}</object></annotation>"
        )
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    return root


@pytest.mark.parametrize(
    "box",
    [
        "<robndbox><cx>20</cx><cy>10</cy><w>10</w><h>20</h><angle>1.5707963267948966</angle></robndbox>",
        "<polygon><pt><x>10</x><y>5</y></pt><pt><x>30</x><y>6</y></pt><pt><x>20</x><y>15</y></pt></polygon>",
        "<polygon><x1>10</x1><y1>5</y1><x2>30</x2><y2>6</y2><x3>20</x3><y3>15</y3></polygon>",
        "<bndbox><xmin>15</xmin><ymin>0</ymin><xmax>25</xmax><ymax>20</ymax></bndbox>"
        "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>",
    ],
)
def test_other_shapes_give_their_upright_box_with_a_note(tmp_path: Path, box: str) -> None:
    data = read_split(write(tmp_path, box, stems="ab"), "train")
    assert data.boxes.tolist() == [pytest.approx([10, 5, 30, 15], abs=1e-5)] * 2
    assert [(problem.code, problem.count) for problem in data.problems] == [("shape-box", 2)]


def test_files_of_windows_are_read_with_their_umlauts(tmp_path: Path) -> None:
    root = write(tmp_path, name="Kaefer")
    file = root / "Annotations" / "a.xml"
    file.write_bytes(file.read_bytes().replace(b"Kaefer", "Käfer".encode("latin-1")))
    data = read_split(root, "train")
    assert data.classes == ("Käfer",)
    assert [problem.code for problem in data.problems] == ["encoding"]


@pytest.mark.parametrize(
    ("database", "origin", "box"),
    [
        ("The VOC2007 Database", "auto", [9, 4, 30, 15]),
        ("The VOC2007 Database", "0", [10, 5, 30, 15]),
        ("Unknown", "auto", [10, 5, 30, 15]),
        ("Unknown", "1", [9, 4, 30, 15]),
    ],
)
def test_number_of_the_first_pixel(tmp_path: Path, database: str, origin: str, box: list[float]) -> None:
    root = write(tmp_path, extra=f"<source><database>{database}</database></source>")
    assert read_split(root, "train", ReadOptions(voc_origin=origin)).boxes.tolist() == [box]  # type: ignore[arg-type]


def test_splits_follow_from_lists_of_each_class(tmp_path: Path) -> None:
    root = write(tmp_path, stems="abcd")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "dog_train.txt").write_text("a.jpg 1\nb.jpg -1\n")
    (lists / "cat_train.txt").write_text("b.jpg 1\nc.jpg -1\n")
    (lists / "dog_val.txt").write_text("d.jpg 1\n")
    (lists / "cat_val.txt").write_text("")
    assert {split: len(data) for split, data in read_all(root).items()} == {"train": 3, "val": 1}


def test_images_are_found_by_the_path_in_the_file_as_the_last_resort(tmp_path: Path) -> None:
    root = write(tmp_path / "labels", extra="<path>C:\\photos\\shop.png</path>")
    (root / "JPEGImages" / "a.jpg").unlink()
    Image.new("RGB", (40, 20)).save(tmp_path / "shop.png")
    data = read_split(root, "train", ReadOptions(images=str(tmp_path)))
    assert data.path(0) == tmp_path / "shop.png"
