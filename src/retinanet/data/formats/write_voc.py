"""Write Pascal VOC: ``Annotations/*.xml``, ``JPEGImages/``, ``ImageSets/Main/{split}.txt`` and lists of the classes."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from retinanet.data.dataset import IGNORE_CLASS, NO_CLASS, Dataset
from retinanet.data.formats.class_files import LABEL_MAP
from retinanet.data.formats.writing import (
    ImageMode,
    ProgressCallback,
    SplitImages,
    check_classes,
    check_splits,
    decimals,
    write_class_list,
)
from retinanet.files import new_folder

# These words tell our reader from which number pixels are counted.
_DATABASES = ("Pixels count from 0", "The VOC convention: pixels count from 1")

# First lines of labelmap.txt, without which CVAT and Datumaro accept only the 20 classes of the VOC challenge.
_LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"


def write(
    splits: Mapping[str, Dataset],
    out: Path,
    images: ImageMode = "copy",
    progress: ProgressCallback = lambda images: None,
    origin: int = 1,
) -> None:
    """Write a Pascal VOC dataset.

    With ``origin`` 1, pixels are counted from 1 and the last pixel belongs to the box, as in the VOC challenge. With 0,
    corners are half-open coordinates, as labelImg, CVAT and Datumaro read them. Ignore regions are
    ``difficult``; ignore regions without a class get the name ``ignore``. If two splits have different images of the
    same name, each split gets its own folder below ``Annotations`` and ``JPEGImages``.

    Args:
        splits: datasets by the names of their splits, all with one list of classes.
        out: folder to make.
        images: ``copy`` them, ``link`` to each file (hard links if the disk supports them), or ``none``: make each
            ``JPEGImages/{split}`` a link to the folder of the images.
        progress: called with the number of images just written.
        origin: number of the first pixel, 1 or 0.

    Raises:
        RetinaNetError: ``out`` is not empty or cannot be written, images are missing, or a name cannot be written.
    """
    check_splits(splits)
    check_classes(splits, "Pascal VOC")
    files = {split: SplitImages.of(split, dataset) for split, dataset in splits.items()}
    apart = images == "none" or not _one_pool(splits, files)
    taken: dict[str, str] = {}
    with new_folder(out) as folder:
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        write_class_list(folder, splits)
        _write_label_map(folder, splits)
        if not apart:
            SplitImages.together(files.values()).place(folder / "JPEGImages", images, progress)
        for split, dataset in splits.items():
            if apart:
                files[split].place(folder / "JPEGImages" / split, images, progress)
            names = [f"{split}/{name}" if apart else name for name in files[split].names]
            stems = [_stem(name, taken) for name in names]
            for index, (name, stem) in enumerate(zip(names, stems, strict=True)):
                file = folder / "Annotations" / f"{stem}.xml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_annotation(dataset, index, name, origin), encoding="utf-8")
            lines = "".join(f"{stem}\n" for stem in stems)
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8")


def _write_label_map(folder: Path, splits: Mapping[str, Dataset]) -> None:
    regions = any((dataset.labels == NO_CLASS).any() for dataset in splits.values())
    names = [*next(iter(splits.values())).classes, *([IGNORE_CLASS] if regions else [])]
    lines = [f"{name}:{','.join(map(str, _color(number)))}::\n" for number, name in enumerate(names, 1)]
    (folder / LABEL_MAP).write_text(_LABEL_MAP + "".join(lines), encoding="utf-8")


def _color(number: int) -> tuple[int, int, int]:
    """Color of a class in the VOC challenge: the bits of its number, spread over red, green and blue."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def _one_pool(splits: Mapping[str, Dataset], files: Mapping[str, SplitImages]) -> bool:
    """Whether all images that share a name are the same file with the same boxes, as in train and trainval."""
    seen: dict[str, tuple[Dataset, int, str]] = {}
    for split, dataset in splits.items():
        for index, (name, source) in enumerate(zip(files[split].names, files[split].sources, strict=True)):
            other, at, place = seen.setdefault(name, (dataset, index, source))
            if other is not dataset and (
                place != source or _annotation(other, at, name, 1) != _annotation(dataset, index, name, 1)
            ):
                return False
    return True


def _stem(name: str, taken: dict[str, str]) -> str:
    """Name of the XML file of an image: the image's name without its suffix, or with its suffix if that is taken."""
    stem = posixpath.splitext(name)[0]
    # In a list, a reader could read "photo 1" as "image photo contains this class". Trailing blanks are lost.
    if taken.get(stem, name) != name or re.search(r"\s(-?[01])?$", stem):
        stem = name
    while taken.get(stem, name) != name:
        stem += "-2"
    taken[stem] = name
    return stem


def _annotation(dataset: Dataset, index: int, name: str, origin: int) -> str:
    """XML text of an image."""
    width, height = dataset.sizes[index].tolist()
    root = Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    _add(SubElement(root, "source"), "database", _DATABASES[origin])
    size = SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, str(value))
    _add(root, "segmented", "0")
    rows = dataset.rows(index)
    for row, corners in zip(range(rows.start, rows.stop), decimals(dataset.boxes[rows]), strict=True):
        label = int(dataset.labels[row])
        found = SubElement(root, "object")
        _add(found, "name", IGNORE_CLASS if label == NO_CLASS else dataset.classes[label])
        _add(found, "pose", "Unspecified")
        _add(found, "truncated", "0")
        _add(found, "difficult", str(int(dataset.ignore[row])))
        box = SubElement(found, "bndbox")
        for tag, text in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            _add(box, tag, str(Decimal(text) + origin) if tag.endswith("min") else text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: Element, tag: str, text: str) -> None:
    SubElement(parent, tag).text = text
