"""A dataset without what is surely wrong in it, and a line for each change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.inspection.checks import Diagnosis, role, same_boxes
from retinanet.inspection.duplicates import Pair

# Of pictures that two splits share, the held-out one stays: scores stay comparable, and train loses little.
_STAYS = {"test": 0, "val": 1, "train": 2}


def clean(splits: Mapping[str, Dataset], diagnosis: Diagnosis) -> tuple[dict[str, Dataset], list[str]]:
    """Repair what can be repaired without asking.

    What the readers dropped and clipped stays dropped and clipped. Broken pictures are left out, pictures that are
    exactly the same are kept once (in test rather than val, in val rather than train), boxes that are there twice are
    kept once, and classes whose names differ only by case or space become one.

    Args:
        splits: what was diagnosed.
        diagnosis: what was found in it.

    Returns:
        The repaired splits, and a line for each change. A split of which nothing is left is left out.
    """
    changes = [f"{split}: {problem}" for split, dataset in splits.items() for problem in dataset.problems]
    places = [(split, index) for split, dataset in splits.items() for index in dataset]
    paths = [str(splits[split].path(index)) for split, index in places]
    gone = _surplus(splits, diagnosis.pairs, places)
    for number, keeper in gone.items():
        split, stays = places[number][0], places[keeper][0]
        changes.append(f"{split}: {paths[number]}: same picture as {paths[keeper]}, which stays in {stays}; left out")
    for number, found in enumerate(diagnosis.scans):
        if found.error is not None:
            gone[number] = number
            changes.append(f"{places[number][0]}: {found.error}; left out")
    merged, said = _merged_classes(splits)
    changes += said
    result, first = {}, 0
    for split, dataset in merged.items():
        kept = [index for index in dataset if first + index not in gone]
        first += len(dataset)
        if kept:
            result[split], said = _boxes_once(split, dataset.subset(kept))
            changes += said
        else:
            changes.append(f"{split}: no picture is left; left out")
    return result, changes


def _surplus(splits: Mapping[str, Dataset], pairs: Sequence[Pair], places: Sequence[tuple[str, int]]) -> dict[int, int]:
    """Pictures to leave out, and for each the one of the same content that stays."""
    group = list(range(len(places)))  # of each picture, the first one of its content

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
        return _STAYS.get(role(split), 3), boxes.start - boxes.stop, number

    same: dict[int, list[int]] = {}
    for number in {n for pair in pairs if pair.exact for n in (pair.first, pair.second)}:
        same.setdefault(root(number), []).append(number)
    keepers = {member: min(members, key=rank) for members in same.values() for member in members}
    return {number: keeper for number, keeper in sorted(keepers.items()) if number != keeper}


def _merged_classes(splits: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], list[str]]:
    """The splits with one class for those whose names differ only by case or space: the commonest of the names."""
    first = next(iter(splits.values()))
    totals = {name: sum(d.class_counts()[name] for d in splits.values()) for name in first.classes}
    groups: dict[str, list[str]] = {}
    for name in first.classes:
        groups.setdefault("".join(name.casefold().split()), []).append(name)
    chosen = {name: max(names, key=totals.__getitem__) for names in groups.values() for name in names}
    changes = [f"class {name!r} ({totals[name]} boxes): now {new!r}" for name, new in chosen.items() if name != new]
    if not changes:
        return dict(splits), []
    kept = [name for name in first.classes if chosen[name] == name]
    ids = tuple(i for name, i in zip(first.classes, first.category_ids, strict=True) if chosen[name] == name)
    table = np.array([*(kept.index(chosen[name]) for name in first.classes), NO_CLASS], dtype=np.int32)
    return {
        split: replace(dataset, classes=tuple(kept), category_ids=ids, labels=table[dataset.labels])
        for split, dataset in splits.items()
    }, changes


def _boxes_once(split: str, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """Without the later of two boxes of one class in the same place."""
    keep = np.ones(len(dataset.boxes), dtype=np.bool_)
    changes = []
    for index in dataset:
        rows = np.arange(dataset.offsets[index], dataset.offsets[index + 1])
        for row in _later_twins(dataset, rows[~dataset.ignore[rows]].tolist()):
            keep[row] = False
            corners = ", ".join(f"{v:g}" for v in dataset.boxes[row].tolist())
            name = dataset.classes[dataset.labels[row]]
            changes.append(f"{split}: {dataset.path(index)}: {name} ({corners}) is there twice; dropped")
    return (dataset if keep.all() else dataset.with_boxes(keep)), changes


def _later_twins(dataset: Dataset, rows: Sequence[int]) -> Iterable[int]:
    for label in set(dataset.labels[rows].tolist()):
        of_class = [row for row in rows if dataset.labels[row] == label]
        if len(of_class) > 1:
            yield from (of_class[later] for _, later in same_boxes(dataset.boxes[of_class]))
