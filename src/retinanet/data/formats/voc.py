"""Pascal VOC: one XML file per image, in ``Annotations/`` with ``ImageSets/Main`` lists, or in a folder per split."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from xml.parsers import expat

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.reading import (
    SizeReader,
    UnlistedClasses,
    class_list,
    clean_path,
    inside_path,
    is_ignore,
    is_image,
    is_split_name,
    listing,
    read_text,
    short,
    walk,
)
from retinanet.errors import DataError
from retinanet.files import special_file

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_PROBED_FILES = 20
_DEEPEST = 4  # <annotation><object><bndbox><xmin>; deeper elements are not read
_CLASS_LIST_LINE = re.compile(r"\S+\s+-?[01]$")


@dataclass(frozen=True)
class Annotations:
    """XML folders of all splits, which share one class list, and the class names of ``classes.txt``."""

    folders: tuple[Path, ...]
    listed: tuple[str, ...]

    @cached_property
    def classes(self) -> list[str]:
        """The listed class names, then those of all files, sorted."""
        names = {name for folder in self.folders for xml in _xml_files(folder) for name in _object_names(xml)}
        return [*self.listed, *sorted(name for name in names - {"", *self.listed} if not is_ignore(name))]


@dataclass(frozen=True)
class VocSplit:
    """One split: its XML folder, its image folder, and the file that lists its names (``None``: every XML file)."""

    annotations: Path
    images: Path
    names: Path | None
    shared: Annotations


def find(root: Path) -> dict[str, VocSplit]:
    """Find the splits of a Pascal VOC dataset. Empty if ``root`` has another format."""
    if not root.is_dir():
        return {}
    listed = tuple(class_list(root))
    if folders := _folders(root):
        shared = Annotations((folders[0],), listed)
        lists = _split_lists(root / "ImageSets" / "Main")
        return {split: VocSplit(*folders, names, shared) for split, names in (lists or {"": None}).items()}
    splits = {folder.name: f for folder in listing(root)[0] if is_split_name(folder.name) and (f := _folders(folder))}
    shared = Annotations(tuple(annotations for annotations, _ in splits.values()), listed)
    return {split: VocSplit(*folders, None, shared) for split, folders in splits.items()}


def read(source: VocSplit, name: str, tolerant: bool = False) -> Dataset:
    """Read one split.

    Args:
        source: the split, from :func:`find`.
        name: name of the dataset in messages.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: an XML file is missing, broken or malicious, or an image without a given size cannot be read.
    """
    builder = DatasetBuilder(name, source.images, source.shared.classes, tolerant=tolerant)
    labels = {class_name: i for i, class_name in enumerate(builder.classes)}
    unlisted = UnlistedClasses(builder, source.shared.listed)
    images = _Images(source.images)
    sizes = SizeReader(builder)
    unread = set() if source.names else set(images.names)
    for xml in _listed_files(source, builder):
        try:
            content = _parse(xml)
        except DataError as error:
            builder.refuse("unreadable-annotations", str(xml), "annotation file cannot be read", str(error))
            unread.discard(images.file("", xml))
            continue
        file = images.file(content.filename, xml)
        size = (content.width, content.height)
        unread.discard(file)
        if (found_size := size if min(size) > 0 else sizes.read(source.images / file, str(xml))) is None:
            continue
        builder.add_image(file, *found_size)
        # The VOC challenge counts pixels from 1 and includes the last pixel. Other tools write half-open coordinates.
        first = 1 if "The VOC" in content.database else 0
        for found in content.objects:
            where = f"{xml}:{found.line}"
            if found.doubled:
                builder.report("repeated-element", where, f"object with two <{found.doubled}>")
            elif not found.name:
                builder.report("unnamed-object", where, "object without a name")
            elif (corners := found.corners()) is None:
                builder.report("malformed-box", where, "object without a box of four numbers")
            else:
                x1, y1, x2, y2 = corners
                unlisted.check(found.name, where)
                if found.odd:
                    builder.report("invalid-flag", where, f"<difficult> is {short(found.odd)}, neither 0 nor 1")
                ignore = found.ignore or is_ignore(found.name)
                builder.add_box(
                    (x1 - first, y1 - first, x2, y2), labels.get(found.name, NO_CLASS), where, ignore=ignore
                )
    sizes.check()
    for file in sorted(unread):
        builder.report("image-without-annotations", str(source.images / file), "image without an XML file")
    return builder.build()


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
    return bool(files) and (believed or any(b"<annotation" in _bytes(xml)[:4096] for xml in files))


def _xml_files(folder: Path) -> list[Path]:
    # Only an Annotations folder is searched with its sub-folders.
    files = map(Path, walk(folder)) if folder.name.lower() == "annotations" else listing(folder)[1]
    return [file for file in files if file.suffix.lower() == ".xml"]


def _split_lists(folder: Path) -> dict[str, Path | None]:
    if not folder.is_dir():
        return {}
    lists: dict[str, Path | None] = {}
    for file in listing(folder)[1]:
        if file.suffix.lower() != ".txt":
            continue
        lines = read_text(file).split("\n", 1)
        # "aeroplane_train.txt" is not a split. It states for each image whether the image contains an aeroplane.
        if not ("_" in file.stem and _CLASS_LIST_LINE.match(lines[0].strip())):
            lists[file.stem] = file
    return lists


def _listed_files(source: VocSplit, builder: DatasetBuilder) -> list[Path]:
    if source.names is None:
        return _xml_files(source.annotations)
    files: dict[Path, None] = {}
    for number, line in enumerate(read_text(source.names).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{source.names}:{number}"
        for name in (line.strip(), line.split()[0], os.path.splitext(line.strip())[0]):
            xml = source.annotations / (inside_path(name, where) + ".xml")
            if os.path.exists(xml):  # a path that is not a file is refused later, when it is read
                break
        else:
            problem = f"{short(line.strip())} is listed but there is no {line.strip()}.xml in {source.annotations}"
            error = f"{where}: {problem}; remove the line or restore the file"
            builder.refuse("missing-annotations", where, problem, error)
            continue
        if xml in files:
            builder.report("listed-twice", where, f"{line.strip()!r} is listed twice")
        files[xml] = None
    return list(files)


class _Images:
    """Finds the image of an XML file in the image folder."""

    def __init__(self, folder: Path) -> None:
        self.names = {file.name for file in listing(folder)[1] if is_image(file.name)} if folder.is_dir() else set()
        self._by_stem = {os.path.splitext(name)[0]: name for name in sorted(self.names, reverse=True)}
        self._folder = folder

    def file(self, filename: str, xml: Path) -> str:
        """Path in the folder, from ``<filename>`` or else from the XML file's name. The file need not exist."""
        if filename:
            # Some tools write absolute paths of the computer on which the labels were made.
            filename = clean_path(filename, str(xml)).lstrip("/")
            if ".." in filename.split("/") or ":" in filename:
                filename = filename.rsplit("/", 1)[-1]
            if filename in self.names or os.path.isfile(self._folder / filename):
                return filename
        if (name := self._by_stem.get(xml.stem)) is not None:
            return name
        last = filename.rsplit("/", 1)[-1]
        return self._by_stem.get(os.path.splitext(last)[0]) or last or f"{xml.stem}.jpg"


