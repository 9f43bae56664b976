from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.evaluation.result_ids import category_numbering, image_numbering


def dataset(names: list[str], category_ids: tuple[int, ...] = (1, 2)) -> Dataset:
    """One image for each name, with one box in a place of its own; ids count from 1."""
    builder = DatasetBuilder("toy", Path("/data"), ("cat", "dog"), category_ids)
    for i, name in enumerate(names):
        builder.add_image(name, 1000, 100)
        builder.add_box((40 * i, 10, 40 * i + 30, 40), i % 2, "")
    return builder.build()


def boxes_of(data: Dataset) -> npt.NDArray[np.float64]:
    return data.boxes.astype(np.float64)


NAMES = [f"{n}.jpg" for n in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9)]  # sorted as text
FILE_NUMBERS = [int(name.removesuffix(".jpg")) for name in NAMES]


def test_ids_of_the_dataset_are_kept() -> None:
    data = dataset(NAMES)
    found = image_numbering(data, data.image_ids.tolist(), boxes_of(data))
    assert found.note == ""
    assert found.positions == {i + 1: i for i in range(12)}


@pytest.mark.parametrize("prefix", ["", "val/", "COCO_val2014_0000"])
def test_numbers_in_file_names_are_recognized(prefix: str) -> None:
    data = dataset([prefix + name for name in NAMES])
    found = image_numbering(data, FILE_NUMBERS, boxes_of(data))
    assert [found.positions[n] for n in FILE_NUMBERS] == list(range(12))
    assert "file names" in found.note
    assert "100%" in found.note


def test_positions_from_zero_are_recognized() -> None:
    data = dataset([f"photo{c}.jpg" for c in "abcdefgh"])
    found = image_numbering(data, list(range(8)), boxes_of(data))
    assert [found.positions[n] for n in range(8)] == list(range(8))
    assert "counted from 0" in found.note


def test_unknown_ids_are_file_numbers_even_of_a_poor_detector() -> None:
    data = dataset([f"{n}.jpg" for n in (901, 905, 907)])
    found = image_numbering(data, [905, 907], np.array([[0, 80, 5, 99], [0, 80, 5, 99]], dtype=np.float64))
    assert found.positions == {901: 0, 905: 1, 907: 2}


def test_without_evidence_the_ids_of_the_dataset_are_kept() -> None:
    data = dataset(NAMES)
    nowhere = np.tile(np.array([[900.0, 80, 950, 99]]), (12, 1))
    assert image_numbering(data, FILE_NUMBERS, nowhere).note == ""
    assert image_numbering(data, [], np.zeros((0, 4))).note == ""


def test_equal_file_numbers_in_two_folders_are_no_numbers() -> None:
    data = dataset(["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    assert image_numbering(data, [1, 2], boxes_of(data)[:2]).note == ""


def test_classes_counted_from_zero_are_recognized() -> None:
    data = dataset(NAMES)
    images = np.arange(12)
    labels = data.labels.tolist()
    found = category_numbering(data, labels, images, boxes_of(data))
    assert found.positions == {0: 0, 1: 1}
    assert "counted from 0" in found.note
    ids = [data.category_ids[label] for label in labels]
    assert category_numbering(data, ids, images, boxes_of(data)).positions == {1: 0, 2: 1}


def test_class_numbers_that_are_ids_keep_their_meaning() -> None:
    data = dataset(NAMES, (0, 5))
    rows = np.flatnonzero(data.labels == 0)
    assert category_numbering(data, [0] * len(rows), rows, boxes_of(data)[rows]).note == ""
