from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.verify import verify_images
from retinanet.errors import DataError


@pytest.fixture
def dataset(parts: Path, tmp_path: Path) -> Dataset:
    shutil.copytree(parts, tmp_path / "parts")
    return read_split(tmp_path / "parts", "train")


def break_image(dataset: Dataset, index: int) -> str:
    """Cut the file in half."""
    path = dataset.path(index)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def test_sound_dataset_comes_back_as_it_is(dataset: Dataset) -> None:
    counted: list[int] = []
    checked, remarks = verify_images(dataset, progress=counted.append)
    assert checked is dataset
    assert remarks == []
    assert sum(counted) == len(dataset) == 9


def test_broken_images_are_named(dataset: Dataset) -> None:
    names = [break_image(dataset, index) for index in (2, 5)]
    with pytest.raises(DataError) as failure:
        verify_images(dataset)
    message = str(failure.value)
    assert "2 of 9 images cannot be read" in message
    assert "--data.skip-broken" in message
    assert all(name in message for name in names)
    assert "\n" not in message


def test_many_broken_images_are_counted(dataset: Dataset) -> None:
    for index in range(6):
        break_image(dataset, index)
    with pytest.raises(DataError, match=r"6 of 9 images.* … and 3 more"):
        verify_images(dataset)


def test_broken_images_are_left_out_and_listed(dataset: Dataset) -> None:
    name = break_image(dataset, 2)
    checked, remarks = verify_images(dataset, skip_broken=True)
    assert len(checked) == 8
    assert name not in [Path(checked.files[i]).name for i in checked]
    assert len(remarks) == 1
    assert "left out" in remarks[0]
    assert name in remarks[0]
    for index in checked:  # the others keep their boxes
        before = list(dataset.files).index(checked.files[index])
        assert (checked.boxes[checked.rows(index)] == dataset.boxes[dataset.rows(before)]).all()


def test_missing_image(dataset: Dataset) -> None:
    dataset.path(0).unlink()
    with pytest.raises(DataError, match="no such image file"):
        verify_images(dataset)


def test_nothing_readable_is_an_error_even_when_skipping(dataset: Dataset) -> None:
    for index in dataset:
        dataset.path(index).write_bytes(b"")
    with pytest.raises(DataError, match="9 of 9") as failure:
        verify_images(dataset, skip_broken=True)
    assert "skip-broken" not in str(failure.value)


def test_image_of_another_size_gets_a_remark(dataset: Dataset) -> None:
    Image.new("RGB", (50, 40)).save(dataset.path(3))
    checked, remarks = verify_images(dataset)
    assert len(checked) == 9
    assert len(remarks) == 1
    assert "50×40" in remarks[0]
    assert "96×96" in remarks[0]
