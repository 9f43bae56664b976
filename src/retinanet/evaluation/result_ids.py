"""Recognize image and category numbers of a results file that are not the ids of the dataset.

Datasets without ids (YOLO, CSV, Pascal VOC) are numbered from 1 here, but other programs write the number in the name
of the image file, or count from 0. The ground truth shows which numbers are meant: with the right ones, more detections
lie on an object.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset
from retinanet.data.split_frames import read_as_stored
from retinanet.evaluation.matching import iou

# Number of detections that are compared with the ground truth.
_SAMPLE = 2000

# IoU from which a detection lies on an object.
_ON_OBJECT = 0.5

# Other numbers are meant if at least this many times as many detections lie on an object, and this fraction more.
_TIMES, _MORE = 2.0, 0.1

# Longest file number; a longer one is a time stamp or a hash.
_DIGITS = 18


class Numbering(NamedTuple):
    """Meaning of the numbers.

    Attributes:
        positions: position of each number's image (or label of each number's class) in the dataset.
        note: what the user should know; empty if the numbers are the dataset's ids.
    """

    positions: Mapping[int, int]
    note: str = ""


def image_numbering(dataset: Dataset, numbers: Sequence[int], boxes: npt.NDArray[np.float64]) -> Numbering:
    """Find out which images the numbers of detections mean.

    Args:
        dataset: images and ground truth.
        numbers: ``image_id`` of the detections.
        boxes: float64 ``(D, 4)`` ``xyxy``.
    """
    ids = {int(image): i for i, image in enumerate(dataset.image_ids)}
    if not numbers:
        return Numbering(ids)
    chosen = np.linspace(0, len(numbers) - 1, min(_SAMPLE, len(numbers))).astype(int)
    sample, corners = [numbers[i] for i in chosen], boxes[chosen]
    used = set(numbers)

    def on_objects(positions: Mapping[int, int]) -> float:
        places = [positions.get(number, -1) for number in sample]
        return float(_on_object(dataset, np.array(places), corners).mean())

    known = used <= ids.keys()
    base = on_objects(ids)
    others = (
        (_file_numbers(dataset), "the numbers in the file names", 0.0),
        ({i: i for i in dataset}, "positions, counted from 0", _MORE),
        ({i + 1: i for i in dataset}, "positions, counted from 1", _MORE),
    )
    best, note, score = ids, "", base if known else -1.0
    for positions, meaning, least in others:
        if used <= positions.keys() and any(positions[n] != ids.get(n) for n in used):
            found = on_objects(positions)
            enough = max(_TIMES * base, base + _MORE) if known else least
            if found >= enough and found > score:
                best, score = positions, found
                before = f" (with the dataset's ids {base:.0%})" if known else ""
                note = f"image_id is taken for {meaning}: so {found:.0%} of the detections lie on an object{before}"
    return Numbering(best, note)


def category_numbering(
    dataset: Dataset, numbers: Sequence[int], images: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> Numbering:
    """Find out which classes the numbers of detections mean.

    Args:
        dataset: classes and ground truth.
        numbers: ``category_id`` of the detections.
        images: position of each detection's image in the dataset; −1 if unknown.
        boxes: float64 ``(D, 4)`` ``xyxy``.
    """
    ids = {number: label for label, number in enumerate(dataset.category_ids)}
    shifted = {label: label for label in range(len(dataset.classes))}
    used = set(numbers)
    if not numbers or ids == shifted or not used <= shifted.keys():
        return Numbering(ids)
    chosen = np.linspace(0, len(numbers) - 1, min(_SAMPLE, len(numbers))).astype(int)
    truth = _labels_below(dataset, images[chosen], boxes[chosen])
    rows = truth >= 0
    sample = [n for n, row in zip((numbers[i] for i in chosen), rows.tolist(), strict=True) if row]
    if not sample:
        return Numbering(ids)
    right, before = (
        float(np.mean([positions.get(n, -1) == t for n, t in zip(sample, truth[rows].tolist(), strict=True)]))
        for positions in (shifted, ids)
    )
    enough = max(_TIMES * before, before + _MORE) if used <= ids.keys() else _MORE
    if right < enough:
        return Numbering(ids)
    note = f"category_id is taken for the number of the class, counted from 0: so {right:.0%} of the detections on an "
    return Numbering(shifted, f"{note}object have its class (with the dataset's ids {before:.0%})")


def _file_numbers(dataset: Dataset) -> dict[int, int]:
    """Position of each image by the number that its file name consists of; empty if two have the same number."""
    found: dict[int, int] = {}
    for index, file in enumerate(dataset.files):
        stem = os.path.splitext(file.replace("\\", "/").rsplit("/", 1)[-1])[0]
        digits = stem if stem.isdecimal() else stem.rpartition("_")[2]  # COCO_val2014_000000000042
        if digits.isdecimal() and len(digits) <= _DIGITS and found.setdefault(int(digits), index) != index:
            return {}
    return found


def _on_object(
    dataset: Dataset, images: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    return _labels_below(dataset, images, boxes) >= 0


def _labels_below(
    dataset: Dataset, images: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Label of the object that each detection lies on; −1 if it lies on none.

    In images that EXIF turns, the boxes may refer to the stored pixels. They are read so that more of them lie on an
    object.
    """
    labels = _labels_at(dataset, images, boxes)
    if dataset.orientations is None:
        return labels
    stored = _labels_at(dataset, images, read_as_stored(dataset, boxes, images, False))
    return stored if (stored >= 0).sum() > (labels >= 0).sum() else labels


def _labels_at(
    dataset: Dataset, images: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    labels = np.full(len(boxes), -1, dtype=np.int64)
    for index in np.unique(images[images >= 0]).tolist():
        rows, truth = np.flatnonzero(images == index), dataset.rows(index)
        if truth.start == truth.stop:
            continue
        others = dataset.boxes[truth].astype(np.float64)
        ious = iou(boxes[rows], others, np.zeros(len(others), dtype=np.bool_))
        best = ious.argmax(axis=1)
        hit = ious[np.arange(len(rows)), best] >= _ON_OBJECT
        labels[rows[hit]] = dataset.labels[truth][best[hit]]
    return labels
