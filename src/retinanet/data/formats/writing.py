"""Helpers of the writers: exact decimals, names that every format can store, and copies of or links to images."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import IGNORE_CLASS, Dataset
from retinanet.data.formats.reading import CLASS_LIST
from retinanet.data.image_suffixes import is_image
from retinanet.errors import DataError

ImageMode = Literal["copy", "link", "none"]
ProgressCallback = Callable[[int], object]

# Unicode categories that a line of text cannot contain: control characters, surrogates, line separators, and unassigned
# code points. XML cannot contain some of them either.
_NOT_PLAIN = frozenset({"Cc", "Cs", "Zl", "Zp", "Cn"})


def decimals(values: npt.NDArray[np.float32]) -> list[list[str]]:
    """For each number of ``(M, C)``, the shortest text that reads back as the same float32, without a needless dot."""
    return [[text.removesuffix(".0") for text in row] for row in values.astype(str).tolist()]


def is_plain(text: str) -> bool:
    """Whether ``text`` can be a line of a text file and the content of an XML element."""
    return bool(text) and text == text.strip() and not any(unicodedata.category(c) in _NOT_PLAIN for c in text)


def check_classes(splits: Mapping[str, Dataset], target: str) -> None:
    """Raise DataError for a class name that a line of text or XML cannot contain."""
    for dataset in splits.values():
        for name in dataset.classes:
            if not is_plain(name):
                raise DataError(
                    f"{dataset.name}: class name {name!r} is empty or has a line break or control character, which "
                    f"{target} cannot store; rename the class"
                )


def write_class_list(folder: Path, splits: Mapping[str, Dataset]) -> None:
    """Write ``classes.txt``, which keeps the order of the classes, including those without boxes."""
    names = next(iter(splits.values())).classes
    (folder / CLASS_LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def class_name(dataset: Dataset, row: int) -> str:
    """Class of a box in a format that marks ignore regions with the class ``ignore``."""
    return IGNORE_CLASS if dataset.ignore[row] else dataset.classes[dataset.labels[row]]


@dataclass(frozen=True)
class SplitImages:
    """Images of a split and their names below the folder to write.

    Attributes:
        base: folder that contains all source images.
        sources: absolute path of each image.
        names: new relative path of each image, with forward slashes; unique.
        renamed: old and new name of each image whose name changes.
    """

    base: Path
    sources: list[str]
    names: list[str]
    renamed: list[tuple[str, str]]

    @classmethod
    def of(cls, split: str, dataset: Dataset, stems_differ: bool = False) -> SplitImages:
        """Name the images of ``dataset``.

        An image keeps its path below ``dataset.root``, without the folder of the split (``images/train/``). Images that
        are elsewhere keep their path below their common folder.

        Args:
            split: name of the split.
            dataset: the split.
            stems_differ: make names differ even without their suffix, and give every name the suffix of an image.
        """
        root = os.path.abspath(dataset.root)
        sources = [os.path.abspath(os.path.join(root, file)) for file in dataset.files]
        if not all(source.startswith(os.path.join(root, "")) for source in sources):
            folders = {os.path.dirname(source) for source in sources}
            same_drive = len({os.path.splitdrive(folder)[0] for folder in folders}) == 1
            root = os.path.commonpath(folders) if same_drive else ""
        cut = len(os.path.join(root, "")) if root else 0
        paths = [source[cut:].replace(os.sep, "/") if root else os.path.basename(source) for source in sources]
        for own in (f"images/{split}/", f"{split}/images/", f"{split}/", "images/"):
            if all(path.startswith(own) for path in paths):
                root, paths = os.path.join(root, own), [path[len(own) :] for path in paths]
                break
        names = _unique([_readable_path(path, stems_differ) for path in paths], stems_differ)
        renamed = [(path, name) for path, name in zip(paths, names, strict=True) if path != name]
        return cls(Path(root), sources, names, renamed)

    @classmethod
    def together(cls, several: Iterable[SplitImages]) -> SplitImages:
        """Merge the images of several splits; an image that several splits share is kept once."""
        sources = {name: source for each in several for name, source in zip(each.names, each.sources, strict=True)}
        return cls(Path(), list(sources.values()), list(sources), [])

    def place(self, folder: Path, images: ImageMode, progress: ProgressCallback) -> None:
        """Copy the images to ``folder``, or link to each file. With ``none``, make ``folder`` a link to their folder.

        Raises:
            DataError: images are missing, or ``none`` is impossible because images must be renamed.
        """
        if images == "none":
            if self.renamed:
                old, new = self.renamed[0]
                raise DataError(f"{self.base}: {old!r} must be renamed to {new!r}; use --images copy or link")
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(self.base.resolve(), target_is_directory=True)
            progress(len(self.sources))
            return
        missing = [source for source in self.sources if not os.access(source, os.R_OK) or os.path.isdir(source)]
        if missing:
            count = f"{len(missing)} of {len(self.sources)} images are missing or cannot be read"
            raise DataError(f"{count}, first {missing[0]}; restore them or remove them from the annotations")
        for source, name in zip(self.sources, self.names, strict=True):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):  # on a file system that does not distinguish A.jpg and a.jpg
                raise DataError(f"{source}: another image is called {name} already; rename one of them")
            _link(source, target) if images == "link" else shutil.copyfile(source, target)
            progress(1)


def check_splits(splits: Collection[str]) -> None:
    """Raise DataError for a split whose name cannot be a file name."""
    for split in splits:
        if not is_plain(split) or re.search(r"[/\\:]", split) or split.startswith("."):
            raise DataError(f"a split is called {split!r}, which is not a possible file name; rename it")


def _link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        target.symlink_to(os.path.realpath(source))


def _readable_path(path: str, image_suffix: bool) -> str:
    """Path that every reader finds: no control characters, backslashes, outer blanks or hidden folders."""
    components = []
    for component in path.split("/"):
        text = "".join("_" if unicodedata.category(c) in _NOT_PLAIN or c == "\\" else c for c in component).strip()
        components.append(f"_{text[1:]}" if text.startswith(".") else text or "_")
    name = "/".join(components)
    return f"{name}.jpg" if image_suffix and not is_image(name) else name  # decoders ignore the suffix


def _unique(names: list[str], stems_differ: bool) -> list[str]:
    taken: set[str] = set()
    result = []
    for name in names:
        path, number = PurePosixPath(name), 1
        while (key := os.path.splitext(name)[0] if stems_differ else name) in taken:
            number += 1
            name = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
        taken.add(key)
        result.append(name)
    return result
