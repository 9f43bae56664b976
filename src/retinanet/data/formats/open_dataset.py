"""Open a dataset: recognize its format, list its splits, and read the requested splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from retinanet.data.class_names import class_key
from retinanet.data.dataset import Dataset
from retinanet.data.formats.reading import SPLIT_ALIASES, split_role
from retinanet.data.formats.recognize import place_of_dataset, recognize
from retinanet.data.problems import Problem
from retinanet.data.split_frames import is_assumed, is_known, with_common_frame
from retinanet.errors import AbsentSplitError, DataError
from retinanet.read_options import ReadOptions

# How a dataset is read unless something else is given.
DEFAULT_OPTIONS = ReadOptions()


class _Reader(Protocol):
    def __call__(self, *, tolerant: bool = False) -> Dataset: ...


def read_split(path: str | Path, split: str, options: ReadOptions = DEFAULT_OPTIONS) -> Dataset:
    """Read one split of a dataset in any supported format.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        split: name of the split. ``val`` also finds ``valid``, ``val2017`` and similar; ``train`` also finds a split
            without a name if it is the only split.
        options: how the dataset is read.

    Raises:
        DataError: there is no such dataset or split, or it cannot be used.
    """
    return open_dataset(path, options).read(split)


def read_all(path: str | Path, options: ReadOptions = DEFAULT_OPTIONS) -> dict[str, Dataset]:
    """Read every split of a dataset, by name; an unnamed split is ``train``.

    The splits share one list of classes. If they list different classes, their lists are merged by category id.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        options: how the dataset is read.

    Raises:
        DataError: there is no such dataset, or it cannot be used.
    """
    readers = open_dataset(path, options).readers
    splits: dict[str, Dataset] = {}
    absent: list[AbsentSplitError] = []
    for split, read in readers.items():
        try:
            splits[split or "train"] = read()
        except AbsentSplitError as error:
            # Roboflow names a folder test/images even if the dataset has no test split.
            if split_role(split) != "test":
                raise
            absent.append(error)
    if not splits:
        raise absent[0]
    for problem in absent:
        first = next(iter(splits))
        splits[first] = splits[first].with_problem("absent-split", str(path), str(problem))
    return told_once(with_shared_classes(with_common_frame(splits)))


def read_tolerantly(
    path: str | Path, train: str | None = None, val: str | None = None, options: ReadOptions = DEFAULT_OPTIONS
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Read every split as far as possible, each with its own classes and with the place of each box.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        train: another split, file or folder to train on. Only ``train`` and ``val`` are read then.
        val: another split, file or folder to validate on.
        options: how the dataset is read.

    Returns:
        The splits by name (an unnamed split is ``train``), and the reason for each split that cannot be read.

    Raises:
        DataError: there is no such dataset, none of its splits can be read, or a requested split cannot be read.
    """
    data = open_dataset(path, options)
    if train or val:
        wanted = {role: name or role for role, name in (("train", train), ("val", val)) if name or data.resolve(role)}
        chosen = {role: data.read_override(name, role, tolerant=True) for role, name in wanted.items()}
        return with_common_frame(chosen), {}
    splits, failures = {}, {}
    for split, read in ((split or "train", read) for split, read in data.readers.items()):
        try:
            splits[split] = read(tolerant=True)
        except DataError as error:
            failures[split] = " ".join(str(error).split())
    if not splits:
        raise DataError(next(iter(failures.values())))
    return with_common_frame(splits), failures


