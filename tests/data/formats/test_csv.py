from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats import csv
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.formats.train_val import read_train_val
from retinanet.errors import DataError


def write(root: Path, content: str | bytes, file: str = "train.csv") -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (root / "img").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / "img" / name)
    (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


ROWS = "img/a.jpg,1,2,10,20,dog\nimg/b.jpg,,,,,\nimg/a.jpg,5,5,9,9.5,cat\nimg/c.jpg\n"


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        "path,x1,y1,x2,y2,class\n" + ROWS,
        b"\xef\xbb\xbf" + ROWS.encode(),
        ROWS.replace(",", ";"),
        ROWS.replace(",", "\t"),
        ROWS.replace("\n", "\r\n"),
        ROWS.replace("img/", "img\\"),
        ROWS.replace("\n", "\n\n"),
    ],
)
def test_variants(tmp_path: Path, content: str | bytes) -> None:
    data = read_split(write(tmp_path, content), "train")
    assert list(data.files) == ["img/a.jpg", "img/b.jpg", "img/c.jpg"]
    assert data.classes == ("cat", "dog")
    assert data.boxes.tolist() == [[1, 2, 10, 20], [5, 5, 9, 9.5]]
    assert data.labels.tolist() == [1, 0]
    assert data.offsets.tolist() == [0, 2, 2, 2]
    assert data.sizes.tolist() == [[40, 30]] * 3
    assert not data.problems


def test_decimal_commas(tmp_path: Path) -> None:
    data = read_split(write(tmp_path, "img/a.jpg;1,5;2;10;20;dog\n"), "train")
    assert data.boxes.tolist() == [[1.5, 2, 10, 20]]


def test_columns_of_other_tools(tmp_path: Path) -> None:
    content = "filename,width,height,class,xmin,ymin,xmax,ymax\nimg/a.jpg,40,30,cat,1,2,3,4\n"
    assert read_split(write(tmp_path, content), "train").boxes.tolist() == [[1, 2, 3, 4]]


def test_splits_share_their_classes(tmp_path: Path) -> None:
    write(tmp_path, "img/a.jpg,1,2,10,20,dog\n")
    write(tmp_path, "img/b.jpg,1,2,10,20,ant\nimg/b.jpg,1,2,10,20,IGNORE\n", "val.csv")
    write(tmp_path, "dog,0\nant,1\n", "classes.csv")
    assert sorted(csv.find(tmp_path)) == ["train", "val"]
    train, val, _ = read_train_val(tmp_path)
    assert train.classes == val.classes == ("dog", "ant")  # as classes.csv orders them
    assert val.ignore.tolist() == [False, True]


def test_absolute_paths(tmp_path: Path) -> None:
    root = write(tmp_path, f"{tmp_path}/img/a.jpg,1,2,3,4,cat\n", "boxes.csv")
    assert read_split(root, "train").path(0) == tmp_path / "img" / "a.jpg"
    assert read_split(root / "boxes.csv", "train").name == "boxes"


def test_malformed_rows_are_reported(tmp_path: Path) -> None:
    rows = [
        "img/a.jpg,1,2,10,20,dog",
        "img/b.jpg,1,2,x,20,dog",
        "img/b.jpg,1,2,3",
        "img/b.jpg,1,2,3,4,",
        ",1,2,3,4,dog",
    ]
    rows += ["img/a.jpg,nan,2,3,4,dog"]
    data = read_split(write(tmp_path, "\n".join(rows)), "train")
    assert list(data.files) == ["img/a.jpg"]
    assert [p.where.split(" ")[0] for p in data.problems] == [
        f"{tmp_path / 'train.csv'}:{line}" for line in (2, 3, 4, 5, 6)
    ]
    assert data.problems[-1].where.endswith("(image img/a.jpg)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ("a.jpg,b,c\nfoo,1,2\n", r"no row can be used \(.*train\.csv:1"),
        (b"img/a.jpg,1,2,3,4,\xff\n", "not UTF-8"),
        ('"' + "x" * 200_000, "not a CSV row"),
        ("a\0b.jpg,1,2,3,4,cat", "possible file name"),
        ("img/gone.jpg,1,2,3,4,cat", "1 of 1 images not found, first 'img/gone.jpg'"),
    ],
)
def test_unusable_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_split(write(tmp_path, content) / "train.csv", "train")


