"""YOLO: one text file of normalized boxes per image; ``data.yaml`` or the folder names define the splits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retinanet.data.box_meaning import FRACTIONS, Meaning
from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.reading import (
    SizeReader,
    is_ignore,
    is_split_name,
    listing,
    read_text,
    short,
)
from retinanet.data.formats.yolo_layout import (
    Layout,
    images_of,
    label_file,
    layout_of_folder,
    layout_of_yaml,
    names_near,
)
from retinanet.errors import DataError


@dataclass(frozen=True)
class YoloSplit:
    """One split of a layout."""

    split: str
    layout: Layout


def find(root: Path) -> dict[str, YoloSplit]:
    """Find the splits of a YOLO dataset. Empty if ``root`` has another format.

    Args:
        root: the dataset's folder, its YAML file, or a text file that lists images.
    """
    layout: Layout | None
    if root.suffix.lower() in (".yaml", ".yml") and not root.is_dir():
        layout = layout_of_yaml(root)
        if layout is None:
            raise DataError(f"{root}: not a YOLO dataset; expected 'names' and paths under 'train' and 'val'")
    elif root.is_dir():
        layout = layout_of_folder(root)
    elif root.suffix.lower() == ".txt":
        split = root.stem if is_split_name(root.stem) else ""
        layout = Layout(root.parent, {split: (root,)}, names_near(root.parent))
    else:
        return {}
    return {split: YoloSplit(split, layout) for split in layout.splits} if layout else {}


def read(source: YoloSplit, name: str, tolerant: bool = False) -> Dataset:
    """Read one split.

    Args:
        source: the split, from :func:`find`.
        name: name of the dataset in messages.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: a folder is missing, a class number has no name, or images cannot be read.
    """
    layout = source.layout
    entries = layout.splits[source.split]
    classes = [layout.class_names[number] for number in sorted(layout.class_names)]
    kept = [class_name for class_name in classes if not is_ignore(class_name)]
    builder = DatasetBuilder(name, layout.root, kept, tolerant=tolerant, meaning=Meaning("cxcywh", FRACTIONS))
    labels = {class_name: i for i, class_name in enumerate(kept)}
    sizes = SizeReader(builder)
    prefix = os.path.join(str(layout.root), "")
    unlabeled: list[str] = []
    used: set[str] = set()
    images = list(dict.fromkeys(image for entry in entries for image in images_of(entry, layout)))
    if not images:
        raise DataError(f"{name}: no images in {', '.join(map(str, entries))}")
    for image in images:
        if (size := sizes.read(image)) is None:
            continue
        width, height = size
        file = image[len(prefix) :] if image.startswith(prefix) else os.path.abspath(image)
        builder.add_image(file, width, height)
        if labels_of_image := label_file(image):
            used.add(labels_of_image)
            for number, box, where in _boxes(labels_of_image, builder, layout.pose):
                class_name = layout.class_names.get(number)
                if class_name is None:
                    problem = f"class number {short(number)} has no name, there are {len(classes)} classes"
                    remedy = f"correct the line, or name the class in {layout.naming_file or 'a data.yaml'}"
                    builder.refuse("unknown-class-id", where, problem, f"{where}: {problem}; {remedy}")
                    continue
                scaled = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
                builder.add_box(scaled, labels.get(class_name, NO_CLASS), where, ignore=is_ignore(class_name))
        else:
            unlabeled.append(image)
    sizes.check()
    _report_missing(builder, entries, unlabeled, used)
    if layout.names is None or layout.unnamed:
        builder.report("unnamed-classes", str(layout.naming_file or layout.root), "no file names the classes")
    return builder.build()


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


def _boxes(
    file: str, builder: DatasetBuilder, pose: bool
) -> Iterator[tuple[int, tuple[float, float, float, float], str]]:
    """Yield class number, normalized corners and place of each valid line."""
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
        coordinates = values[1:]
        if not values[0].is_integer() or len(coordinates) < 4 or len(coordinates) % 2:
            message = f"expected 'class x y width height', found {short(line.strip())}"
            builder.report("malformed-line", where, message)
        elif len(coordinates) == 4:
            x, y, width, height = coordinates
            yield int(values[0]), (x - width / 2, y - height / 2, x + width / 2, y + height / 2), where
        else:  # a polygon
            xs, ys = coordinates[::2], coordinates[1::2]
            yield int(values[0]), (min(xs), min(ys), max(xs), max(ys)), where
