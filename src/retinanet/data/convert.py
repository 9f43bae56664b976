"""A dataset of one format written in another, and what the other cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.data.formats import write_coco, write_csv, write_voc, write_yolo
from retinanet.data.formats.writing import Images, Pictures, Progress
from retinanet.data.images import image_size
from retinanet.errors import DataError

Format = Literal["coco", "voc", "yolo", "csv"]

TITLES: dict[Format, str] = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO", "csv": "CSV"}
_WRITERS = {"coco": write_coco.write, "voc": write_voc.write, "yolo": write_yolo.write, "csv": write_csv.write}


def write(
    splits: Mapping[str, Dataset],
    out: Path,
    to: Format,
    images: Images = "copy",
    progress: Progress = lambda images: None,
) -> list[str]:
    """Write a dataset in another format.

    Args:
        splits: the datasets by the names of their splits, all with one list of classes.
        out: folder to make.
        to: the format.
        images: ``copy`` them, ``link`` to each file (hard links where the disk has them), or ``none``: make links to
            the folders they are in.
        progress: called with the number of images just written.

    Returns:
        Remarks for the user: what the format does not hold, and what had to be changed.

    Raises:
        RetinaNetError: ``out`` is not empty or cannot be written, images are missing, or the format cannot hold a name
            or the size of a picture.
    """
    remarks = [*_not_held(splits, to), *_renamed(splits, to)]
    if to in ("yolo", "csv"):
        remarks += _sizes(splits, TITLES[to])
    _WRITERS[to](splits, out, images, progress)
    return remarks


def _not_held(splits: Mapping[str, Dataset], to: Format) -> Iterator[str]:
    data, title = splits.values(), TITLES[to]
    classes = next(iter(data))
    if to == "coco":
        if write_coco.category_ids(classes) != classes.category_ids:
            yield "category ids are numbered from 1, as COCO classes come in the order of their ids"
        return
    if classes.category_ids != tuple(range(1, len(classes.classes) + 1)):
        yield f"{title} cannot hold category ids: classes are numbered in order"
    if any(_numbers(split, d, to) != list(range(1, len(d) + 1)) for split, d in splits.items()):
        order = "by the order of their names" if to == "yolo" else "in order"
        yield f"{title} cannot hold image ids: images are numbered {order}"
    if count := sum(_own_areas(d) for d in data):
        those = "the area of 1 box, which differs" if count == 1 else f"the areas of {count} boxes, which differ"
        yield f"{title} cannot hold {those} from width × height"
    if to == "voc" and (count := sum(map(_thin, data))):
        yield f"{_are(count, 'box', 'boxes')} thinner than a pixel: xmin, from 1, passes xmax; some tools swap them"
    if to != "voc" and (count := sum(int((d.ignore & (d.labels != NO_CLASS)).sum()) for d in data)):
        those = (
            "1 ignore region loses the class it is of"
            if count == 1
            else f"{count} ignore regions lose the class they are of"
        )
        yield f"{those}: {title} marks them by the class 'ignore' alone"


def _numbers(split: str, dataset: Dataset, to: Format) -> list[int]:
    """Image ids in the order that a reader of the format comes to the images."""
    ids: list[int] = dataset.image_ids.tolist()
    if to != "yolo":
        return ids
    paths = [name.split("/") for name in Pictures.of(split, dataset, stems_differ=True).names]
    # Files of a folder come before its folders.
    keys = [[*((1, folder) for folder in folders), (0, file)] for *folders, file in paths]
    return [number for _, number in sorted(zip(keys, ids, strict=True))]


def _thin(dataset: Dataset) -> int:
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    return int((sides.min(axis=1) < 1).sum())


def _own_areas(dataset: Dataset) -> int:
    sides = dataset.boxes[:, 2:].astype(np.float64) - dataset.boxes[:, :2]
    return int((~np.isclose(dataset.areas, sides.prod(axis=1), rtol=1e-5)).sum())


def _renamed(splits: Mapping[str, Dataset], to: Format) -> Iterator[str]:
    renamed = [pair for split, d in splits.items() for pair in Pictures.of(split, d, to == "yolo").renamed]
    if renamed:
        first = " to ".join(map(repr, renamed[0]))
        yield f"{_are(len(renamed), 'image')} renamed, for a name that readers would miss or mix up; first {first}"


def _sizes(splits: Mapping[str, Dataset], title: str) -> Iterator[str]:
    """Files without sizes are read with those of the pictures, which must be the ones that the boxes are for."""
    unreadable, others = [], []
    for dataset in splits.values():
        for index in dataset:
            path, (width, height) = dataset.path(index), dataset.sizes[index].tolist()
            try:
                found = image_size(path)
            except DataError as error:
                unreadable.append(str(error))
            else:
                if found != (width, height):
                    others.append(f"{path} has {found[0]}×{found[1]} pixels, its annotations say {width}×{height}")
    if others:
        raise DataError(
            f"{_are(len(others), 'picture')} not of the size the annotations say, which {title} cannot hold; first "
            f"{others[0]}; convert to coco or voc, or correct the pictures"
        )
    if unreadable:
        yield f"{_are(len(unreadable), 'picture')} broken and copied as found; first {unreadable[0]}"


def _are(count: int, noun: str, plural: str = "") -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {plural or f'{noun}s'} are"