def test_a_class_list_gives_the_order_and_classes_without_boxes(tmp_path: Path) -> None:
    root = write(tmp_path, ROWS + "img/a.jpg,1,1,2,2,ant\nimg/a.jpg,1,1,2,2,ant\nimg/c.jpg,1,1,2,2,ignore\n")
    (root / "classes.txt").write_text("owl\r\n\ndog\nIgnore\n")
    data = read_split(root, "train")
    assert data.classes == ("owl", "dog", "ant", "cat")
    assert data.labels.tolist() == [1, 3, 2, 2, -1]
    assert [str(p).removeprefix(str(root)) for p in data.problems] == [
        "/train.csv:3 (image img/a.jpg): class 'cat' is not in classes.txt, put after the listed classes",
        "/train.csv:5 (image img/a.jpg): class 'ant' is not in classes.txt, put after the listed classes",
    ]
    assert read_split(root / "train.csv", "train").classes == data.classes


def test_a_class_list_with_a_name_twice(tmp_path: Path) -> None:
    root = write(tmp_path, ROWS)
    (root / "classes.txt").write_text("cat\ncat\n")
    data = read_split(root, "train")
    assert data.classes == ("cat", "dog")
    assert data.class_counts() == {"cat": 1, "dog": 1}


def test_semicolons_in_a_class_are_no_delimiters(tmp_path: Path) -> None:
    root = write(tmp_path, "path,x1,y1,x2,y2,class\nimg/a.jpg,1,2,3,4,a;b;c;d;e;f\n")
    assert read_split(root, "train").classes == ("a;b;c;d;e;f",)


def test_a_file_beside_a_split_is_a_split_of_its_own_name(tmp_path: Path) -> None:
    root = write(tmp_path, ROWS)
    write(root, ROWS, "night.csv")
    assert sorted(csv.find(root)) == ["night", "train"]


def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path) -> None:
    """It would swallow all rows after it as one cell."""
    rows = ["img/a.jpg,1,2,10,20,dog", 'img/a.jpg,1,2,10,20,"dog', "img/b.jpg,1,2,10,20,dog"]
    with pytest.raises(DataError, match=r"train\.csv:3: not a CSV row .*; correct its quotes"):
        read_split(write(tmp_path, "\n".join(rows)), "train")


@pytest.mark.parametrize("text", ["", "\ufeff\n", "hello"])
def test_a_broken_val_file_is_refused_and_not_forgotten(tmp_path: Path, text: str) -> None:
    write(tmp_path, "img/a.jpg,1,2,10,20,dog\nimg/b.jpg,1,2,10,20,dog\n")
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(DataError, match=r"val\.csv"):
        read_train_val(tmp_path)


def test_a_missing_image_is_named_with_the_row_that_wants_it(tmp_path: Path) -> None:
    root = write(tmp_path, "img/a.jpg,1,2,10,20,dog\nimg/gone.jpg,1,2,10,20,dog\n")
    with pytest.raises(DataError, match=r"1 of 2 images not found, first 'img/gone\.jpg' \(.*train\.csv:2\)"):
        read_split(root, "train")


@pytest.mark.parametrize("box", ["{'x': 1, 'y': 2, 'width': 3, 'height': 4}", "{'xmin':1,'ymin':2,'xmax':4,'ymax':6}"])
def test_box_with_keys_in_one_cell(tmp_path: Path, box: str) -> None:
    data = read_split(write(tmp_path, f'image,label,bbox\nimg/a.jpg,dog,"{box}"\n'), "train")
    assert data.boxes.tolist() == [[1, 2, 4, 6]]


def test_corners_of_a_region_of_interest_are_not_mistaken_for_the_size_of_the_image(tmp_path: Path) -> None:
    content = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\nimg/a.jpg;40;30;1;2;4;6;7\n"
    assert read_split(write(tmp_path, content), "train").boxes.tolist() == [[1, 2, 4, 6]]


def test_splits_in_a_column(tmp_path: Path) -> None:
    head, boxes = "split,image_path,label,x1,y1,x2,y2\n", "TRAIN,img/a.jpg,dog,1,2,4,6\nVAL,img/b.jpg,cat,1,2,4,7\n"
    write(tmp_path, head + boxes + "TRAIN,img/c.jpg,,,,,\n", "boxes.csv")
    train, val, notes = read_train_val(tmp_path)
    assert (list(train.files), list(val.files)) == (["img/a.jpg", "img/c.jpg"], ["img/b.jpg"])
    assert train.classes == val.classes == ("cat", "dog")
    assert not notes


def test_column_set_without_names_of_splits_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, "set,image_path,label,x1,y1,x2,y2\nA7,img/a.jpg,dog,1,2,4,6\n", "boxes.csv")
    assert len(read_split(tmp_path, "train")) == 1


def test_text_of_excel_in_utf_16(tmp_path: Path) -> None:
    content = "path\tx1\ty1\tx2\ty2\tclass\nimg/a.jpg\t1\t2\t4\t6\tKäfer\n".encode("utf-16")
    assert read_split(write(tmp_path, content, "boxes.csv"), "train").classes == ("Käfer",)
