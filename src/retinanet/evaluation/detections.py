"""Read the detections of any detector from a file in COCO's results format."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.class_names import class_key
from retinanet.data.dataset import Dataset
from retinanet.data.formats.reading import read_json, short
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.evaluation.detection_formats import SHARES, entries_of
from retinanet.evaluation.detection_frames import in_turned_frame
from retinanet.evaluation.result_ids import category_numbering, image_numbering

# A probability computed in float32 may be slightly above 1.
_ROUNDING = 1e-6

# Limit on coordinates in pixels. No image is this large.
_FAR = 1e9

_EXPECTED = "a list of detections, each with image_id, category_id, bbox and score"
_AMBIGUOUS = -1


@dataclass(frozen=True)
class DetectionFile:
    """A file of detections in COCO's results format. It can be evaluated in place of a detector."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


def read_detections(path: Path, dataset: Dataset) -> tuple[Detections, list[str]]:
    """Read detections on ``dataset``.

    The file holds a list of objects with ``image_id``, ``category_id``, ``bbox`` (``[x, y, width, height]`` in pixels)
    and ``score``. This list may also be the ``annotations`` of a JSON object.

    Ids are those of ``dataset``, unless more detections lie on objects with other numbers
    (:mod:`retinanet.evaluation.result_ids`). An image may be given by name instead, as ``file_name`` or as a string
    ``image_id``, with or without folder and suffix. A class may be given as ``category_name``. If the file has its own
    lists ``images`` or ``categories``, ids refer to those lists, and images and classes are matched with ``dataset`` by
    name.

    In images that EXIF turns, boxes refer to the turned image or to the stored pixels
    (:mod:`retinanet.evaluation.detection_frames`). The detections that are returned refer to the turned images.

    The other formats of ``retinanet detect`` are read too: a CSV file, or a folder of YOLO or Pascal VOC files.

    Args:
        path: the file or folder.
        dataset: the images that the detections are on.

    Returns:
        The detections in float64 and notes for the user. Detections are sorted by image; within an image they keep the
        order of the file.

    Raises:
        DataError: the file does not have this form, or a detection in it is invalid: an unknown image or category, a
            score outside 0 to 1, or an invalid box.
    """
    others = entries_of(Path(path))
    entries, listed = _sections(path, read_json(path, _EXPECTED)) if others is None else (others, {})
    images, classes = _Images(dataset, listed, path), _Classes(dataset, listed, path)
    renumbered = [*_renumber(dataset, entries, images, classes)]
    owners, labels, numbers, shares = array("q"), array("q"), array("d"), array("b")
    for number, entry in enumerate(entries, 1):
        where = f"{path}: detection {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {short(entry)}, not an object {{…}}; write {_EXPECTED}")
        box, score = _box(entry, where), _score(entry, where)
        owner, label = images.find(entry, number), classes.find(entry, number)
        if owner is not None and label is not None:
            owners.append(owner)
            labels.append(label)
            shares.append(SHARES in entry)
            unit = dataset.sizes[owner].tolist() * 2 if SHARES in entry else (1, 1, 1, 1)
            numbers.extend((*(side * length for side, length in zip(box, unit, strict=True)), score))
    images.refuse_unknown(len(entries))
    classes.refuse_unknown(len(entries))
    columns = np.array(numbers, dtype=np.float64).reshape(-1, 5)
    order = np.argsort(np.array(owners, dtype=np.int64), kind="stable")
    columns = columns[order]
    predictions = Detections(
        np.array(owners, dtype=np.int64)[order],
        np.column_stack([columns[:, :2], columns[:, :2] + columns[:, 2:4]]),
        columns[:, 4],
        np.array(labels, dtype=np.int64)[order],
    )
    predictions, frame = in_turned_frame(dataset, predictions, np.array(shares, dtype=np.bool_)[order])
    notes = [*renumbered, *([frame] if frame else []), *classes.notes(), *_notes(path, dataset, predictions)]
    return predictions, notes


def _sections(path: Path, content: Any) -> tuple[list[Any], dict[str, Any]]:
    """Split the file's content into its detections and its lists of images and categories."""
    if isinstance(content, list):
        return content, {}
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {short(content)}; expected {_EXPECTED}")
    if not isinstance(content.get("annotations"), list):
        keys = ", ".join(map(short, list(content)[:6])) or "nothing"
        raise DataError(f"{path}: an object without a list 'annotations' (found {keys}); expected {_EXPECTED}")
    return content["annotations"], content


