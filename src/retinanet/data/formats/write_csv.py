"""Write CSV: ``{split}.csv`` with rows ``path,x1,y1,x2,y2,class``, ``images/{split}/`` and ``classes.txt``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from retinanet.data.dataset import Dataset
from retinanet.data.formats.reading import split_of
from retinanet.data.formats.writing import (
    ImageMode,
    ProgressCallback,
    SplitImages,
    check_classes,
    check_splits,
    class_name,
    decimals,
    write_class_list,
)
from retinanet.files import new_folder


def write(
    splits: Mapping[str, Dataset],
    out: Path,
    images: ImageMode = "copy",
    progress: ProgressCallback = lambda images: None,
) -> None:
    """Write a CSV dataset.

    Ignore regions get the class ``ignore`` instead of their own class.

    Args:
        splits: datasets by the names of their splits, all with one list of classes.
        out: folder to make.
        images: ``copy`` them, ``link`` to each file (hard links if the disk supports them), or ``none``: make each
            ``images/{split}`` a link to the folder of the images.
        progress: called with the number of images just written.

    Raises:
        RetinaNetError: ``out`` is not empty or cannot be written, images are missing, or a name cannot be written.
    """
    check_splits(splits)
    check_classes(splits, "CSV")
    with new_folder(out) as folder:
        write_class_list(folder, splits)
        for split, dataset in splits.items():
            files = SplitImages.of(split, dataset)
            files.place(folder / "images" / split, images, progress)
            # Readers recognize a common split name anywhere in a file name. They recognize any other split name only
            # after the prefix ``instances_``.
            own = Path(f"{split}.csv")
            file = folder / (own if split_of(own) == split else f"instances_{split}.csv")
            with file.open("w", encoding="utf-8", newline="") as handle:
                rows = csv.writer(handle, lineterminator="\n")
                rows.writerow(("path", "x1", "y1", "x2", "y2", "class"))
                rows.writerows(_rows(dataset, [f"images/{split}/{name}" for name in files.names]))


def _rows(dataset: Dataset, paths: list[str]) -> Iterator[list[str]]:
    for index, path in enumerate(paths):
        rows = dataset.rows(index)
        if rows.start == rows.stop:
            yield [path, "", "", "", "", ""]
        for row, corners in zip(range(rows.start, rows.stop), decimals(dataset.boxes[rows]), strict=True):
            yield [path, *corners, class_name(dataset, row)]
