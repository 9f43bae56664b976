from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_coco import write_coco

from retinanet.data.formats.open_dataset import read_split
from retinanet.errors import DataError


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
    write_coco(tmp_path / "inner", {"train": ["a.png"]})
    data = read_split(tmp_path, "train")
    assert len(data) == 1
    assert [(p.code, p.where) for p in data.problems] == [("inner-folder", str(tmp_path / "inner"))]
    write_coco(tmp_path / "second", {"train": ["a.png"]})
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
