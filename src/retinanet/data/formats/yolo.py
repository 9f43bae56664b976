"""YOLO: one text file of normalized boxes per image; ``data.yaml`` or the folder names define the splits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet.data.box_meaning import FRACTIONS, Meaning
from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.image_finder import ImageFinder
from retinanet.data.formats.reading import is_ignore, is_split_name, listing, read_text, short, walk
from retinanet.data.formats.shapes import Box, box_around
from retinanet.data.formats.yolo_layout import (
    DETECTIONS,
    Layout,
    detected_labels,
    existing_path,
    images_of,
    label_file,
    layout_of_data_file,
    layout_of_folder,
    layout_of_yaml,
    names_near,
)
from retinanet.data.image_suffixes import unread_files
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions

_DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class YoloSplit:
    """One split of a layout."""

    split: str
    layout: Layout


def find(root: Path) -> dict[str, YoloSplit]:
    """Find the splits of a YOLO dataset. Empty if ``root`` has another format.

    Args:
        root: the dataset's folder, its YAML file, darknet's data file, or a text file that lists images.
    """
    layout: Layout | None
    suffix = root.suffix.lower()
    if root.is_dir():
        layout = layout_of_folder(root)
    elif suffix in (".yaml", ".yml"):
        layout = layout_of_yaml(root)
        if layout is None:
            raise DataError(f"{root}: not a YOLO dataset; expected 'names' and paths under 'train' and 'val'")
    elif suffix == ".data":
        layout = layout_of_data_file(root)
        if layout is None:
            raise DataError(f"{root}: not a darknet data file; expected lines such as 'train = train.txt'")
    elif suffix == ".txt":
        split = root.stem if is_split_name(root.stem) else ""
        layout = Layout(root.parent, {split: (root,)}, names_near(root.parent))
    else:
        return {}
    return {split: YoloSplit(split, layout) for split in layout.splits} if layout else {}


def read(source: YoloSplit, name: str, options: ReadOptions = _DEFAULT_OPTIONS, tolerant: bool = False) -> Dataset:
    """Read one split.

    Args:
        source: the split, from :func:`find`.
        name: name of the dataset in messages.
        options: where the images are, and which boxes and images are left out.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: a folder is missing, a class number has no name, or images cannot be read.
    """
    layout = source.layout
    entries = layout.splits[source.split]
    classes = [layout.class_names[number] for number in sorted(layout.class_names)]
    kept = [class_name for class_name in classes if not is_ignore(class_name)]
    builder = DatasetBuilder(name, layout.root, kept, None, tolerant, options, Meaning("cxcywh", FRACTIONS))
    for moved in layout.moved:
        builder.report("folder-found", moved, "the end of the path is found")
    beside = [entry.parent for entry in entries if not os.path.isdir(entry)]
    finder = ImageFinder(builder, layout.file or entries[0], [*beside, layout.root], [layout.root.absolute().parent])
    unlabeled: list[str] = []
    used: set[str] = set()
    images = dict(pair for entry in entries for pair in _images(entry, layout, finder, builder))
    for file, label in images.items():
        if (size := finder.size(file)) is None:
            continue
        builder.add_image(file, *size)
        if label is None:
            unlabeled.append(str(builder.root / file))
            continue
        used.add(label)
        for number, box, score, derived, where in _boxes(label, builder, layout.pose):
            class_name = layout.class_names.get(number)
            if class_name is None:
                problem = f"class number {short(number)} has no name, there are {len(classes)} classes"
                remedy = f"correct the line, or name the class in {layout.naming_file or 'a data.yaml'}"
                builder.refuse("unknown-class-id", where, problem, f"{where}: {problem}; {remedy}")
                continue
            scaled = (box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1])
            label_number, ignore = builder.labels.get(class_name, NO_CLASS), is_ignore(class_name)
            builder.add_box(scaled, label_number, where, ignore=ignore, score=score, derived=derived)
    finder.check()
    if not images:
        raise DataError(f"{name}: no images in {', '.join(map(str, entries))}")
    _report_missing(builder, entries, unlabeled, used)
    if layout.names is None or layout.unnamed:
        builder.report("unnamed-classes", str(layout.naming_file or layout.root), "no file names the classes")
    return builder.build()


def _images(
    entry: Path, layout: Layout, finder: ImageFinder, builder: DatasetBuilder
) -> Iterator[tuple[str, str | None]]:
    """Yield each image of a folder or list, relative to the builder's root, with its label file (``None``: none)."""
    prefix = os.path.join(str(layout.root), "")
    if os.path.isdir(entry):
        for left_out in unread_files(walk(entry)):
            builder.report("unread-files", str(entry), left_out)
        for image in images_of(entry, layout):
            file = image[len(prefix) :] if image.startswith(prefix) else os.path.abspath(image)
            yield file, label_file(image)
        return
    labels = detected_labels(entry) if entry.name == DETECTIONS else {}
    for image in labels or images_of(entry, layout):
        # The user wrote the list, so absolute paths are allowed. Relative ones start from the list's folder.
        found = finder.find(image, str(entry), detections=bool(labels))
        if found is not None:
            label = labels.get(image) or label_file(str(builder.root / found))
            yield found, label or _label_beside_list(image, entry)


