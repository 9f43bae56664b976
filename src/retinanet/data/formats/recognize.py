"""Recognize the format of a dataset, and find its folder at or below the given one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from retinanet.data.dataset import Dataset
from retinanet.data.formats import coco, csv, voc, yolo
from retinanet.data.formats.reading import listing
from retinanet.errors import DataError

_FORMATS = """\
  COCO        instances_train.json, instances_val.json and images/; or train/_annotations.coco.json (Roboflow)
  Pascal VOC  Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt, val.txt; or train/*.xml, val/*.xml
  YOLO        data.yaml; or images/train, labels/train, images/val, labels/val and classes.txt; or obj.data (darknet)
  CSV         train.csv, val.csv with rows path,x1,y1,x2,y2,class, or with a header"""

# Folders below the given one that are entered in search of the dataset, one after the other.
_DEEPEST = 3
_PROBED_FOLDERS = 20

_Split = TypeVar("_Split")


def recognize(root: Path) -> dict[str, Callable[..., Dataset]]:
    """Return a reader for each split, from the first format that matches. Empty if no format matches."""
    return (
        _split_readers(coco.find, coco.read, root)
        or _split_readers(voc.find, voc.read, root)
        or _split_readers(yolo.find, yolo.read, root)
        or _split_readers(csv.find, csv.read, root)
    )


def place_of_dataset(root: Path) -> tuple[Path, int]:
    """Return the file or folder of the dataset, and how many levels it lies below ``root``.

    If a folder is not a dataset but exactly one of its sub-folders is, that sub-folder is the dataset.

    Raises:
        DataError: the format is not recognized.
    """
    place = root
    for depth in range(_DEEPEST):
        if recognize(place):
            return place, depth
        folders = listing(place)[0][:_PROBED_FOLDERS] if place.is_dir() else []
        folders = [folder for folder in folders if folder.name != "__MACOSX"]
        datasets = [folder for folder in folders if _is_dataset(folder)]
        if len(datasets or folders) != 1:
            break
        place = (datasets or folders)[0]
    raise _unrecognized(root, datasets)


def _unrecognized(root: Path, datasets: Sequence[Path]) -> DataError:
    if not root.is_dir():
        return DataError(
            f"{root}: not an annotation file; give a COCO .json, a .csv, a YOLO .yaml, a darknet .data or a folder"
        )
    found = sorted(entry for entry in os.listdir(root) if not entry.startswith("."))
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    advice = f"\ndid you mean {' or '.join(map(str, datasets[:4]))}?" if datasets else ""
    problem = f"no dataset recognized here (found {listed})" if found else "the folder is empty"
    return DataError(f"{root}: {problem}; supported layouts:\n{_FORMATS}{advice}")


def _split_readers(
    find: Callable[[Path], dict[str, _Split]], read: Callable[..., Dataset], root: Path
) -> dict[str, Callable[..., Dataset]]:
    return {split: partial(read, source, _title(root, split)) for split, source in find(root).items()}


def _is_dataset(folder: Path) -> bool:
    try:
        return bool(recognize(folder))
    except DataError:
        return False


def _title(root: Path, split: str) -> str:
    full = root.resolve()
    if not split:
        return full.stem if root.is_file() else full.name
    return f"{full.parent.name if root.is_file() else full.name} [{split}]"
