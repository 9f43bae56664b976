"""Helpers of the readers: text files, folder listings, split names, image paths and image sizes."""

from __future__ import annotations

import json
import os
import posixpath
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from retinanet.data.dataset import IGNORE_CLASS, DatasetBuilder
from retinanet.errors import DataError
from retinanet.files import special_file

# All names of a split, the usual name first.
SPLIT_ALIASES = {
    "train": ("train", "training", "trn", "train2017"),
    "val": ("val", "valid", "validation", "dev", "eval", "vld", "val2017"),
    "test": ("test", "testing", "test2017"),
}
_ROLES = {alias: role for role, group in SPLIT_ALIASES.items() for alias in group} | {"trainval": "trainval"}

# What surrounds the name of a split in the names of folders and lists: train_set, val-v2, images_train, 01_val.
_AROUND_SPLIT = re.compile(
    r"^(\d{1,2}|images|imgs|image|img|data|dataset|labels|split|obj)[\W_]+"
    r"|[\W_]*(set|data|images|imgs|split|list|v?\d{1,4})$"
)

# File beside the annotations with one class name per line.
CLASS_LIST = "classes.txt"

# Largest number of bytes of a path, and of one component of a path, on common file systems.
_LONGEST_PATH, _LONGEST_COMPONENT = 4095, 255


def is_split_name(name: str) -> bool:
    """Whether a folder or file with this name is a split of a dataset."""
    return bool(split_role(name))


def split_role(name: str) -> str:
    """Return ``train``, ``val``, ``test`` or ``trainval`` for a split's name in any spelling; ``""`` for others."""
    lower = name.lower()
    return _ROLES.get(lower) or _ROLES.get(_AROUND_SPLIT.sub("", lower), "")


def is_ignore(class_name: str) -> bool:
    """Whether boxes of this class are ignore regions rather than objects."""
    return class_name.strip().lower() == IGNORE_CLASS


def split_of(file: Path) -> str:
    """Split that the name of an annotation file contains: ``instances_train2017`` → ``train2017``; ``""`` if none."""
    if file.stem.lower().startswith("instances_"):
        return file.stem[len("instances_") :]
    return next((word for word in re.split(r"[^A-Za-z0-9]+", file.stem) if is_split_name(word)), "")


def by_split(files: Iterable[Path]) -> dict[str, Path]:
    """Map each split to its file. A file whose split is uncertain is keyed by its own name."""
    files = list(files)
    claims = Counter(split_of(file) for file in files)
    found: dict[str, Path] = {}
    for file in files:
        split = split_of(file)
        # A single file is the whole dataset, whatever its name. If there are several files, their names tell the
        # splits.
        sure = (claims[split] == 1 and (split != "" or len(files) == 1)) or file.stem in (split, f"instances_{split}")
        found.setdefault(split if sure else file.stem, file)
    return found


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Sub-folders and files of a folder, sorted by name, without hidden ones."""
    try:
        entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); permit reading it") from error
    paths = [folder / entry for entry in entries]
    return [p for p in paths if os.path.isdir(p)], [p for p in paths if os.path.isfile(p)]


def walk(folder: Path) -> Iterable[str]:
    """Yield every file below ``folder``, sorted. Links are followed, and each folder is visited once."""
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (place := (status.st_dev, status.st_ino)) in visited:
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _loops(folder, parent, name))
        yield from (os.path.join(parent, name) for name in sorted(files) if not name.startswith("."))


def _loops(start: Path, parent: str, name: str) -> bool:
    """Whether a folder is a link to the start of the walk or to a folder above it."""
    path = os.path.join(parent, name)
    return os.path.islink(path) and f"{os.path.realpath(start)}{os.sep}".startswith(
        os.path.join(os.path.realpath(path), "")
    )


def read_text(file: Path | str) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte-order mark, as Excel writes it. The mark is left out.

    Raises:
        DataError: the file is missing, unreadable, not a regular file or not UTF-8.
    """
    if special := special_file(file):
        raise DataError(f"{file}: not a text file but {special}; remove it or put the file there")
    try:
        content = Path(file).read_bytes()
        return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; correct the path or restore the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); save it again with UTF-8 encoding") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore it or permit reading") from error


def read_json(file: Path, expected: str) -> Any:
    """Read a JSON file.

    Args:
        file: its path.
        expected: the content in words, for the error about an empty file.

    Raises:
        DataError: it cannot be read or is not JSON, or an object has a key twice.
    """
    text = read_text(file)
    if not text.strip():
        raise DataError(f"{file}: the file is empty; expected {expected}")
    try:
        return json.loads(text, object_pairs_hook=partial(_object, file))
    except json.JSONDecodeError as error:
        line = f"{file}:{error.lineno}:{error.colno}"
        raise DataError(f"{line}: not valid JSON ({error.msg}); the file may be cut short, export it again") from error
    except (RecursionError, ValueError) as error:  # very deep nesting; a number with thousands of digits
        raise DataError(f"{file}: not usable JSON ({str(error)[:80]}); export it again") from error


def _object(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):  # Python would keep only the last value, and the boxes in the first would be lost
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DataError(f"{file}: an object has two keys {short(twice)}; remove one of them")
    return result


def clean_path(name: str, where: str) -> str:
    """Normalize an image path from an annotation file: forward slashes, no ``.`` and no inner ``..``.

    Raises:
        DataError: no file can have that name.
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    try:
        encoded = path.encode("utf-8", "surrogateescape")
        possible = len(encoded) <= _LONGEST_PATH and max(map(len, encoded.split(b"/"))) <= _LONGEST_COMPONENT
    except UnicodeEncodeError:
        possible = False
    if not possible or "\0" in path or path == ".":
        raise DataError(f"{where}: {short(name)} is not a possible file name; write the path of an image")
    return path


def short(value: object) -> str:
    """Shorten a value from a file to about one line, however large or nested it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else f"{text[:116]} …"


def inside_path(name: str, where: str) -> str:
    """Normalize a path as :func:`clean_path` does, and refuse paths that lead out of the data folder.

    Raises:
        DataError: no file can have that name, or it is absolute or climbs out with ``..``.
    """
    path = clean_path(name, where)
    on_drive = re.match("[A-Za-z]:/", path) or (os.name == "nt" and ":" in path)
    if on_drive or path.startswith("/") or path.split("/")[0] == "..":
        raise DataError(
            f"{where}: path {short(name)} leads out of the data folder; write it relative to the image folder"
        )
    return path


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = _SHORT.maxlist = _SHORT.maxdict = 3


class UnlistedClasses:
    """Records classes that ``classes.txt`` lacks, each once."""

    def __init__(self, builder: DatasetBuilder, listed: Collection[str]) -> None:
        self._builder = builder
        self._known = {*listed} if listed else {*builder.labels}

    def check(self, name: str, where: str) -> None:
        """Record ``name`` if it is unknown and not the class of ignore regions."""
        if name not in self._known and not is_ignore(name):
            self._known.add(name)
            self._builder.report("unlisted-class", where, f"class {name!r} is not in {CLASS_LIST}")
