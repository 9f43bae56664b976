"""Pascal VOC: one XML file per image, in ``Annotations/`` with ``ImageSets/Main`` lists, or in a folder per split."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from retinanet.data.class_names import all_classes
from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.class_files import class_list
from retinanet.data.formats.image_finder import ImageFinder
from retinanet.data.formats.reading import (
    UnlistedClasses,
    inside_path,
    is_ignore,
    is_split_name,
    listing,
    read_text,
    short,
    walk,
)
from retinanet.data.formats.voc_xml import DETECTIONS, Content, Object, object_names, parse, read_bytes
from retinanet.data.image_suffixes import is_image, unread_files
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions

_PROBED_FILES = 20
_CLASS_LIST_LINE = re.compile(r".*\S\s+-?[01]$")
_DEFAULT_OPTIONS = ReadOptions()

# Among fewer boxes, none may touch the left or top edge by chance.
_FEWEST_BOXES = 6


@dataclass(frozen=True)
class Annotations:
    """XML folders of all splits, which share one class list, and the class names of ``classes.txt``."""

    folders: tuple[Path, ...]
    listed: tuple[str, ...]

    @cached_property
    def classes(self) -> list[str]:
        """The listed class names, then those of all files, sorted."""
        names = Counter(name for folder in self.folders for xml in _xml_files(folder) for name in object_names(xml))
        return all_classes(self.listed, {name: count for name, count in names.items() if name and not is_ignore(name)})


@dataclass(frozen=True)
class VocSplit:
    """One split: its XML folder, its image folder, and the files that list its names (none: every XML file)."""

    annotations: Path
    images: Path
    names: tuple[Path, ...]
    shared: Annotations


def find(root: Path) -> dict[str, VocSplit]:
    """Find the splits of a Pascal VOC dataset. Empty if ``root`` has another format."""
    if not root.is_dir():
        return {}
    listed = tuple(class_list(root))
    if folders := _folders(root):
        shared = Annotations((folders[0],), listed)
        lists = _split_lists(root / "ImageSets" / "Main") or _split_lists(root / "ImageSets")
        # PaddleDetection writes train.txt and valid.txt beside the folders.
        lists = lists or {split: names for split, names in _split_lists(root).items() if is_split_name(split)}
        return {split: VocSplit(*folders, names, shared) for split, names in (lists or {"": ()}).items()}
    splits = {folder.name: f for folder in listing(root)[0] if is_split_name(folder.name) and (f := _folders(folder))}
    shared = Annotations(tuple(annotations for annotations, _ in splits.values()), listed)
    return {split: VocSplit(*folders, (), shared) for split, folders in splits.items()}


def read(source: VocSplit, name: str, options: ReadOptions = _DEFAULT_OPTIONS, tolerant: bool = False) -> Dataset:
    """Read one split.

    Args:
        source: the split, from :func:`find`.
        name: name of the dataset in messages.
        options: where the images are, the number of the first pixel, and which boxes and images are left out.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: an XML file is missing, broken or malicious, or an image cannot be read.
    """
    builder = DatasetBuilder(name, source.images, source.shared.classes, None, tolerant, options)
    unlisted = UnlistedClasses(builder, source.shared.listed)
    files = listing(source.images)[1] if source.images.is_dir() else []
    images = {file.stem: file.name for file in reversed(files) if is_image(file.name)}
    for left_out in unread_files(file.name for file in files):
        builder.report("unread-files", str(source.images), left_out)
    finder = ImageFinder(builder, source.annotations, [source.images, source.annotations, source.annotations.parent])
    starts: list[float] = []  # smaller coordinate of the first corner of each box that is taken to count from 0
    unread = set() if source.names else {file.name for file in files if is_image(file.name)}
    for xml in _listed_files(source, builder):
        try:
            content = parse(xml)
        except DataError as error:
            builder.refuse("unreadable-annotations", str(xml), "annotation file cannot be read", str(error))
            unread.discard(images.get(xml.stem, ""))
            continue
        if content.recoded:
            builder.report("encoding", str(xml), "no encoding is declared")
        file = finder.find(_names(content, images.get(xml.stem, ""), xml), str(xml), content.database == DETECTIONS)
        unread.discard(file or images.get(xml.stem, ""))
        if content.database == DETECTIONS:
            unread.discard(images.get(xml.stem, ""))  # a drawing
        if file is None:
            continue
        size = (content.width, content.height)
        if (found_size := size if min(size) > 0 else finder.size(file, str(xml))) is None:
            continue
        builder.add_image(file, *found_size)
        # The VOC challenge counts pixels from 1 and includes the last pixel. Other tools write half-open coordinates.
        counts_from_one = "The VOC" in content.database if options.voc_origin == "auto" else options.voc_origin == "1"
        for found in content.objects:
            _add(builder, found, int(counts_from_one), f"{xml}:{found.line}", unlisted)
        if not counts_from_one:
            starts += [min(corners[:2]) for found in content.objects if (corners := found.corners()[0])]
    if options.voc_origin == "auto" and len(starts) >= _FEWEST_BOXES and min(starts) >= 1:
        advice = "no box starts at 0; if the files count pixels from 1, give --data.voc-origin 1"
        builder.report("voc-origin", str(source.annotations), advice)
    finder.check()
    for file in sorted(unread):
        builder.report("image-without-annotations", str(source.images / file), "image without an XML file")
    return builder.build()


def _add(builder: DatasetBuilder, found: Object, first: int, where: str, unlisted: UnlistedClasses) -> None:
    """Add an object, in a file whose first pixel has the number ``first``."""
    if found.doubled:
        builder.report("repeated-element", where, f"object with two <{found.doubled}>")
        return
    if not found.name:
        builder.report("unnamed-object", where, "object without a name")
        return
    corners, shape = found.corners()
    if corners is None:
        builder.report("malformed-box", where, "object without a box of four numbers")
        return
    if shape:
        builder.report("shape-box", where, shape)
    unlisted.check(found.name, where)
    if found.odd:
        builder.report("invalid-flag", where, f"<difficult> is {short(found.odd)}, neither 0 nor 1")
    ignore = found.ignore or is_ignore(found.name)
    x1, y1, x2, y2 = corners
    label = builder.labels.get(found.name, NO_CLASS)
    builder.add_box((x1 - first, y1 - first, x2, y2), label, where, ignore=ignore, score=found.score)


def _folders(root: Path) -> tuple[Path, Path] | None:
    """XML folder and image folder of a dataset or split; ``None`` if there is no XML file."""
    for name in ("Annotations", "annotations", ""):
        folder = root / name if name else root
        if os.path.isdir(folder) and _holds_voc(folder):
            images = ("JPEGImages", "images", "Images")
            beside = root if not name or any(map(is_image, os.listdir(root))) else root / "JPEGImages"
            return folder, next((root / i for i in images if os.path.isdir(root / i)), beside)
    return None


def _holds_voc(folder: Path) -> bool:
    files = _xml_files(folder)[:_PROBED_FILES]
    # XML files in an Annotations folder are assumed to be VOC, even if broken. In other folders they can be anything.
    believed = folder.name.lower() == "annotations"
    return bool(files) and (believed or any(b"<annotation" in read_bytes(xml)[:4096] for xml in files))


def _xml_files(folder: Path) -> list[Path]:
    # Only an Annotations folder is searched with its sub-folders.
    files = map(Path, walk(folder)) if folder.name.lower() == "annotations" else listing(folder)[1]
    return [file for file in files if file.suffix.lower() == ".xml"]


def _split_lists(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files that list the images of each split."""
    if not folder.is_dir():
        return {}
    lists: dict[str, tuple[Path, ...]] = {}
    by_class: dict[str, tuple[Path, ...]] = {}
    for file in listing(folder)[1]:
        if file.suffix.lower() != ".txt":
            continue
        line = read_text(file).split("\n", 1)[0].strip()
        # "aeroplane_train.txt" states for each image of the split train whether it shows an aeroplane.
        class_name, _, split = file.stem.rpartition("_")
        if class_name and (_CLASS_LIST_LINE.match(line) or (not line and is_split_name(split))):
            by_class[split] = (*by_class.get(split, ()), file)
        else:
            lists[file.stem] = (file,)
    return lists or by_class