def _label_beside_list(image: str, entry: Path) -> str | None:
    """Label file where a list of images has the image, if the images themselves were moved to another folder."""
    label = existing_path(os.path.splitext(image)[0] + ".txt", [entry.parent])
    return str(label) if label else None


def _report_missing(builder: DatasetBuilder, entries: tuple[Path, ...], unlabeled: list[str], used: set[str]) -> None:
    """Report images without labels, and labels without images."""
    if not used:
        builder.report("unlabelled-split", str(entries[0]), "no image has a label file")
        return
    for image in unlabeled:
        builder.report("unlabelled-image", image, "no label file")
    # A list may name only some images of a folder, so labels without a listed image are not a problem there.
    folders = {os.path.dirname(label) for label in used} if all(map(os.path.isdir, entries)) else set()
    for folder in sorted(folders):
        for file in listing(Path(folder))[1]:
            if file.suffix.lower() == ".txt" and str(file) not in used and _is_label(file):
                builder.report("label-without-image", str(file), "label file without an image")


def _is_label(file: Path) -> bool:
    """Whether a text file is empty or starts with numbers. Label folders also hold notes and class lists."""
    words = next(iter(read_text(file).splitlines()), "").split()
    return not words or (len(words) >= 5 and all(word.replace(".", "", 1).isdecimal() for word in words[:5]))


def _boxes(file: str, builder: DatasetBuilder, pose: bool) -> Iterator[tuple[int, Box, float | None, bool, str]]:
    """Yield class number, normalized corners, score (``None``: none), whether they are of a polygon, and place."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        where = f"{file}:{number}"
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            builder.report("malformed-line", where, f"not a line of numbers: {short(line.strip())}")
            continue
        if not values:
            continue
        if not all(map(math.isfinite, values)):
            builder.report("malformed-line", where, f"not finite: {short(line.strip())}")
            continue
        if pose:
            values = values[:5]
        if len(values) in (6, 7) and values[-1] > 1 and values[-1].is_integer() and max(values[1:5]) <= 1:
            values.pop()  # number of a track
        score = None
        if len(values) >= 6 and len(values) % 2 == 0 and 0 <= values[-1] <= 1:  # a detector wrote the file
            *values, score = values
        coordinates = values[1:]
        if not values[0].is_integer() or len(coordinates) < 4 or len(coordinates) % 2:
            message = f"expected 'class x y width height', found {short(line.strip())}"
            builder.report("malformed-line", where, message)
        elif (box := _box(coordinates)) is not None:
            if len(coordinates) > 4:
                builder.report("shape-box", where, "a polygon or four corners")
            yield int(values[0]), box, score, len(coordinates) > 4, where


def _box(coordinates: Sequence[float]) -> Box | None:
    """Corners of a box given by its center and sides, or by the points of a polygon."""
    if len(coordinates) > 4:
        return box_around(coordinates)
    x, y, width, height = coordinates
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
