"""Checks of classes: names, and the number of boxes of each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from retinanet.inspection.findings import Finding
from retinanet.inspection.splits import Splits, role

# A class with fewer boxes than this in train is rare.
_RARE_CLASS = 10


def class_findings(splits: Splits, own_classes: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Findings about class names and the number of boxes of each class."""
    counts = {split: dataset.class_counts() for split, dataset in splits.items()}
    yield from _similar_classes(splits, counts)
    train = next((split for split in splits if role(split) == "train"), None)
    if train is None:
        return
    held_out = [split for split in splits if split != train]
    for name, number in counts[train].items():
        others = {split: counts[split][name] for split in held_out if counts[split][name]}
        if number == 0:
            yield _not_in_train(name, splits, train, others, name in own_classes[train])
        elif number < _RARE_CLASS:
            yield Finding("rare-class", train, splits[train].name, f"{name!r}: {number} box{'es' * (number != 1)}")
        if number:
            for split in held_out:
                if split not in others and any(counts[split].values()):
                    what = f"{name!r}: {number} in {train}, none here"
                    yield Finding("never-measured", split, splits[split].name, what)


def _similar_classes(splits: Splits, counts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Findings about class names that differ only by a hyphen or underscore; readers merge case and spaces."""
    first = next(iter(splits))
    groups: dict[str, list[str]] = {}
    for name in splits[first].classes:
        groups.setdefault("".join(c for c in name.casefold() if not c.isspace() and c not in "-_"), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            boxes = ", ".join(f"{name!r} ({sum(c[name] for c in counts.values())} boxes)" for name in names)
            used = ", ".join(split for split, count in counts.items() if any(count[name] for name in names))
            yield Finding("similar-classes", used or first, splits[first].title, boxes)


def _not_in_train(name: str, splits: Splits, train: str, others: Mapping[str, int], listed: bool) -> Finding:
    """Finding about a class without a box in train.

    Args:
        name: the class.
        splits: all splits.
        train: name of the training split.
        others: number of boxes of the class, for each other split that has such boxes.
        listed: whether train lists the class.
    """
    if not others:
        return Finding("never-learnt", train, splits[train].name, f"{name!r}: no box in any split")
    places = ", ".join(f"{number} in {split}" for split, number in others.items())
    first, what = next(iter(others)), f"{name!r}: no box in {train}, {places}"
    if listed:
        return Finding("never-learnt", first, splits[first].name, what)
    return Finding("unknown-class", first, splits[first].name, what)
