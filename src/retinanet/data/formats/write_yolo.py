"""Write YOLO: ``data.yaml``, ``images/{split}/``, and ``labels/{split}/`` with normalized boxes, a file per image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from retinanet.data.dataset import IGNORE_CLASS, Dataset
from retinanet.data.formats.writing import ImageMode, ProgressCallback, SplitImages, check_splits
from retinanet.data.formats.yolo_layout import label_path
from retinanet.files import new_folder


def write(
    splits: Mapping[str, Dataset],
    out: Path,
    images: ImageMode = "copy",
    progress: ProgressCallback = lambda images: None,
) -> None:
    """Write a YOLO dataset.

    Normalized boxes have 12 digits, which is exact to a millionth of a pixel. Ignore regions get the class ``ignore``
    instead of their own class. ``ignore`` is the last class in the list.

    Args:
        splits: datasets by the names of their splits, all with one list of classes.
        out: folder to make.
        images: ``copy`` them, ``link`` to each file (hard links if the disk supports them), or ``none``: make each
            ``images/{split}`` a link to the folder of the images, and list the images in ``{split}.txt``.
        progress: called with the number of images just written.

    Raises:
        RetinaNetError: ``out`` is not empty or cannot be written, or images are missing.
    """
    check_splits(splits)
    with new_folder(out) as folder:
        places = {}
        for split, dataset in splits.items():
            files = SplitImages.of(split, dataset, stems_differ=True)
            files.place(folder / "images" / split, images, progress)
            paths = [f"images/{split}/{name}" for name in files.names]
            for index, path in enumerate(paths):
                file = folder / label_path(path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("".join(_lines(dataset, index)), encoding="utf-8")
            places[split] = f"images/{split}"
            if images == "none":  # the linked folder may also hold images of no split
                places[split] = f"{split}.txt"
                (folder / places[split]).write_text("".join(f"./{path}\n" for path in paths), encoding="utf-8")
        (folder / "data.yaml").write_text(_yaml(places, splits), encoding="utf-8")


def _yaml(places: Mapping[str, str], splits: Mapping[str, Dataset]) -> str:
    names = list(next(iter(splits.values())).classes)
    if any(dataset.ignore.any() for dataset in splits.values()):
        names.append(IGNORE_CLASS)
    content = {**places, "names": dict(enumerate(names))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _lines(dataset: Dataset, index: int) -> Iterator[str]:
    width, height = dataset.sizes[index].tolist()
    rows = dataset.rows(index)
    for box, label, ignore in zip(
        dataset.boxes[rows].tolist(), dataset.labels[rows].tolist(), dataset.ignore[rows].tolist(), strict=True
    ):
        x1, x2 = box[0] / width, box[2] / width
        y1, y2 = box[1] / height, box[3] / height
        numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        number = len(dataset.classes) if ignore else label
        yield " ".join([str(number), *(f"{value:.12g}" for value in numbers)]) + "\n"
