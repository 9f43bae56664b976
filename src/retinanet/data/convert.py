"""Convert a dataset to another format, and report what that format cannot store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from rich.console import Console

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.data.formats import write_coco, write_csv, write_voc, write_yolo
from retinanet.data.formats.open_dataset import read_all
from retinanet.data.formats.writing import ImageMode, ProgressCallback, SplitImages
from retinanet.data.images import image_size
from retinanet.data.verify import verify_images
from retinanet.errors import ConfigError, DataError
from retinanet.files import refuse_filled
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import progress_bar
from retinanet.read_options import ReadOptions

Format = Literal["coco", "voc", "yolo", "csv"]

TITLES: dict[Format, str] = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO", "csv": "CSV"}
_WRITERS = {"coco": write_coco.write, "yolo": write_yolo.write, "csv": write_csv.write}
_DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True, eq=False)
class Conversion:
    """Result of a conversion.

    Attributes:
        splits: the datasets that were read, by the names of their splits.
        out: the folder that was written.
        to: format of that folder.
        remarks: information that the format cannot store, and changes that were made.
    """

    splits: dict[str, Dataset]
    out: Path
    to: Format
    remarks: list[str]

    def __str__(self) -> str:
        images = sum(map(len, self.splits.values()))
        regions = sum(int(dataset.ignore.sum()) for dataset in self.splits.values())
        boxes = sum(len(dataset.boxes) for dataset in self.splits.values()) - regions
        return (
            f"{images} images ({', '.join(self.splits)}), {boxes} boxes and {regions} ignore regions "
            f"as {TITLES[self.to]} to {self.out}"
        )


@explain_missing_packages("retinanet.convert_dataset")
def convert_dataset(
    source: str | Path,
    out: str | Path,
    to: Format,
    images: ImageMode = "copy",
    console: Console | None = None,
    options: ReadOptions = _DEFAULT_OPTIONS,
    voc_origin: int = 1,
) -> Conversion:
    """Convert every split of a dataset to another format.

    Args:
        source: folder or annotation file of a COCO, Pascal VOC, YOLO or CSV dataset.
        out: folder to make.
        to: format to write: ``coco``, ``voc``, ``yolo`` or ``csv``.
        images: ``copy`` them, ``link`` to each file, or ``none``: make one link to each folder of images.
        console: where progress is shown; unset: on the standard output.
        options: how the dataset is read.
        voc_origin: number of the first pixel in the Pascal VOC files to write, 0 or 1.

    Raises:
        RetinaNetError: there is no such dataset, ``out`` is not empty or cannot be written, images are missing, or the
            format cannot store a name or the size of an image.
    """
    if to not in TITLES:
        raise ConfigError(f"unknown format {to!r}; choose from {', '.join(TITLES)}")
    if images not in get_args(ImageMode):
        raise ConfigError(f"images is {images!r}; choose from {', '.join(get_args(ImageMode))}")
    if voc_origin not in (0, 1):
        raise ConfigError(f"voc_origin is {voc_origin!r}; the first pixel has the number 0 or 1")
    refuse_filled(Path(out))
    console = console or Console()
    splits, remarks = read_all(source, options), []
    if options.skip_broken:
        with progress_bar(console, "checking images", sum(map(len, splits.values()))) as bar:
            checked = {split: verify_images(data, True, bar.advance) for split, data in splits.items()}
        splits = {split: data for split, (data, _) in checked.items()}
        remarks += [remark for _, found in checked.values() for remark in found]
    with progress_bar(console, "writing images", sum(map(len, splits.values()))) as bar:
        remarks += write(splits, Path(out), to, images, bar.advance, voc_origin)
    return Conversion(splits, Path(out), to, remarks)


def write(
    splits: Mapping[str, Dataset],
    out: Path,
    to: Format,
    images: ImageMode = "copy",
    progress: ProgressCallback = lambda images: None,
    voc_origin: int = 1,
) -> list[str]:
    """Write a dataset in another format.

    Args:
        splits: datasets by the names of their splits, all with one list of classes.
        out: folder to make.
        to: the format.
        images: ``copy`` them, ``link`` to each file (hard links if the disk supports them), or ``none``: make links to
            the folders of the images.
        progress: called with the number of images just written.
        voc_origin: number of the first pixel in Pascal VOC files: 1 as in the VOC challenge, or 0.

    Returns:
        Notes for the user: information that the format cannot store, and changes that were made.

    Raises:
        RetinaNetError: ``out`` is not empty or cannot be written, images are missing, or the format cannot store a name
            or the size of an image.
    """
    remarks = [*_lost_information(splits, to, voc_origin), *_renamed(splits, to)]
    if to in ("yolo", "csv"):
        remarks += _sizes(splits, TITLES[to])
    if to == "voc":
        write_voc.write(splits, out, images, progress, voc_origin)
    else:
        _WRITERS[to](splits, out, images, progress)
    return remarks


def _lost_information(splits: Mapping[str, Dataset], to: Format, voc_origin: int) -> Iterator[str]:
    data, title = splits.values(), TITLES[to]
    classes = next(iter(data))
    if to == "coco":
        if write_coco.category_ids(classes) != classes.category_ids:
            yield "category ids are numbered from 1, because COCO sorts classes by id"
        return
    if classes.category_ids != tuple(range(1, len(classes.classes) + 1)):
        yield f"{title} cannot store category ids; classes are numbered in order"
    if any(_numbers(split, d, to) != list(range(1, len(d) + 1)) for split, d in splits.items()):
        order = "by the order of their names" if to == "yolo" else "in order"
        yield f"{title} cannot store image ids; images are numbered {order}"
    if count := sum(_own_areas(d) for d in data):
        boxes = "the area of 1 box, which differs" if count == 1 else f"the areas of {count} boxes, which differ"
        yield f"{title} cannot store {boxes} from width × height"
    if to == "voc" and voc_origin == 1 and (count := sum(map(_thin, data))):
        thin = f"{_are(count, 'box', 'boxes')} thinner than a pixel"
        yield f"{thin}: xmin, which counts from 1, exceeds xmax, and some tools swap the two"
    if to != "voc" and (count := sum(int((d.ignore & (d.labels != NO_CLASS)).sum()) for d in data)):
        regions = "1 ignore region loses its class" if count == 1 else f"{count} ignore regions lose their class"
        yield f"{regions}, because {title} marks them with the class 'ignore'"


def _numbers(split: str, dataset: Dataset, to: Format) -> list[int]:
    """Image ids in the order in which a reader of the format finds the images."""
    ids: list[int] = dataset.image_ids.tolist()
    if to != "yolo":
        return ids
    paths = [name.split("/") for name in SplitImages.of(split, dataset, stems_differ=True).names]
    # Readers list the files of a folder before its sub-folders.
    keys = [[*((1, folder) for folder in folders), (0, file)] for *folders, file in paths]
    return [number for _, number in sorted(zip(keys, ids, strict=True))]


def _thin(dataset: Dataset) -> int:
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    return int((sides.min(axis=1) < 1).sum())


def _own_areas(dataset: Dataset) -> int:
    sides = dataset.boxes[:, 2:].astype(np.float64) - dataset.boxes[:, :2]
    return int((~np.isclose(dataset.areas, sides.prod(axis=1), rtol=1e-5)).sum())


def _renamed(splits: Mapping[str, Dataset], to: Format) -> Iterator[str]:
    renamed = [pair for split, d in splits.items() for pair in SplitImages.of(split, d, to == "yolo").renamed]
    if renamed:
        first = " to ".join(map(repr, renamed[0]))
        yield f"{_are(len(renamed), 'image')} renamed, because readers would miss or confuse the name; first {first}"


def _sizes(splits: Mapping[str, Dataset], title: str) -> Iterator[str]:
    """Check the image sizes. Formats without sizes in their annotations take them from the image files."""
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
            f"{_are(len(others), 'image')} not of the size in the annotations, and {title} cannot store sizes; first "
            f"{others[0]}; convert to coco or voc, or correct the images"
        )
    if unreadable:
        yield f"{_are(len(unreadable), 'image')} broken and copied unchanged; first {unreadable[0]}"


def _are(count: int, noun: str, plural: str = "") -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {plural or f'{noun}s'} are"