def _listed_files(source: VocSplit, builder: DatasetBuilder) -> list[Path]:
    if not source.names:
        return _xml_files(source.annotations)
    files: dict[Path, None] = {}
    for file in source.names:
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip() and (xml := _xml_of(line.strip(), f"{file}:{number}", source, builder)) is not None:
                if xml in files and len(source.names) == 1:
                    builder.report("listed-twice", f"{file}:{number}", f"{line.strip()!r} is listed twice")
                files[xml] = None
    return list(files)


def _xml_of(line: str, where: str, source: VocSplit, builder: DatasetBuilder) -> Path | None:
    """The XML file of an image in a list. The line may have a flag after the name, or a suffix."""
    first = line.rsplit(None, 1)[0]
    path = line.split()[0].replace("\\", "/")  # the first of "JPEGImages/0.jpg Annotations/0.xml"
    image = os.path.splitext(os.path.basename(path))[0]
    for name in (
        (image,)
        if path.startswith("/") or path[1:3] == ":/"
        else (line, first, line.split()[0], os.path.splitext(line)[0], os.path.splitext(first)[0], image)
    ):
        xml = source.annotations / (inside_path(name, where) + ".xml")
        if os.path.exists(xml):  # a path that is not a file is refused later, when it is read
            return xml
    problem = f"{short(line)} is listed but there is no {line}.xml in {source.annotations}"
    builder.refuse("missing-annotations", where, problem, f"{where}: {problem}; remove the line or restore the file")
    return None


def _names(content: Content, by_stem: str, xml: Path) -> list[str]:
    """Names of the image of an XML file, the best first."""
    # Some tools write absolute paths of the computer on which the labels were made. Images are then found by the end
    # of the path, but not where the path says, because the dataset may have been copied from there.
    named = content.filename.strip()
    names = [named, by_stem, content.path, xml.stem]
    if content.database == DETECTIONS:
        names = [content.path, named]
    return names
