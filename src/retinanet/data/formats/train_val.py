"""Read what a training or an evaluation needs; without a val split, images of train are held out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import DEFAULT_OPTIONS, OpenedDataset, open_dataset, told_once
from retinanet.data.formats.reading import split_role
from retinanet.data.split_frames import with_common_frame
from retinanet.errors import ConfigError, DataError
from retinanet.read_options import ReadOptions


def read_train_val(
    path: str | Path,
    train: str | None = None,
    val: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> tuple[Dataset, Dataset, list[str]]:
    """Read the datasets for training and validation.

    Without a val split, a random subset of train is held out. A test split is never used for validation.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        train: another split, file or folder to train on.
        val: another split, file or folder to validate on.
        val_fraction: fraction of train to hold out if there is no val split.
        seed: selects the images to hold out.
        options: how the dataset is read.

    Returns:
        Train and val with one list of classes, and notes for the user. A class that only val has comes last.

    Raises:
        DataError: there is no such dataset or split, or it cannot be used.
    """
    data = open_dataset(path, options)
    train_data = data.read_override(train, "train") if train else data.read("train")
    notes: list[str] = []
    if val or data.resolve("val") is not None:
        val_data = data.read_override(val, "val") if val else data.read("val")
        train_data, val_data = with_common_frame({"train": train_data, "val": val_data}).values()
        val_data = with_model_classes(val_data, train_data.classes)
        train_data = train_data.with_classes(val_data.classes)
        train_data, val_data = told_once({"train": train_data, "val": val_data}).values()
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


def can_train(
    path: str | Path, train: str | None = None, val: str | None = None, options: ReadOptions = DEFAULT_OPTIONS
) -> bool:
    """Whether :func:`read_train_val` finds the splits that it needs. The images are not read.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        train: another split, file or folder to train on.
        val: another split, file or folder to validate on.
        options: how the dataset is read.
    """
    try:
        data = open_dataset(path, options)
        if not (data.has(train) if train else data.resolve("train") is not None):
            return False
        if val or data.resolve("val") is not None:
            return not val or data.has(val)
        # Images of train are held out, which needs two of them.
        held_out_of = data.read_override(train, "train", tolerant=True) if train else data.read("train", tolerant=True)
        return len(held_out_of) > 1
    except DataError:
        return False


def with_model_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Re-index the labels into ``classes``; a class that only the dataset has is added at the end, with a note.

    Objects of an added class count as missed, because no model finds them.

    Raises:
        DataError: the dataset has boxes, but of none of ``classes``.
    """
    unknown = dataset.classes_missing_in(classes)
    counts = dataset.class_counts()
    if len(unknown) == sum(count > 0 for count in counts.values()):
        return dataset.with_classes(classes)
    result = dataset.with_classes([*classes, *unknown])
    for name in unknown:
        result = result.with_problem("unlearnt-class", dataset.name, f"{name!r} has {counts[name]} boxes here")
    return result


def read_eval(
    path: str | Path, split: str, val_fraction: float = 0.1, seed: int = 0, options: ReadOptions = DEFAULT_OPTIONS
) -> tuple[Dataset, list[str]]:
    """Read the dataset to evaluate on.

    For ``val``, these are the images that :func:`read_train_val` holds out with the same fraction and seed.

    Args:
        path: the dataset's folder, or its JSON, CSV or YAML file.
        split: name of a split, or a file or folder.
        val_fraction: fraction of train that is used as val if there is no val split.
        seed: selects the images of that fraction.
        options: how the dataset is read.

    Returns:
        The dataset, with its own classes, and notes for the user.

    Raises:
        DataError: there is no such dataset or split, or it cannot be used.
    """
    data = open_dataset(path, options)
    if split_role(split) != "val" or data.resolve(split) is not None:
        return data.read_override(split, split), []
    _, val, note = _held_out(data, data.read("train"), val_fraction, seed)
    return val, [note]


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
