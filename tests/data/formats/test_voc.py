from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats import voc
from retinanet.data.formats.open_dataset import read_split
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions

BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10.5</xmax><ymax>20</ymax></bndbox>"
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def xml(*objects: str, filename: str = "a.jpg", size: str = SIZE, database: str = "Unknown") -> str:
    body = "".join(f"<object>\n{o}</object>\n" for o in objects)
    return (
        f"<annotation>\n<filename>{filename}</filename><source><database>{database}</database></source>\n"
        f"{size}\n{body}</annotation>"
    )


def write(root: Path, files: dict[str, str], splits: dict[str, str] | None = None) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for stem, text in files.items():
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{stem}.jpg")
    for split, lines in (splits or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return root


def test_boxes_of_other_tools_are_taken_as_they_are(tmp_path: Path) -> None:
    data = read_split(write(tmp_path, {"a": xml(f"<name>cat</name>{BOX}")}), "train")
    assert data.boxes.tolist() == [[2, 3, 10.5, 20]]
    assert data.sizes.tolist() == [[40, 30]]
    assert data.path(0).is_file()


def test_the_voc_challenge_counts_from_one(tmp_path: Path) -> None:
    text = xml(f"<name>cat</name>{BOX}", database="The VOC2007 Database")
    assert read_split(write(tmp_path, {"a": text}), "train").boxes.tolist() == [[1, 2, 10.5, 20]]


def test_splits_and_common_classes(tmp_path: Path) -> None:
    files = {"a": xml(f"<name>dog</name>{BOX}"), "b": xml(f"<name>cat</name>{BOX}", filename="b.jpg")}
    splits = {"train": "a\n", "val": "b\n\n", "trainval": "a\nb\na\n", "cat_train": "a -1\nb  1\n"}
    root = write(tmp_path, files, splits)
    assert sorted(voc.find(root)) == ["train", "trainval", "val"]
    for split, names, labels in (
        ("train", ["a.jpg"], [1]),
        ("val", ["b.jpg"], [0]),
        ("trainval", ["a.jpg", "b.jpg"], [1, 0]),
    ):
        data = read_split(root, split)
        assert list(data.files) == names
        assert data.classes == ("cat", "dog")
        assert data.labels.tolist() == labels
    assert "listed twice" in read_split(root, "trainval").problems[0].message


def test_folder_per_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.xml").write_text(xml(f"<name>cat</name>{BOX}"))
        Image.new("RGB", (40, 30)).save(tmp_path / split / "a.jpg")
    assert read_split(tmp_path, "val").path(0) == tmp_path / "valid" / "a.jpg"


def test_ignore_regions(tmp_path: Path) -> None:
    objects = [
        f"<name>cat</name><difficult>1</difficult>{BOX}",
        f"<name>cat</name><ignore>1</ignore>{BOX}",
        f"<name>Ignore</name>{BOX}",
        f"<name>cat</name><difficult>0</difficult>{BOX}",
    ]
    data = read_split(write(tmp_path, {"a": xml(*objects)}), "train")
    assert data.classes == ("cat",)
    assert data.ignore.tolist() == [True, True, True, False]


def test_parts_are_not_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>"
    data = read_split(write(tmp_path, {"a": xml(f"<name>person</name>{BOX}{part}")}), "train")
    assert data.classes == ("person",)
    assert data.boxes.tolist() == [[2, 3, 10.5, 20]]


def test_unusable_objects_are_reported_with_their_line(tmp_path: Path) -> None:
    objects = [
        BOX,
        "<name>cat</name>",
        f"<name>cat</name>{BOX.replace('10.5', 'x')}",
        f"<name>cat</name>{BOX.replace('10.5', '2')}",
    ]
    root = write(tmp_path, {"a": xml(*objects)})
    data = read_split(root, "train")
    assert len(data.boxes) == 0
    file = root / "Annotations" / "a.xml"
    assert [p.where for p in data.problems] == [f"{file}:{line}" for line in (4, 6, 8, 10)]
    assert "zero-area" in data.problems[3].message


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"]
)
def test_size_from_the_image(tmp_path: Path, size: str) -> None:
    assert read_split(write(tmp_path, {"a": xml(size=size)}), "train").sizes.tolist() == [[40, 30]]


@pytest.mark.parametrize(
    ("filename", "found"),
    [
        ("", "b.jpg"),
        ("b", "b.jpg"),
        ("b.png", "b.jpg"),
        ("/home/me/data/b.jpg", "b.jpg"),
        ("C:\\data\\b.jpg", "b.jpg"),
        ("../../b.jpg", "b.jpg"),
        ("a.jpg", "a.jpg"),
    ],
)
def test_image_by_filename_or_stem(tmp_path: Path, filename: str, found: str) -> None:
    root = write(tmp_path, {"a": xml(), "b": xml(filename=filename)})
    assert read_split(root, "train").files[1] == found


