"""Repair the defects of a dataset that need no decision, and list the changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.inspection.box_checks import same_boxes
from retinanet.inspection.checks import CheckResult
from retinanet.inspection.duplicates import Pair
from retinanet.inspection.splits import role

# An image that two splits share is kept in the held-out split. So scores stay comparable, and train loses few images.
_PRIORITY = {"test": 0, "val": 1, "train": 2}


def repair(splits: Mapping[str, Dataset], checked: CheckResult) -> tuple[dict[str, Dataset], list[str]]:
    """Repair the defects that need no decision of the user.

    Boxes that the readers dropped or clipped stay dropped or clipped. Broken images are removed. Of equal images, one
    is kept: preferably in test, then in val, then in train. Duplicate boxes are kept once.

    Args:
        splits: the dataset.
        checked: the result of its checks.

    Returns:
        The repaired splits, without splits that became empty, and one line for each change.
    """
    changes = [f"{split}: {problem}" for split, dataset in splits.items() for problem in dataset.problems]
    places = [(split, index) for split, dataset in splits.items() for index in dataset]
    paths = [str(splits[split].path(index)) for split, index in places]
    removed = _extra_copies(splits, checked.pairs, places)
    for number, keeper in removed.items():
        split, kept_in = places[number][0], places[keeper][0]
        changes.append(f"{split}: {paths[number]}: same image as {paths[keeper]}, which stays in {kept_in}; removed")
    for number, found in enumerate(checked.scans):
        if found.error is not None:
            removed[number] = number
            changes.append(f"{places[number][0]}: {found.error}; removed")
    result, first = {}, 0
    for split, dataset in splits.items():
        kept = [index for index in dataset if first + index not in removed]
        first += len(dataset)
        if kept:
            result[split], box_changes = _without_duplicate_boxes(split, dataset.subset(kept))
            changes += box_changes
        else:
            changes.append(f"{split}: no image is left; removed")
    return result, changes


def _extra_copies(
    splits: Mapping[str, Dataset], pairs: Sequence[Pair], places: Sequence[tuple[str, int]]
) -> dict[int, int]:
    """Map each redundant image to the equal image that is kept."""
    group = list(range(len(places)))  # for each image, the first image with its content

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for pair in pairs:
        if pair.exact:
            low, high = sorted((root(pair.first), root(pair.second)))
            group[high] = low

    def rank(number: int) -> tuple[int, int, int]:
        split, index = places[number]
        boxes = splits[split].rows(index)
        return _PRIORITY.get(role(split), 3), boxes.start - boxes.stop, number

    same: dict[int, list[int]] = {}
    for number in {n for pair in pairs if pair.exact for n in (pair.first, pair.second)}:
        same.setdefault(root(number), []).append(number)
    keepers = {member: min(members, key=rank) for members in same.values() for member in members}
    return {number: keeper for number, keeper in sorted(keepers.items()) if number != keeper}


def _without_duplicate_boxes(split: str, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """If two boxes of one class are in the same place, remove the later box."""
    keep = np.ones(len(dataset.boxes), dtype=np.bool_)
    changes = []
    for index in dataset:
        rows = np.arange(dataset.offsets[index], dataset.offsets[index + 1])
        for row in _duplicate_rows(dataset, rows[~dataset.ignore[rows]].tolist()):
            keep[row] = False
            corners = ", ".join(f"{v:g}" for v in dataset.boxes[row].tolist())
            name = dataset.classes[dataset.labels[row]]
            changes.append(f"{split}: {dataset.path(index)}: {name} ({corners}) is a duplicate; dropped")
    return (dataset if keep.all() else dataset.with_boxes(keep)), changes


def _duplicate_rows(dataset: Dataset, rows: Sequence[int]) -> Iterable[int]:
    for label in set(dataset.labels[rows].tolist()):
        of_class = [row for row in rows if dataset.labels[row] == label]
        if len(of_class) > 1:
            yield from (of_class[later] for _, later in same_boxes(dataset.boxes[of_class]))
