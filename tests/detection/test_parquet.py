"""Parquet files as sources and as results of ``retinanet detect``."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest

from retinanet.data.images import read_image
from retinanet.detection.run import detect
from retinanet.detection.sources import find_images
from retinanet.errors import DataError
from stub_detector import StubDetector

pyarrow = pytest.importorskip("pyarrow", reason="the extra [scale] is not installed")
parquet = pytest.importorskip("pyarrow.parquet")


def write(file: Path, groups: int = 100, **columns: object) -> str:
    parquet.write_table(pyarrow.table(columns), file, row_group_size=groups)
    return str(file)


@pytest.fixture
def files(parts: Path) -> list[Path]:
    return sorted((parts / "images").glob("*.jpg"))[:7]


def test_a_column_of_paths_names_files(files: list[Path], tmp_path: Path) -> None:
    absolute = find_images([write(tmp_path / "a.parquet", path=[str(path) for path in files])])
    assert [image.address for image in absolute] == [str(path) for path in files]
    relative = find_images([write(files[0].parent.parent / "b.parquet", file_name=[f"images/{f.name}" for f in files])])
    (files[0].parent.parent / "b.parquet").unlink()
    np.testing.assert_array_equal(relative[3].read(), read_image(files[3]))


@pytest.mark.parametrize("structure", [False, True])
def test_a_column_of_bytes_holds_images(files: list[Path], tmp_path: Path, structure: bool) -> None:
    """In a structure with the fields bytes and path, as Hugging Face writes it, or as plain bytes."""
    content = [path.read_bytes() for path in files]
    column = [{"bytes": each, "path": "x"} for each in content] if structure else content
    images = find_images([write(tmp_path / "a.parquet", groups=3, image=column)])
    assert [image.address for image in images] == [f"{tmp_path}/a.parquet#{row}" for row in range(7)]
    for image, path in zip(pickle.loads(pickle.dumps(images)), files, strict=True):
        np.testing.assert_array_equal(image.read(), read_image(path))
        assert image.header_size() == (96, 96)


def test_rows_without_an_image_fail_alone(files: list[Path], tmp_path: Path) -> None:
    rows = [files[0].read_bytes(), None, b"no image", files[1].read_bytes()]
    source = write(tmp_path / "a.parquet", bytes=rows)
    found = detect(StubDetector(), source, tmp_path / "out")
    assert (found.images, found.failed) == (2, 2)
    assert "a.parquet#1: the row has no image; remove it" in found.failures[0]
    assert "a.parquet#2" in found.failures[1]


def test_files_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    for source, expected in (
        (str(tmp_path / "broken.parquet"), "not a readable Parquet file"),
        (write(tmp_path / "other.parquet", name=["a"]), "no column path, file_name, bytes, image; name the column"),
        (write(tmp_path / "empty.parquet", path=pyarrow.array([], pyarrow.string())), "has no rows"),
    ):
        with pytest.raises(DataError, match=expected):
            find_images([source])


def test_detections_are_written_as_rows(files: list[Path], tmp_path: Path) -> None:
    detect(StubDetector(), files[0].parent, tmp_path / "out", formats=("csv", "parquet"))
    rows = parquet.read_table(tmp_path / "out" / "detections.parquet").to_pylist()
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        assert (row["path"], row["class"] or "") == (other["path"], other["class"])
        assert (row["width"], row["height"]) == (96, 96)
        if other["score"]:
            sides = [float(other[side]) for side in ("x1", "y1", "x2", "y2", "score")]
            np.testing.assert_allclose([row[side] for side in ("x1", "y1", "x2", "y2", "score")], sides, rtol=1e-6)