@dataclass
class _Object:
    line: int
    name: str = ""
    ignore: bool = False
    odd: str = ""
    doubled: str = ""
    box: dict[str, str] = field(default_factory=dict)

    def corners(self) -> tuple[float, float, float, float] | None:
        try:
            x1, y1, x2, y2 = (float(self.box[corner]) for corner in _CORNERS)
        except (KeyError, ValueError):
            return None
        return x1, y1, x2, y2


@dataclass
class _Content:
    filename: str = ""
    database: str = ""
    width: int = 0
    height: int = 0
    objects: list[_Object] = field(default_factory=list)


def _parse(xml: Path) -> _Content:
    """Parse one XML file. Expat is used directly because it gives line numbers and can refuse entity declarations."""
    content = _Content()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    path: list[str] = []
    text: list[str] = []

    def start(tag: str, _: dict[str, str]) -> None:
        path.append(tag)
        if path[1:2] == ["object"] and len(path) > 2 and "".join(text).strip():
            raise DataError(
                f"{xml}:{parser.CurrentLineNumber}: <{tag}> inside a text element; repair or remove the file"
            )
        text.clear()
        if len(path) == 1 and tag != "annotation":
            raise DataError(
                f"{xml}:{parser.CurrentLineNumber}: <{tag}> is not a Pascal VOC annotation; repair or remove the file"
            )
        if path == ["annotation", "object"]:
            content.objects.append(_Object(parser.CurrentLineNumber))

    def end(_: str) -> None:
        if len(path) <= _DEEPEST:
            _take(content, path[1:], "".join(text).strip())
        text.clear()
        path.pop()

    def refuse(*_: object) -> None:
        raise DataError(f"{xml}:{parser.CurrentLineNumber}: entity declarations are refused; remove them from the file")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.EntityDeclHandler = refuse
    _feed(parser.Parse, xml)
    return content


def _object_names(xml: Path) -> set[str]:
    try:
        return {found.name for found in _parse(xml).objects}
    except DataError:  # reading the split that contains this file raises the error again
        return set()


def _feed(parse: Callable[[bytes, bool], int], xml: Path) -> None:
    try:
        parse(_bytes(xml), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise DataError(f"{xml}:{error.lineno}: broken XML ({reason}); repair or remove the file") from error
    except (ValueError, LookupError) as error:  # an encoding unknown to Python
        raise DataError(f"{xml}: its encoding cannot be read; save it again with UTF-8 encoding") from error


def _bytes(xml: Path) -> bytes:
    if special := special_file(xml):
        raise DataError(f"{xml}: not an XML file but {special}; remove it or put the file there")
    try:
        return xml.read_bytes()
    except OSError as error:
        raise DataError(f"{xml}: cannot be read ({error.strerror}); restore it or permit reading") from error


def _take(content: _Content, path: list[str], text: str) -> None:
    # Match whole paths, so that <object><part><name> is not taken for the name of the object.
    match path:
        case ["filename"]:
            content.filename = text
        case ["source", "database"]:
            content.database = text
        case ["size", ("width" | "height") as side]:
            setattr(content, side, int(text) if text.isdecimal() and len(text) < 10 else 0)
        case ["object", "name"]:
            if content.objects[-1].name:
                content.objects[-1].doubled = "name"
            content.objects[-1].name = text
        case ["object", ("difficult" | "ignore")]:
            content.objects[-1].ignore |= text in ("1", "true", "True")
            if text not in ("", "0", "1", "false", "true", "False", "True"):
                content.objects[-1].odd = text
        case ["object", "bndbox", corner]:
            if corner in content.objects[-1].box:
                content.objects[-1].doubled = corner
            content.objects[-1].box[corner] = text