def test_missing_image_is_refused_or_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": xml(filename="gone.jpg"), "b": xml()})
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images not found, first 'gone\.jpg'.*--data\.skip-broken"):
        read_split(root, "train")
    data = read_split(root, "train", ReadOptions(skip_broken=True))
    assert list(data.files) == ["b.jpg"]
    assert [problem.code for problem in data.problems] == ["skipped-image"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<object>\n</annotation>", r"a\.xml:3: broken XML"),
        ("", r"a\.xml:1: broken XML"),
        (
            '<!DOCTYPE x [\n<!ENTITY lol "lol">]>\n<annotation>&lol;</annotation>',
            r"a\.xml:2: entity declarations are refused",
        ),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"a\.xml"),
        ("<html></html>", "not a Pascal VOC annotation"),
    ],
)
def test_broken_and_hostile_xml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_split(write(tmp_path, {"a": text}), "train")


@pytest.mark.parametrize(
    ("line", "message"), [("gone", "'gone' is listed but there is no gone.xml"), ("../../x", "leads out")]
)
def test_bad_lists(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_split(write(tmp_path, {"a": xml()}, {"train": f"a\n{line}\n"}), "train")


def test_real_blood_cells(shared_data: Path) -> None:
    root = shared_data / "bccd" / "BCCD"
    splits = [read_split(root, name) for name in ("train", "val", "test")]
    assert [len(s) for s in splits] == [205, 87, 72]
    assert all(s.classes == ("Platelets", "RBC", "WBC") for s in splits)
    assert splits[0].name == "BCCD [train]"
    degenerate = [p for s in splits for p in s.problems if "zero-area" in p.message]
    assert sorted(Path(p.where.rpartition(":")[0]).name for p in degenerate) == [
        "BloodImage_00338.xml",
        "BloodImage_00343.xml",
    ]
    assert all(p.where.rpartition(":")[2].isdigit() for p in degenerate)
    assert sum(len(s.boxes) for s in splits) == 4888 - 2


def test_a_class_list_gives_the_order_and_classes_without_boxes(tmp_path: Path) -> None:
    files = {"a": xml(f"<name>dog</name>{BOX}", f"<name>cat</name>{BOX}", f"<name>ignore</name>{BOX}")}
    root = write(tmp_path, files)
    (root / "classes.txt").write_text("owl\ndog\nignore\n")
    data = read_split(root, "train")
    assert data.classes == ("owl", "dog", "cat")
    assert data.labels.tolist() == [1, 2, -1]
    [problem] = data.problems
    assert "a.xml:" in problem.where
    assert (problem.message, problem.action) == ("class 'cat' is not in classes.txt", "put after the listed classes")


def test_folders_below_annotations(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": xml(f"<name>dog</name>{BOX}")}, {"train": "a\nsub/a\n"})
    for folder in ("Annotations", "JPEGImages"):
        (root / folder / "sub").mkdir()
    text = xml(f"<name>cat</name>{BOX}", filename="sub/a.jpg")
    (root / "Annotations" / "sub" / "a.xml").write_text(text)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "sub" / "a.jpg")
    data = read_split(root, "train")
    assert list(data.files) == ["a.jpg", "sub/a.jpg"]
    assert data.classes == ("cat", "dog")


def test_an_image_without_a_usual_suffix(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": xml(filename="a.dat")})
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "a.dat", "png")
    assert list(read_split(root, "train").files) == ["a.dat"]


def test_images_without_an_xml_file_are_reported(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": xml(f"<name>cat</name>{BOX}"), "b": xml(filename="b.jpg")})
    (root / "Annotations" / "b.xml").unlink()
    (problem,) = read_split(root, "train").problems
    assert str(problem) == f"{root / 'JPEGImages/b.jpg'}: image without an XML file, left out"


def test_a_list_need_not_name_every_image(tmp_path: Path) -> None:
    files = {"a": xml(f"<name>cat</name>{BOX}"), "b": xml(filename="b.jpg")}
    assert not read_split(write(tmp_path, files, {"train": "a\n"}), "train").problems


def test_a_listed_name_with_a_space_is_told_whole(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": xml()}, {"train": "a\nphoto 3\n"})
    with pytest.raises(DataError, match=r"train\.txt:2: 'photo 3' is listed but there is no photo 3\.xml"):
        read_split(root, "train")


@pytest.mark.parametrize("twice", ["<name>dog</name>", BOX])
def test_an_object_with_two_names_or_boxes_is_dropped(tmp_path: Path, twice: str) -> None:
    root = write(tmp_path, {"a": xml(f"<name>cat</name>{BOX}{twice}", f"<name>cat</name>{BOX}")})
    data = read_split(root, "train")
    assert len(data.boxes) == 1
    assert data.problems[0].message.startswith("object with two <")


def test_a_difficult_flag_that_is_neither_0_nor_1_is_reported(tmp_path: Path) -> None:
    text = xml(*(f"<name>cat</name><difficult>{flag}</difficult>{BOX}" for flag in ("0", "1", "7")))
    data = read_split(write(tmp_path, {"a": text}), "train")
    assert data.ignore.tolist() == [False, True, False]
    assert [problem.message for problem in data.problems] == ["<difficult> is '7', neither 0 nor 1"]


def test_elements_inside_of_a_number_are_refused(tmp_path: Path) -> None:
    """Only the text after them would be left: 1<a/>0 is not 0."""
    text = xml(f"<name>cat</name>{BOX}").replace("10.5", "1<a/>0.5")
    with pytest.raises(DataError, match="<a> inside a text element; repair"):
        read_split(write(tmp_path, {"a": text}), "train")


def test_elements_without_end_take_no_time(tmp_path: Path) -> None:
    text = xml(f"<name>cat</name>{BOX}").replace("</annotation>", "<a>" * 200_000 + "</a>" * 200_000 + "</annotation>")
    began = time.perf_counter()
    assert len(read_split(write(tmp_path, {"a": text}), "train").boxes) == 1
    assert time.perf_counter() - began < 10


def test_a_split_whose_first_file_is_broken_is_refused_and_not_forgotten(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in ("a", "b"):
            (tmp_path / split / f"{name}.xml").write_text(xml(f"<name>cat</name>{BOX}", filename=f"{name}.jpg"))
            Image.new("RGB", (40, 30)).save(tmp_path / split / f"{name}.jpg")
    (tmp_path / "val" / "a.xml").write_bytes(b"\0\1\2")
    with pytest.raises(DataError, match=r"val/a\.xml:1: broken XML"):
        read_split(tmp_path, "val")


def test_a_pipe_instead_of_an_xml_file_is_not_opened(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": xml(), "b": xml()}, {"train": "a\n"})
    (root / "Annotations" / "a.xml").unlink()
    os.mkfifo(root / "Annotations" / "a.xml")
    with pytest.raises(DataError, match=r"a\.xml: not an XML file but a named pipe"):
        read_split(root, "train")


@pytest.mark.parametrize(("first", "noted"), [(0, False), (1, True), (4, True)])
def test_files_that_may_count_from_one_get_a_note(tmp_path: Path, first: int, noted: bool) -> None:
    """Nothing shows it: no box touches the left or top edge."""
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    for i in range(6):
        Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / f"{i}.jpg")
        box = (
            f"<xmin>{first + i}</xmin><ymin>{first + i}</ymin><xmax>{first + i + 9}</xmax><ymax>{first + i + 8}</ymax>"
        )
        size = "<size><width>40</width><height>30</height></size>"
        text = f"<annotation><filename>{i}.jpg</filename>{size}"
        text += f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        (tmp_path / "Annotations" / f"{i}.xml").write_text(text)
    data = read_split(tmp_path, "train")
    assert ("voc-origin" in [problem.code for problem in data.problems]) == noted
    assert data.boxes[0].tolist() == [first, first, first + 9, first + 8]
    moved = read_split(tmp_path, "train", ReadOptions(voc_origin="1"))
    assert "voc-origin" not in [problem.code for problem in moved.problems]


@pytest.mark.parametrize(
    "line",
    [
        "./images/{}.jpg ./annotations/{}.xml",
        "{}",
        "images/{}.jpg",
        "/home/me/voc/images/{}.jpg",
        "C:\\voc\\images\\{}.jpg",
    ],
)
def test_lists_of_splits_beside_the_folders(tmp_path: Path, line: str) -> None:
    for name in ("a", "b"):
        for folder in ("images", "annotations"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "annotations" / f"{name}.xml").write_text(xml(filename=f"{name}.jpg"))
    for split, name in (("train", "a"), ("valid", "b")):
        (tmp_path / f"{split}.txt").write_text(line.replace("{}", name) + "\n")
    (tmp_path / "label_list.txt").write_text("cat\n")
    assert [Path(file).name for file in read_split(tmp_path, "train").files] == ["a.jpg"]
    assert [Path(file).name for file in read_split(tmp_path, "val").files] == ["b.jpg"]
