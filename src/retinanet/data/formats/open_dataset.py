"""Open a dataset: recognize its format, list its splits, and read the requested splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from retinanet.data.dataset import Dataset
from retinanet.data.formats import coco, csv, voc, yolo
from retinanet.data.formats.reading import SPLIT_ALIASES
from retinanet.errors import ConfigError, DataError

_FORMATS = """\
  COCO        instances_train.json, instances_val.json and images/; or train/_annotations.coco.json (Roboflow)
  Pascal VOC  Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt, val.txt; or train/*.xml, val/*.xml
  YOLO        data.yaml; or images/train, labels/train, images/val, labels/val and classes.txt
  CSV         train.csv, val.csv with rows path,x1,y1,x2,y2,class"""

_Split = TypeVar("_Split")


class _Reader(Protocol):
    def __call__(self, *, tolerant: bool = False) -> Dataset: ...


def read_split(path: str | Path, split: str) -> Dataset:
    """Read one split of a dataset in any supported format.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        split: name of the split. ``val`` also finds ``valid``, ``val2017`` and similar; ``train`` also finds a split
            without a name if it is the only split.

    Raises:
        DataError: there is no such dataset or split, or it cannot be used.
    """
    return open_dataset(path).read(split)


def read_all(path: str | Path) -> dict[str, Dataset]:
    """Read every split of a dataset, by name; an unnamed split is ``train``.

    The splits share one list of classes. If they list different classes, their lists are merged by category id.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.

    Raises:
        DataError: there is no such dataset, or it cannot be used.
    """
    return with_shared_classes({split or "train": read() for split, read in open_dataset(path).readers.items()})


def read_tolerantly(
    path: str | Path, train: str | None = None, val: str | None = None
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Read every split as far as possible, each with its own classes and with the place of each box.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        train: another split, file or folder to train on. Only ``train`` and ``val`` are read then.
        val: another split, file or folder to validate on.

    Returns:
        The splits by name (an unnamed split is ``train``), and the reason for each split that cannot be read.

    Raises:
        DataError: there is no such dataset, none of its splits can be read, or a requested split cannot be read.
    """
    data = open_dataset(path)
    if train or val:
        wanted = {role: name or role for role, name in (("train", train), ("val", val)) if name or data.resolve(role)}
        return {role: data.read_override(name, role, tolerant=True) for role, name in wanted.items()}, {}
    splits, failures = {}, {}
    for split, read in ((split or "train", read) for split, read in data.readers.items()):
        try:
            splits[split] = read(tolerant=True)
        except DataError as error:
            failures[split] = " ".join(str(error).split())
    if not splits:
        raise DataError(next(iter(failures.values())))
    return splits, failures


def with_shared_classes(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Give all splits one list of classes, in the order of the category ids."""
    ids: dict[str, int] = {}
    for dataset in splits.values():
        for name, number in zip(dataset.classes, dataset.category_ids, strict=True):
            ids.setdefault(name, number if number not in ids.values() else max(ids.values()) + 1)
    classes = sorted(ids, key=ids.__getitem__)
    numbers = tuple(ids[name] for name in classes)
    return {split: replace(data.with_classes(classes), category_ids=numbers) for split, data in splits.items()}


def read_train_val(
    path: str | Path, train: str | None = None, val: str | None = None, val_fraction: float = 0.1, seed: int = 0
) -> tuple[Dataset, Dataset, list[str]]:
    """Read the datasets for training and validation.

    Without a val split, a random subset of train is held out. A test split is never used for validation.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        train: another split, file or folder to train on.
        val: another split, file or folder to validate on.
        val_fraction: fraction of train to hold out if there is no val split.
        seed: selects the images to hold out.

    Returns:
        Train, val with the classes of train, and notes for the user.

    Raises:
        DataError: there is no such dataset or split, or it cannot be used.
    """
    data = open_dataset(path)
    train_data = data.read_override(train, "train") if train else data.read("train")
    notes: list[str] = []
    if val or data.resolve("val") is not None:
        val_data = (data.read_override(val, "val") if val else data.read("val")).with_classes(train_data.classes)
        shared = len(_paths(train_data) & _paths(val_data))
        if shared:
            notes.append(
                f"{shared} of the {len(val_data)} val images are also in train: scores on val will be too high"
            )
    else:
        train_data, val_data, note = _held_out(data, train_data, val_fraction, seed)
        notes.append(note)
        val_data = replace(val_data, problems=())  # the problems of val are reported with those of train
    return train_data, val_data, notes


def read_eval(path: str | Path, split: str, val_fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, list[str]]:
    """Read the dataset to evaluate on.

    For ``val``, these are the images that :func:`read_train_val` holds out with the same fraction and seed.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        split: name of a split, or a file or folder.
        val_fraction: fraction of train that is used as val if there is no val split.
        seed: selects the images of that fraction.

    Returns:
        The dataset, with its own classes, and notes for the user.

    Raises:
        DataError: there is no such dataset or split, or it cannot be used.
    """
    data = open_dataset(path)
    if split.lower() not in SPLIT_ALIASES["val"] or data.resolve(split) is not None:
        return data.read_override(split, split), []
    _, val, note = _held_out(data, data.read("train"), val_fraction, seed)
    return val, [note]


@dataclass(frozen=True)
class OpenedDataset:
    """The splits of a dataset, each with a function that reads it."""

    path: Path
    readers: dict[str, _Reader]

    def resolve(self, wanted: str) -> str | None:
        """Return the split that the name ``wanted`` stands for; ``None`` if there is no such split."""
        by_lower = {split.lower(): split for split in reversed(self.readers)}
        wanted = wanted if wanted in self.readers else wanted.lower()
        if wanted in self.readers or wanted in by_lower:
            return wanted if wanted in self.readers else by_lower[wanted]
        aliases = next((group for group in SPLIT_ALIASES.values() if wanted in group), ())
        for alias in aliases:
            if alias in by_lower:
                return by_lower[alias]
        only = next(iter(self.readers))
        held_out = (*SPLIT_ALIASES["val"], *SPLIT_ALIASES["test"])
        # A single split is used for training, unless it has the name of a held-out split.
        if wanted in SPLIT_ALIASES["train"] and len(self.readers) == 1 and only.lower() not in held_out:
            return only
        return None

    def read(self, wanted: str, tolerant: bool = False) -> Dataset:
        """Read the split that the name ``wanted`` stands for."""
        split = self.resolve(wanted)
        if split is None:
            names = ", ".join(name or "an unnamed split, used as train" for name in self.readers)
            raise DataError(f"{self.path}: no split {wanted!r}; choose one of the splits here: {names}")
        return self.readers[split](tolerant=tolerant)

    def read_override(self, wanted: str, role: str, tolerant: bool = False) -> Dataset:
        """Read the split named ``wanted``. If ``wanted`` is a path, read its only split or its split ``role``."""
        if self.resolve(wanted) is None:
            for path in (Path(wanted).expanduser(), self.path / wanted):
                if os.path.exists(path):
                    other = open_dataset(path)
                    only = next(iter(other.readers.values())) if len(other.readers) == 1 else None
                    return only(tolerant=tolerant) if only else other.read(role, tolerant)
        return self.read(wanted, tolerant)


def open_dataset(path: str | Path) -> OpenedDataset:
    """Recognize the format of a dataset and list its splits.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.

    Raises:
        DataError: there is no such file or folder, or its format is not recognized.
    """
    root = Path(path).expanduser()
    if not os.path.exists(root):
        raise DataError(f"{root}: no such file or folder; correct the path")
    if readers := recognize(root):
        return OpenedDataset(root, readers)
    if not root.is_dir():
        raise DataError(f"{root}: not an annotation file; give a COCO .json, a .csv, a YOLO .yaml or a folder")
    found = sorted(entry for entry in os.listdir(root) if not entry.startswith("."))
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    inner = next((entry for entry in found[:20] if os.path.isdir(root / entry) and _is_dataset(root / entry)), None)
    advice = f"\ndid you mean {root / inner}?" if inner else ""
    problem = f"no dataset recognized here (found {listed})" if found else "the folder is empty"
    raise DataError(f"{root}: {problem}; supported layouts:\n{_FORMATS}{advice}")


def recognize(root: Path) -> dict[str, _Reader]:
    """Return a reader for each split, from the first format that matches. Empty if no format matches."""
    return (
        _split_readers(coco.find, coco.read, root)
        or _split_readers(voc.find, voc.read, root)
        or _split_readers(yolo.find, yolo.read, root)
        or _split_readers(csv.find, csv.read, root)
    )


def _split_readers(
    find: Callable[[Path], dict[str, _Split]], read: Callable[..., Dataset], root: Path
) -> dict[str, _Reader]:
    return {split: partial(read, source, _title(root, split)) for split, source in find(root).items()}


def _is_dataset(folder: Path) -> bool:
    try:
        return bool(recognize(folder))
    except DataError:
        return False


def _title(root: Path, split: str) -> str:
    full = root.resolve()
    if not split:
        return full.stem if root.is_file() else full.name
    return f"{full.parent.name if root.is_file() else full.name} [{split}]"


def _held_out(data: OpenedDataset, train: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset, str]:
    if not 0 < fraction < 1:
        raise ConfigError(f"the fraction of train to hold out for val must be between 0 and 1, not {fraction:g}")
    kept, held_out = train.split(fraction, seed)
    note = f"no val split in {data.path}: {len(held_out)} of {len(train)} images are held out at random (seed {seed})"
    return (
        kept,
        replace(held_out, name=f"{train.name.removesuffix(']')}{', ' if ']' in train.name else ' ['}held out as val]"),
        note,
    )


def _paths(dataset: Dataset) -> set[str]:
    root = os.path.abspath(dataset.root)
    return {os.path.join(root, file) for file in dataset.files}
