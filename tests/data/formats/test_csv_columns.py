"""Tables of many tools: each row describes the box (10, 5, 30, 25) of class dog in a.jpg."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats.open_dataset import read_split

HEADERS = {
    "keras": "a.jpg,10,5,30,25,dog",
    "sku110k": "a.jpg,10,5,30,25,dog,40,30",
    "make-sense": "dog,10,5,20,20,a.jpg,40,30",
    "make-sense with header": "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
    "dog,10,5,20,20,a.jpg,40,30",
    "class first, corners": "class,path,xmin,ymin,xmax,ymax\ndog,a.jpg,10,5,30,25",
    "tensorflow": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,dog,10,5,30,25",
    "vott": '"image","xmin","ymin","xmax","ymax","label"\n"a.jpg",10.0,5.0,30.0,25.0,"dog"',
    "deepforest": "image_path,xmin,ymin,xmax,ymax,label,score\na.jpg,10,5,30,25,dog,0.9",
    "open images": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded\n"
    f"a,x,dog,1,0.25,0.75,{5 / 30},{25 / 30},0",
    "bbox text": 'image_id,width,height,bbox,label\na,40,30,"[10, 5, 20, 20]",dog',
    "center": "image,x_center,y_center,w,h,category\na.jpg,20,15,20,20,dog",
    "via": "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    'a.jpg,9,"{}",1,0,"{""name"":""rect"",""x"":10,""y"":5,""width"":20,""height"":20}","{""type"":""dog""}"',
    "via polygon": "#filename,region_shape_attributes,region_attributes\n"
    'a.jpg,"{""name"":""polygon"",""all_points_x"":[10,30,20],""all_points_y"":[25,6,5]}","{""k"":{""dog"":true}}"',
    "semicolons": "name;image;x1;y1;x2;y2\ndog;a.jpg;10,0;5,0;30,0;25,0",
    "kitti order": "frame,xmin,xmax,ymin,ymax,object_name\na.jpg,10,30,5,25,dog",
    "label name and number": "class_id,class_name,image,xmin,ymin,xmax,ymax\n7,dog,a.jpg,10,5,30,25",
}


@pytest.mark.parametrize("table", HEADERS.values(), ids=HEADERS)
def test_columns_are_recognized(tmp_path: Path, table: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    (tmp_path / "train.csv").write_text(table + "\n")
    for path in (tmp_path, tmp_path / "train.csv"):
        data = read_split(path, "train")
        assert data.boxes.tolist() == [pytest.approx([10, 5, 30, 25], abs=1e-4)]
        assert data.classes == ("dog",)


def test_sides_are_told_from_corners_by_the_numbers(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    (tmp_path / "train.csv").write_text("a.jpg,20,20,8,9,dog\na.jpg,30,10,5,5,dog\na.jpg,1,1,30,20,dog\n")
    data = read_split(tmp_path, "train")
    assert data.boxes.tolist() == [[20, 20, 28, 29], [30, 10, 35, 15], [1, 1, 31, 21]]


def test_a_table_without_classes_has_one_class_and_a_note(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    (tmp_path / "train.csv").write_text("image,x,y,w,h\na.jpg,1,2,3,4\na.jpg,1,2,9,9\n")
    data = read_split(tmp_path, "train")
    assert data.classes == ("object",)
    assert [(problem.code, problem.count) for problem in data.problems] == [("single-class", 2)]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("classes.csv", "dog,1\ncat,0\nowl,2\n"),
        ("classes.csv", "class,id\ndog,1\ncat,0\nowl,2\n"),
        ("classes.csv", "0,cat\n1,dog\n2,owl\n"),
        ("classes.txt", "cat\ndog\nowl\n"),
        ("my.names", "cat\ndog\nowl\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\ndog:::\nowl:::\n"),
    ],
)
def test_classes_and_their_order_come_from_the_files_of_other_tools(tmp_path: Path, path: str, names: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    (tmp_path / "train.csv").write_text("a.jpg,1,2,3,4,dog\n")
    (tmp_path / path).write_text(names)
    assert read_split(tmp_path, "train").classes == ("cat", "dog", "owl")


def test_the_folder_of_sku110k_is_read(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / f"{split}_0.jpg")
        row = f"{split}_0.jpg,1,2,30,20,object,40,30\n"
        (tmp_path / "annotations" / f"annotations_{split}.csv").write_text(row)
    for split in ("train", "val"):
        assert read_split(tmp_path, split).boxes.tolist() == [[1, 2, 30, 20]]
