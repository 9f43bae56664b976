"""Layout of a YOLO dataset: splits, class names, images and their label files."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from retinanet.data.formats.class_files import class_file, read_class_file
from retinanet.data.formats.reading import CLASS_LIST, clean_path, is_split_name, listing, read_text, short, walk
from retinanet.data.image_suffixes import is_image
from retinanet.errors import AbsentSplitError, DataError

# Table of label files and their images, in the output of retinanet detect.
DETECTIONS = "labels.csv"

_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_PROBED_IMAGES = 50

# Names of folders of label files, and the word that they replace in the name of the folder of images.
_LABEL_FOLDERS = ("labels", "annotations")
_IMAGES = re.compile(r"(?<![a-z])images(?![a-z])", re.IGNORECASE)

# Folders of a darknet project that hold its data file.
_SETTINGS = ("cfg", "config", "data")
_MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Layout:
    """Layout of a dataset, common to its splits.

    Attributes:
        root: the dataset's folder.
        splits: for each split, folders of images or text files that list images.
        names: class name of each class number; ``None`` if no file defines them.
        pose: lines have keypoints after the box.
        unnamed: ``names`` are numbers, because the YAML file gives only the number of classes.
        file: the YAML or data file, if there is one.
        moved: sentences about paths of another computer, and what replaces each.
    """

    root: Path
    splits: dict[str, tuple[Path, ...]]
    names: dict[int, str] | None
    pose: bool = False
    unnamed: bool = False
    file: Path | None = None
    moved: tuple[str, ...] = ()

    @property
    def naming_file(self) -> Path | None:
        """The file that is expected to name the classes; it may be broken."""
        if self.file:
            return self.file
        yaml_file = self.root / "data.yaml"
        return yaml_file if os.path.lexists(yaml_file) else class_file(self.root)

    @cached_property
    def class_names(self) -> dict[int, str]:
        """``names``; without them, the class numbers found in all splits."""
        if self.names is not None:
            return self.names
        pairs = (
            (entry, image) for entries in self.splits.values() for entry in entries for image in images_of(entry, self)
        )
        images = (image if os.path.isdir(entry) else os.path.join(entry.parent, image) for entry, image in pairs)
        largest = max((_largest_class(label) for image in images if (label := label_file(image))), default=-1)
        return {number: str(number) for number in range(largest + 1)}


def images_of(entry: Path, layout: Layout) -> Iterator[str]:
    """Yield the image files of a folder, or the paths in a text file with one path per line."""
    if os.path.isdir(entry):
        yield from filter(is_image, walk(entry))
    elif entry.suffix.lower() == ".txt" and os.path.isfile(entry):
        for number, line in enumerate(read_text(entry).splitlines(), 1):
            if line.strip():
                yield clean_path(line.strip(), f"{entry}:{number}")
    else:
        raise AbsentSplitError(
            f"{entry}: no such folder or .txt list of images; correct the path in {layout.file or layout.root}"
        )


def label_path(image: str) -> str:
    """Path of the label file of an image: the last ``/images/`` of the path becomes ``/labels/``.

    If the path has no ``/images/``, the label file lies beside the image.
    """
    head, found, tail = f"/{_beside(image)}".replace(os.sep, "/").rpartition("/images/")
    return f"{head}/labels/{tail}"[1:] if found else tail[1:]


def _beside(image: str) -> str:
    return os.path.splitext(image)[0] + ".txt"


def label_file(image: str) -> str | None:
    """Label file at :func:`label_path`, beside the image, or in a folder such as ``labels_train`` or ``Labels``.

    ``None`` if there is none.
    """
    stem = os.path.splitext(image)[0]
    stems = (label_path(image).removesuffix(".txt"), stem, *_stems_elsewhere(stem.replace(os.sep, "/")))
    return next((file for stem in stems for end in (".txt", ".TXT") if os.path.isfile(file := stem + end)), None)


def _stems_elsewhere(stem: str) -> Iterator[str]:
    """Replace the word images in the last folder that has it: ``images_train/a`` → ``labels_train/a``."""
    *folders, name = stem.split("/")
    for position in reversed(range(len(folders))):
        if _IMAGES.search(folders[position]):
            for word in _LABEL_FOLDERS:
                for spelled in (word, word.capitalize()):
                    other = _IMAGES.sub(spelled, folders[position])
                    yield "/".join((*folders[:position], other, *folders[position + 1 :], name))
            return


def _largest_class(file: str) -> int:
    words = (line.split()[0] for line in read_text(file).splitlines() if line.strip())
    numbers = (word.removesuffix(".0") for word in words)
    # Numbers with more than four digits are not class numbers. They would make the list of classes enormous.
    return max((int(number) for number in numbers if number.isdecimal() and len(number) <= 4), default=-1)


def detected_labels(entry: Path) -> dict[str, str]:
    """Label file of each image, in the table that ``retinanet detect`` writes beside its labels."""
    rows = list(csv.reader(read_text(entry).splitlines()))
    return {row[1]: str(entry.parent / row[0]) for row in rows[1:] if len(row) == 2}


def layout_of_folder(root: Path) -> Layout | None:
    """Layout of a dataset folder, from its YAML or data file or its folder names; ``None`` if it is of no YOLO kind."""
    folders, files = listing(root)
    yamls = [file for file in files if file.suffix.lower() in (".yaml", ".yml")]
    for file in sorted(yamls, key=lambda f: f.stem.lower() not in ("data", "dataset")):
        if layout := layout_of_yaml(file, strict=file.stem.lower() == "data"):
            return layout
    settings = [file for folder in folders if folder.name.lower() in _SETTINGS for file in listing(folder)[1]]
    for file in (*files, *settings):
        if file.suffix.lower() == ".data" and (layout := layout_of_data_file(file)):
            return layout
    splits: dict[str, Path] = {}
    if both := _images_and_labels(root):
        images, labels = both
        inner = [folder for folder in listing(images)[0] if os.path.isdir(labels / folder.name)]
        mixed = any(is_image(file.name) for file in listing(images)[1])
        divided = inner and not mixed and any(is_split_name(folder.name) for folder in inner)
        splits = {folder.name: folder for folder in inner} if divided else {"": images}
    elif _is_detection_output(root):
        splits = {"": root / DETECTIONS}
    if not splits:
        splits = {folder.name: both[0] for folder in folders if (both := _images_and_labels(folder))}
    if not splits and _has_labeled_images(files):
        splits = {"": root}
    if not splits:
        named = (folder for folder in folders if is_split_name(folder.name))
        splits = {folder.name: folder for folder in named if _has_labeled_images(listing(folder)[1])}
    if not splits:
        splits = {file.stem: file for file in files if is_split_name(file.stem) and _lists_images(file)}
    if not splits:
        return None
    # Labelling tools put the list of classes into the folders of labels.
    places = [root, *(Path(label_path(str(path / "x"))).parent for path in splits.values() if os.path.isdir(path))]
    return Layout(root, {split: (path,) for split, path in splits.items()}, names_near(*places))


def _is_detection_output(root: Path) -> bool:
    table = root / DETECTIONS
    return os.path.isfile(table) and read_text(table).startswith("labels,path")


def _lists_images(file: Path) -> bool:
    if file.suffix.lower() != ".txt":
        return False
    lines = [line.strip() for line in read_text(file).splitlines()[:_PROBED_IMAGES]]
    return any(map(is_image, lines))


def _images_and_labels(folder: Path) -> tuple[Path, Path] | None:
    """The folder of images and the folder of label files in ``folder``; ``None`` if it does not have both."""
    inner = {path.name.lower(): path for path in reversed(listing(folder)[0])}
    for name in _LABEL_FOLDERS if "images" in inner else ():
        if name in inner and any(_may_be_label(file) for file in walk(inner[name])):
            return inner["images"], inner[name]
    return None


def _may_be_label(file: str) -> bool:
    return file.lower().endswith(".txt") and os.path.basename(file) != CLASS_LIST


def _has_labeled_images(files: list[Path]) -> bool:
    images = [str(file) for file in files if is_image(file.name)][:_PROBED_IMAGES]
    return any(label_file(image) for image in images)


def names_near(folder: Path, *others: Path) -> dict[int, str] | None:
    """Class names from a list or YAML file in one of the folders, their ``labels``, the parent or the grandparent."""
    above = folder.absolute().parent
    for place in (folder, *others, *(each / "labels" for each in (folder, *others)), above, above.parent):
        if file := class_file(place):
            return _numbered(read_class_file(file))
        for name in _YAML_FILES:
            if os.path.isfile(place / name) and (names := _names_of_yaml(place / name)) is not None:
                return names
    return None


def _numbered(names: dict[int, str]) -> dict[int, str]:
    """Name the classes without a name by their numbers."""
    return {number: name or str(number) for number, name in names.items()}


def layout_of_data_file(file: Path) -> Layout | None:
    """Layout that a data file of darknet describes, as CVAT writes it; ``None`` if the file is something else."""
    pairs = [line.partition("=") for line in read_text(file).splitlines() if not line.lstrip().startswith("#")]
    content = {key.strip().lower(): value.strip() for key, _, value in pairs if value.strip()}
    # Darknet starts relative paths from its own folder, for example data/ or cfg/ above the file's folder.
    places = (file.parent, file.absolute().parent.parent)
    splits: dict[str, tuple[Path, ...]] = {}
    for key, value in content.items():
        if is_split_name(key):
            found = existing_path(value, places)
            if found or key != "eval":  # "eval = coco" names the way of evaluation
                splits[key] = (found or file.parent / value,)
    if not splits:
        return None
    named = existing_path(content["names"], places) if "names" in content else None
    names = _numbered(read_class_file(named)) if named else names_near(file.parent)
    return Layout(file.parent, splits, names, file=file)


def existing_path(path: str, places: Sequence[Path]) -> Path | None:
    """The longest end of ``path`` that exists in one of the folders ``places``; ``None`` if there is none."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for place in places:
            if os.path.exists(found := place.joinpath(*parts[start:])):
                return found
    return None


