"""Write COCO JSON: ``annotations/instances_{split}.json`` and the images of each split in ``images/{split}/``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.dataset import IGNORE_CLASS, NO_CLASS, Dataset
from retinanet.data.formats.writing import ImageMode, ProgressCallback, SplitImages, check_splits, decimals
from retinanet.files import new_folder


def write(
    splits: Mapping[str, Dataset],
    out: Path,
    images: ImageMode = "copy",
    progress: ProgressCallback = lambda images: None,
) -> None:
    """Write a COCO dataset.

    Args:
        splits: datasets by the names of their splits, all with one list of classes.
        out: folder to make.
        images: ``copy`` them, ``link`` to each file (hard links if the disk supports them), or ``none``: make each
            ``images/{split}`` a link to the folder of the images.
        progress: called with the number of images just written.

    Raises:
        RetinaNetError: ``out`` is not empty or cannot be written, or images are missing.
    """
    check_splits(splits)
    regions = any((dataset.labels == NO_CLASS).any() for dataset in splits.values())
    with new_folder(out) as folder:
        for split, dataset in splits.items():
            files = SplitImages.of(split, dataset)
            files.place(folder / "images" / split, images, progress)
            file = folder / "annotations" / f"instances_{split}.json"
            file.parent.mkdir(exist_ok=True)
            with file.open("w", encoding="utf-8", errors="backslashreplace") as handle:  # the escape is valid JSON
                handle.writelines(_content(dataset, files.names, regions))


def category_ids(dataset: Dataset) -> tuple[int, ...]:
    """Category ids to write: the dataset's ids, or 1..K if the ids are not in the order of the classes."""
    own = dataset.category_ids
    return own if list(own) == sorted(set(own)) else tuple(range(1, len(own) + 1))


def _content(dataset: Dataset, names: list[str], regions: bool) -> Iterator[str]:
    ids = category_ids(dataset)
    # Each class is its own supercategory. Roboflow's exports have a category 0 without boxes, whose name is the
    # supercategory of all classes. With a shared supercategory, readers could take a class of that name for it.
    categories = [{"id": i, "name": c, "supercategory": c} for i, c in zip(ids, dataset.classes, strict=True)]
    without_class = max((0, *ids)) + 1
    if regions:
        categories.append({"id": without_class, "name": IGNORE_CLASS, "supercategory": IGNORE_CLASS})
    sections: dict[str, Iterable[dict[str, Any]]] = {
        "categories": categories,
        "images": _images(dataset, names),
        # Label NO_CLASS is −1 and selects the last entry.
        "annotations": _annotations(dataset, [*ids, without_class]),
    }
    yield '{"info": {"description": ' + json.dumps(dataset.name) + "}"
    for key, rows in sections.items():  # write row by row, because millions of annotations do not fit into one string
        yield f',\n"{key}": ['
        for number, row in enumerate(rows):
            yield (",\n" if number else "\n") + json.dumps(row, ensure_ascii=False)
        yield "\n]"
    yield "}\n"


def _images(dataset: Dataset, names: list[str]) -> Iterator[dict[str, Any]]:
    for number, name, (width, height) in zip(dataset.image_ids.tolist(), names, dataset.sizes.tolist(), strict=True):
        yield {"id": number, "file_name": name, "width": width, "height": height}


def _annotations(dataset: Dataset, ids: list[int]) -> Iterator[dict[str, Any]]:
    number = 0
    for index in dataset:
        rows = dataset.rows(index)
        areas = decimals(dataset.areas[rows, None])
        for row, corners, (area,) in zip(
            range(rows.start, rows.stop), decimals(dataset.boxes[rows]), areas, strict=True
        ):
            number += 1
            yield {
                "id": number,
                "image_id": int(dataset.image_ids[index]),
                "category_id": ids[dataset.labels[row]],
                "bbox": _xywh(corners, dataset.boxes[row]),
                "area": _number(area),
                "iscrowd": int(dataset.ignore[row]),
                "segmentation": [],
            }


def _xywh(corners: list[str], box: Any) -> list[float]:
    x1, y1, x2, y2 = map(_number, corners)
    return [x1, y1, _extent(x1, x2, box[2]), _extent(y1, y2, box[3])]


def _extent(start: float, end: float, exact: np.float32) -> float:
    """Shortest width or height from which a reader computes the same float32."""
    for digits in (2, 4, 6):
        extent = round(end - start, digits)
        if np.float32(start + extent) == exact:
            return extent
    return float(exact) - start


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)