def _renumber(dataset: Dataset, entries: list[Any], images: _Images, classes: _Classes) -> Iterator[str]:
    """Find out what plain numbers of images and classes mean, and yield notes for the user."""
    plain = [e for e in entries if isinstance(e, dict) and _is_box(e.get("bbox"))]
    if images.listed:
        return
    rows = [e for e in plain if type(_key(e.get("image_id"))) is int and e.get("file_name") is None]
    boxes = np.array([e["bbox"] for e in rows], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    numbers = [_key(e["image_id"]) for e in rows]
    found = image_numbering(dataset, numbers, boxes)
    images.ids = found.positions
    if found.note:
        yield found.note
    if classes.listed or not all(type(_key(e.get("category_id"))) is int and "category_name" not in e for e in rows):
        return
    places = np.array([images.ids.get(number, -1) for number in numbers], dtype=np.int64)
    meaning = category_numbering(dataset, [_key(e["category_id"]) for e in rows], places, boxes)
    classes.ids = meaning.positions
    if meaning.note:
        yield meaning.note


class _Images:
    """Finds the position of a detection's image in the dataset."""

    def __init__(self, dataset: Dataset, listed: dict[str, Any], path: Path) -> None:
        self._dataset, self._path = dataset, path
        self.ids: Mapping[int, int] = {int(image): i for i, image in enumerate(dataset.image_ids)}
        self._names: dict[str, int] = {}
        files = [file.replace("\\", "/") for file in dataset.files]
        for i, file in enumerate(files):
            for name in (os.path.splitext(file)[0], *_without_folder(file)):
                self._names[name] = i if self._names.get(name, i) == i else _AMBIGUOUS
        self._names.update((file, i) for i, file in enumerate(files))
        self.listed = {
            _key(image["id"]): image["file_name"]
            for image in _objects(listed.get("images"), f"{path}: 'images'")
            if "id" in image and isinstance(image.get("file_name"), str)
        }
        self._unknown: list[tuple[int, object]] = []

    def find(self, entry: dict[str, Any], number: int) -> int | None:
        """Find the position of the image; ``None`` if the dataset does not have it."""
        where = f"{self._path}: detection {number}"
        name, image = entry.get("file_name"), _key(entry.get("image_id"))
        if name is None and image is None:
            what = f"image_id {short(entry['image_id'])}" if "image_id" in entry else "no 'image_id'"
            raise DataError(f"{where} has {what}; give the image's id as a whole number, or its file name")
        if name is None:
            name = self.listed.get(image, image if isinstance(image, str) else None)
        if name is not None and not isinstance(name, str):
            raise DataError(f"{where} has file_name {short(name)}; write it as text")
        if name is None:
            found = self.ids.get(image)
        else:
            found = self._by_name(name, where)
            if found is None and name == image and name.isdecimal() and len(name) < 20:
                found = self.ids.get(int(name))
        if found is None:
            self._unknown.append((number, image if name is None else name))
        return found

    def _by_name(self, name: str, where: str) -> int | None:
        file = name.replace("\\", "/")
        for candidate in (file, *_without_folder(file)):
            if (found := self._names.get(candidate)) == _AMBIGUOUS:
                raise DataError(f"{where} is of {short(name)}, the name of several images; add the folder")
            if found is not None:
                return found
        return None

    def refuse_unknown(self, total: int) -> None:
        """Raise DataError if the dataset lacks any image."""
        if self._unknown:
            number, image = self._unknown[0]
            example = f"{self._dataset.files[0]!r} (id {self._dataset.image_ids[0]})"
            raise DataError(
                f"{self._path}: {len(self._unknown)} of {total} detections are of images that are not in "
                f"{self._dataset.name}, first detection {number} of {short(image)}; choose another --split, use the "
                f"names of the dataset's images (the first is {example}), or remove these detections"
            )


class _Classes:
    """Finds the label of a detection's class in the dataset."""

    def __init__(self, dataset: Dataset, listed: dict[str, Any], path: Path) -> None:
        self._dataset, self._path = dataset, path
        self.ids: Mapping[int, int] = {number: label for label, number in enumerate(dataset.category_ids)}
        self._labels = {name: label for label, name in enumerate(dataset.classes)}
        self._spelled = {class_key(name): label for label, name in enumerate(dataset.classes)}
        self.listed = {
            _key(category["id"]): category["name"].strip()
            for category in _objects(listed.get("categories"), f"{path}: 'categories'")
            if "id" in category and isinstance(category.get("name"), str)
        }
        self._unknown: list[tuple[int, object]] = []
        self._left_out: Counter[str] = Counter()

    def find(self, entry: dict[str, Any], number: int) -> int | None:
        """Find the label of the class; ``None`` if the dataset does not have it."""
        where = f"{self._path}: detection {number}"
        name, category = entry.get("category_name"), _key(entry.get("category_id"))
        if name is not None and not isinstance(name, str):
            raise DataError(f"{where} has category_name {short(name)}; write it as text")
        if name is None and type(category) is not int:
            what = f"category_id {short(entry['category_id'])}" if "category_id" in entry else "no 'category_id'"
            raise DataError(f"{where} has {what}; give the category's id as a whole number, or its 'category_name'")
        name = self.listed.get(category) if name is None else name.strip()
        if name is not None:
            found = self._labels.get(name, self._spelled.get(class_key(name)))
            self._left_out[name] += found is None
        else:
            found = self.ids.get(category) if not self.listed else None
            if found is None:
                self._unknown.append((number, category))
        return found

    def refuse_unknown(self, total: int) -> None:
        """Raise DataError if any category id is unknown, or if all category names are unknown."""
        names = self._dataset.classes
        known = ", ".join(f"{i} {name}" for i, name in list(zip(self._dataset.category_ids, names, strict=True))[:8])
        known += " …" if len(names) > 8 else ""
        if self._unknown:
            number, category = self._unknown[0]
            place = "the file's 'categories'" if self.listed else f"{self._dataset.name} ({known})"
            raise DataError(
                f"{self._path}: {len(self._unknown)} of {total} detections have a category_id that is not in {place}, "
                f"first detection {number} with {short(category)}; use those ids, add 'category_name' to the "
                "detections, or remove them"
            )
        if total and self._left_out.total() == total:
            raise DataError(
                f"{self._path}: no detection is of a class of {self._dataset.name} ({known}); the classes in the file "
                f"are {_some(self._left_out)}; use the dataset's names"
            )

    def notes(self) -> Iterator[str]:
        """Describe the detections that were left out."""
        if self._left_out.total():
            yield (
                f"detections left out: {self._left_out.total()}, of classes that {self._dataset.name} does not have: "
                f"{_some(self._left_out)}"
            )


def _box(entry: dict[str, Any], where: str) -> list[float]:
    bbox = entry.get("bbox")
    if bbox is None:
        raise DataError(f"{where} has no 'bbox'; add [x, y, width, height]")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise DataError(f"{where} has bbox {short(bbox)}; write [x, y, width, height]")
    for value in bbox:
        if type(value) not in (int, float) or not -_FAR < value < _FAR:  # NaN compares false
            raise DataError(f"{where} has {short(value)} in its bbox; write four finite numbers, in pixels")
    if bbox[2] < 0 or bbox[3] < 0:
        raise DataError(f"{where} has bbox {bbox} with a negative side; write [x, y, width, height], not corners")
    return [float(value) for value in bbox]


def _is_box(bbox: Any) -> bool:
    return (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(type(value) in (int, float) and -_FAR < value < _FAR for value in bbox)
    )


def _score(entry: dict[str, Any], where: str) -> float:
    score = entry.get("score")
    if score is None:
        raise DataError(f"{where} has no 'score'; give a file of detections, not of annotations, with a score each")
    if type(score) not in (int, float) or not 0 <= score <= 1 + _ROUNDING:
        raise DataError(f"{where} has score {short(score)}; scores must be numbers from 0 to 1")
    return min(1.0, float(score))


def _notes(path: Path, dataset: Dataset, found: Detections) -> Iterator[str]:
    """Describe properties of the whole file that often result from a mistake, such as wrong units."""
    count = len(found.scores)
    if not count:
        yield f"{path} holds no detections: all objects are false negatives"
        return
    flat = int((found.boxes[:, 2:] <= found.boxes[:, :2]).any(axis=1).sum())
    if flat:
        yield f"boxes without area: {flat}; they count as false positives, as in COCO's own evaluation"
    rows = np.column_stack([found.images, found.labels, found.boxes, found.scores])
    rows = rows[np.lexsort(rows.T)]
    twice = int((rows[1:] == rows[:-1]).all(axis=1).sum())
    if twice:
        yield f"exact copies of another detection: {twice}; of several on one object, all but one are false positives"
    sizes = dataset.sizes[found.images]
    outside = (found.boxes[:, 2:] > 1.1 * sizes).any(axis=1) | (found.boxes[:, :2] < -0.1 * sizes).any(axis=1)
    if outside.mean() > 0.1:
        yield (
            f"{outside.mean():.0%} of the boxes extend far beyond their images; is 'bbox' [x, y, width, height] in "
            "pixels of the original images, and is 'image_id' correct?"
        )
    elif found.boxes.max() <= 2:
        yield "all boxes lie within 2 pixels of the corner; 'bbox' must be in pixels, not in fractions of the image"
    empty = len(dataset) - len(np.unique(found.images))
    if 2 * empty > len(dataset):
        yield f"{empty} of {len(dataset)} images have no detections; does the file belong to this split?"


def _without_folder(file: str) -> tuple[str, str]:
    """The name and the stem of a file."""
    name = file.rsplit("/", 1)[-1]
    return name, os.path.splitext(name)[0]


def _objects(section: Any, where: str) -> list[dict[str, Any]]:
    if section is not None and not (isinstance(section, list) and all(isinstance(item, dict) for item in section)):
        raise DataError(f"{where} is not a list of objects {{…}}; write it as in COCO files, or leave it out")
    return section or []


def _key(value: Any) -> Any:
    """Convert an id to an int or a string. A float like 3.0 becomes an int. ``None`` if it is not an id."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) in (int, str) else None


def _some(counts: Counter[str]) -> str:
    listed = [(name, count) for name, count in counts.most_common() if count]
    return ", ".join(f"{short(name)} {count}" for name, count in listed[:5]) + (" …" if len(listed) > 5 else "")