def with_shared_classes(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Give all splits one list of classes, in the order of the category ids."""
    ids: dict[str, int] = {}
    names: dict[str, str] = {}  # the first name of each class, by its key
    for dataset in splits.values():
        for name, number in zip(dataset.classes, dataset.category_ids, strict=True):
            first = names.setdefault(class_key(name), name)
            ids.setdefault(first, number if number not in ids.values() else max(ids.values()) + 1)
    classes = sorted(ids, key=ids.__getitem__)
    numbers = tuple(ids[name] for name in classes)
    return {split: replace(data.with_classes(classes), category_ids=numbers) for split, data in splits.items()}


@dataclass(frozen=True)
class OpenedDataset:
    """The splits of a dataset, each with a function that reads it."""

    path: Path
    readers: dict[str, _Reader]
    options: ReadOptions = DEFAULT_OPTIONS

    def resolve(self, wanted: str) -> str | None:
        """Return the split that the name ``wanted`` stands for; ``None`` if there is no such split."""
        by_lower = {split.lower(): split for split in reversed(self.readers)}
        wanted = wanted if wanted in self.readers else wanted.lower()
        if wanted in self.readers or wanted in by_lower:
            return wanted if wanted in self.readers else by_lower[wanted]
        role = split_role(wanted)
        for alias in SPLIT_ALIASES.get(role, ()):
            if alias in by_lower:
                return by_lower[alias]
        if same := [split for split in self.readers if role and split_role(split) == role]:
            return same[0]
        only = next(iter(self.readers))
        # A single split is used for training, unless it has the name of a held-out split.
        if role == "train" and len(self.readers) == 1 and split_role(only) not in ("val", "test"):
            return only
        return None

    def has(self, wanted: str) -> bool:
        """Whether :meth:`read_override` finds the split or the path ``wanted``."""
        places = (Path(wanted).expanduser(), self.path / wanted)
        return self.resolve(wanted) is not None or any(map(os.path.exists, places))

    def read(self, wanted: str, tolerant: bool = False) -> Dataset:
        """Read the split that the name ``wanted`` stands for."""
        split = self.resolve(wanted)
        if split is None:
            names = ", ".join(name or "an unnamed split, used as train" for name in self.readers)
            raise DataError(f"{self.path}: no split {wanted!r}; choose one of the splits here: {names}")
        dataset = self.readers[split](tolerant=tolerant)
        return self._with_frame_of_siblings(split, dataset) if is_assumed(dataset) else dataset

    def _with_frame_of_siblings(self, split: str, dataset: Dataset) -> Dataset:
        """Read the boxes of ``split`` as those of the first other split that shows which images its boxes refer to."""
        for name, read in self.readers.items():
            if name == split:
                continue
            try:
                sibling = read()
            except DataError:
                continue  # the user did not ask for this split
            if is_known(sibling):
                return with_common_frame({split: dataset, name or "train": sibling})[split]
        return dataset

    def read_override(self, wanted: str, role: str, tolerant: bool = False) -> Dataset:
        """Read the split named ``wanted``. If ``wanted`` is a path, read its only split or its split ``role``."""
        if self.resolve(wanted) is None:
            for path in (Path(wanted).expanduser(), self.path / wanted):
                if os.path.exists(path):
                    other = open_dataset(path, self.options)
                    only = next(iter(other.readers.values())) if len(other.readers) == 1 else None
                    return only(tolerant=tolerant) if only else other.read(role, tolerant)
        return self.read(wanted, tolerant)


def open_dataset(path: str | Path, options: ReadOptions = DEFAULT_OPTIONS) -> OpenedDataset:
    """Recognize the format of a dataset and list its splits.

    If the folder holds no dataset, but exactly one of its sub-folders does, that sub-folder is used.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        options: how the dataset is read.

    Raises:
        DataError: there is no such file or folder, or its format is not recognized.
    """
    root = Path(path).expanduser()
    if not os.path.exists(root):
        raise DataError(f"{root}: no such file or folder; correct the path")
    place, depth = place_of_dataset(root)
    readers: dict[str, _Reader] = {
        split: _Read(read, options, place, depth) for split, read in recognize(place).items()
    }
    return OpenedDataset(root, readers, options)


@dataclass(frozen=True)
class _Read:
    """Reads one split. ``place`` is the folder of the dataset, ``depth`` levels below the given one."""

    read: Callable[..., Dataset]
    options: ReadOptions
    place: Path
    depth: int

    def __call__(self, *, tolerant: bool = False) -> Dataset:
        dataset = self.read(options=self.options, tolerant=tolerant)
        if not self.depth:
            return dataset
        return dataset.with_problem("inner-folder", str(self.place), "the given folder itself holds no dataset")


def told_once(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Drop the problems of a split that an earlier split has too, such as those of a common list of classes."""
    told: set[Problem] = set()
    result = {}
    for split, dataset in splits.items():
        result[split] = replace(dataset, problems=tuple(p for p in dataset.problems if p not in told))
        told.update(dataset.problems)
    return result