def _load_yaml(file: Path, strict: bool) -> Any:
    """Content of a YAML file; ``None`` if it is broken and ``strict`` is off."""
    try:
        return yaml.load(read_text(file), _Loader)
    except (DataError, yaml.YAMLError, ValueError, RecursionError) as error:
        if not strict:
            return None
        if isinstance(error, DataError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = str(getattr(error, "problem", None) or error).split("\n")[0][:120]
        raise DataError(f"{file}{line}: not valid YAML ({reason}); correct it") from error


def _names_of_yaml(file: Path) -> dict[int, str] | None:
    """Class names that a YAML file lists; ``None`` if it lists none."""
    content = _load_yaml(file, strict=True)
    named = isinstance(content, dict) and ("names" in content or "nc" in content)
    return _names(content, file) if named else None


def layout_of_yaml(file: Path, strict: bool = True) -> Layout | None:
    """Layout that a YAML file describes; ``None`` if the file does not describe a dataset."""
    content = _load_yaml(file, strict)
    if not isinstance(content, dict) or not ("names" in content or "nc" in content):
        return None
    keys = [key for key, value in content.items() if isinstance(key, str) and value and _is_split(key, value, file)]
    moved: list[str] = []
    splits = {key: _entries(file, content.get("path"), content[key], moved) for key in keys}
    unnamed = content.get("names") is None
    if not splits:
        return None
    return Layout(file.parent, splits, _names(content, file), "kpt_shape" in content, unnamed, file, tuple(moved))


class _Loader(yaml.SafeLoader):
    """Refuses a key that appears twice; the plain loader would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, count in Counter(keys).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(problem=f"two keys {short(key)}", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _is_split(key: str, value: Any, file: Path) -> bool:
    """Whether a key of the YAML file is a split: the key is a split name, or the path repeats it."""
    return is_split_name(key) or (
        isinstance(value, str) and value in (f"images/{key}", f"{key}.txt") and os.path.exists(file.parent / value)
    )


def _names(content: dict[str, Any], file: Path) -> dict[int, str]:
    names = content.get("names")
    if names is None:
        count = content["nc"]
        if type(count) is not int or not 1 <= count <= _MOST_CLASSES:
            raise DataError(f"{file}: 'nc' is {short(count)}; give the number of classes, or a list 'names'")
        names = [str(i) for i in range(count)]
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else None
    if pairs is None:
        raise DataError(
            f"{file}: 'names' is {short(names)}; give a list of class names or a mapping from numbers to names"
        )
    result = {}
    for number, name in pairs:
        if type(number) is not int or type(name) not in (str, int) or not str(name).strip():
            raise DataError(f"{file}: class {short(number)} is called {short(name)}; put class names in quotes")
        result[number] = str(name).strip()
    return result


def _entries(file: Path, base: Any, value: Any, moved: list[str]) -> tuple[Path, ...]:
    """Resolve the paths of one split. A path that does not exist is kept; reading it raises the error."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) for v in values):
        raise DataError(f"{file}: paths of a split must be text, found {short(value)}; write a folder's path")
    places = [file.parent / base, file.parent] if isinstance(base, str) else [file.parent]
    found = []
    for entry in values:
        inner = entry
        while inner.startswith("../"):
            inner = inner[3:]
        # Roboflow writes ../train/images for a folder beside the YAML file.
        names = (inner, entry) if base is None else (entry, inner)
        options = [place / name for name in names for place in places]
        path = next((option for option in options if os.path.exists(option)), None)
        if path is None and (path := existing_path(entry, [file.parent])):
            moved.append(f"{file}: {entry} is {path}")
        found.append(path or places[0] / entry)
    return tuple(found)
