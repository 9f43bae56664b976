"""Checks of a dataset: files, boxes, classes, duplicates and leaks between splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torchvision.ops import box_iou

from retinanet.config import DataConfig
from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.data.formats.reading import SPLIT_ALIASES, is_image
from retinanet.data.problems import Problem
from retinanet.data.transforms import scaled_size
from retinanet.inspection.duplicates import Pair, Scan, find_pairs, scan
from retinanet.inspection.findings import Finding, Sight

# IoU above which two boxes are in the same place.
SAME_BOX = 0.95

# A class with fewer boxes than this in train is rare.
_RARE_CLASS = 10

# Side in pixels of the network's input below which a box is tiny.
_TINY = 2.0

# A huge box covers more than this fraction of its image. It is reported only if such boxes are at most this rare.
_HUGE, _RARE_HUGE = 0.9, 0.05

# A box around at least this many boxes of its class may be an unflagged crowd.
_CROWD = 5

# An image has few boxes if it has at most this fraction of the median, and the median is at least this large.
_FEW_BOXES, _MANY_BOXES = 0.25, 8

# Finding that each kind of problem of the readers becomes.
FINDING_OF_PROBLEM = {
    "unreadable-image": "broken-image",
    "unreadable-annotations": "broken-annotation",
    "missing-annotations": "broken-annotation",
    "annotation-without-image": "broken-annotation",
    "unknown-class-id": "broken-annotation",
    "zero-area-box": "bad-box",
    "inverted-box": "bad-box",
    "outside-box": "bad-box",
    "non-finite-box": "bad-box",
    "malformed-box": "bad-line",
    "malformed-line": "bad-line",
    "unnamed-object": "bad-line",
    "repeated-element": "bad-line",
    "label-without-image": "bad-line",
    "image-without-annotations": "unlisted-image",
    "clipped-box": "clipped-box",
    "invalid-flag": "remark",
    "heading-category": "remark",
    "image-ids": "remark",
    "listed-twice": "remark",
    "unlabelled-image": "remark",
    "unlabelled-split": "remark",
    "unnamed-classes": "remark",
    "unlisted-class": "remark",
}

_CROWD_POLICY = {
    "ignore": "these regions are neither object nor background (--data.crowd ignore)",
    "drop": "these regions are learnt as background (--data.crowd drop)",
    "object": "these regions are learnt as ordinary objects (--data.crowd object)",
}

Splits = Mapping[str, Dataset]


@dataclass(frozen=True)
class CheckResult:
    """Findings of all checks, and the intermediate results that a repair needs.

    Attributes:
        findings: in no order, see :func:`retinanet.inspection.findings.by_kind`.
        scans: of the images of all splits, one split after the other.
        pairs: of equal or nearly equal images; the images are numbered as in ``scans``.
    """

    findings: list[Finding]
    scans: list[Scan]
    pairs: list[Pair]


def run_checks(
    splits: Splits,
    failures: Mapping[str, str],
    own_classes: Mapping[str, Sequence[str]],
    data: DataConfig,
    whole: bool = True,
    progress: Callable[[int], object] = lambda images: None,
) -> CheckResult:
    """Run all checks on a dataset.

    Args:
        splits: from :func:`retinanet.data.formats.open_dataset.read_tolerantly`, with one list of classes.
        failures: for each split that cannot be read, the reason.
        own_classes: the classes that each split lists itself.
        data: size of the network's input.
        whole: ``splits`` are all splits of the dataset, so an image that none of them lists is not used.
        progress: called with the number of images just decoded.
    """
    scans = scan(list(splits.values()), progress)
    pairs = find_pairs(list(splits.values()), scans)
    findings = [Finding("unreadable-split", split, reason, "cannot be used") for split, reason in failures.items()]
    first = 0
    for split, dataset in splits.items():
        findings += [_of_problem(split, problem) for problem in dataset.problems]
        findings += _image_files(split, dataset, scans[first : first + len(dataset)])
        findings += _boxes(split, dataset, data)
        findings += _box_counts(split, dataset, data)
        first += len(dataset)
    findings += _classes(splits, own_classes)
    findings += _duplicate_images(splits, pairs)
    if whole and not failures:  # an unreadable split may list them
        findings += _unlisted_images(splits)
    return CheckResult(findings, scans, pairs)


def without_unions(splits: Splits) -> tuple[dict[str, Dataset], dict[str, list[str]]]:
    """Remove splits that are the union of others, such as VOC's ``trainval``.

    Returns:
        The remaining splits, train first; and for each removed split the splits that it is the union of.
    """
    files = {split: {str(dataset.path(i)) for i in dataset} for split, dataset in splits.items()}
    unions = {}
    for split, own in files.items():
        subsets = [other for other, theirs in files.items() if other != split and theirs < own]
        if len(subsets) > 1 and set().union(*(files[subset] for subset in subsets)) == own:
            unions[split] = subsets
    return _in_order({split: dataset for split, dataset in splits.items() if split not in unions}), unions


def _in_order(splits: Splits) -> dict[str, Dataset]:
    """Sort the splits: train, val, test, others."""
    order = list(SPLIT_ALIASES)
    return dict(sorted(splits.items(), key=lambda s: order.index(role(s[0])) if role(s[0]) in order else len(order)))


def role(split: str) -> str:
    """Return ``train``, ``val`` or ``test`` for all names of these splits, else the split's own name."""
    return next((name for name, aliases in SPLIT_ALIASES.items() if split.lower() in aliases), split)


def _of_problem(split: str, problem: Problem) -> Finding:
    """Turn a problem that the reader found into a finding."""
    code = FINDING_OF_PROBLEM[problem.code]
    effect = problem.action if code == "remark" or problem.code == "label-without-image" else ""
    return Finding(code, split, problem.where, problem.message, effect=effect)


def _image_files(split: str, dataset: Dataset, scans: Sequence[Scan]) -> Iterator[Finding]:
    """Findings about the image files."""
    for index, found in enumerate(scans):
        path, size = str(dataset.path(index)), tuple(dataset.sizes[index].tolist())
        if found.error is not None:
            yield Finding("broken-image", split, path, found.error.removeprefix(f"{path}: "))
        elif found.size != size:
            yield Finding(
                "image-size",
                split,
                path,
                f"the image has {found.size[0]}×{found.size[1]} pixels, its annotations say {size[0]}×{size[1]}",
                (Sight(split, index, _corners(dataset.boxes[dataset.rows(index)])),),
            )


def _boxes(split: str, dataset: Dataset, data: DataConfig) -> Iterator[Finding]:
    """Findings about single boxes and pairs of boxes."""
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    scaled = np.array([scaled_size(h, w, data)[::-1] for w, h in dataset.sizes.tolist()])  # (N, 2) width, height
    for row in _where(~dataset.ignore & ((sides * (scaled / dataset.sizes)[image]).min(axis=1) < _TINY)):
        width, height = (sides[row] * (scaled / dataset.sizes)[image[row]]).tolist()
        what = f"{_named(dataset, row)}: {width:.3g}×{height:.3g} pixels at data.size {data.size}"
        yield _at("tiny-box", split, dataset, int(image[row]), [row], what)
    huge = ~dataset.ignore & (sides.prod(axis=1) > _HUGE * dataset.sizes.prod(axis=1, dtype=np.int64)[image])
    if 0 < huge.sum() <= _RARE_HUGE * max(1, (~dataset.ignore).sum()):
        for row in _where(huge):
            yield _at("huge-box", split, dataset, int(image[row]), [row], _named(dataset, row))
    for index in dataset:
        rows = np.arange(dataset.offsets[index], dataset.offsets[index + 1])
        yield from _box_pairs(split, dataset, index, rows[~dataset.ignore[rows]])


def _box_pairs(split: str, dataset: Dataset, index: int, rows: npt.NDArray[np.int64]) -> Iterator[Finding]:
    """Findings about pairs and groups of boxes of one image."""
    if len(rows) < 2:
        return
    boxes, labels = dataset.boxes[rows], dataset.labels[rows]
    for a, b in same_boxes(boxes):
        code = "duplicate-box" if labels[a] == labels[b] else "two-classes"
        what = f"{_named(dataset, rows[b])} and {_named(dataset, rows[a])}"
        yield _at(code, split, dataset, index, [rows[b], rows[a]], what)
    if len(rows) > _CROWD:
        inside = (
            (boxes[:, None, :2] <= boxes[None, :, :2]).all(-1)
            & (boxes[:, None, 2:] >= boxes[None, :, 2:]).all(-1)
            & (labels[:, None] == labels[None])
        )  # (n, n) whether the first box contains the second
        for a in _where(inside.sum(axis=1) > _CROWD):  # every box contains itself
            what = f"{_named(dataset, rows[a])} around {inside[a].sum() - 1} boxes of its class"
            yield _at("unflagged-crowd", split, dataset, index, [rows[a]], what)


def same_boxes(boxes: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pair each of the boxes ``(n, 4)`` with the first earlier box in the same place: ``(earlier, later)``."""
    import torch

    same = np.tril(box_iou(*[torch.from_numpy(np.ascontiguousarray(boxes))] * 2).numpy() > SAME_BOX, -1)
    return [(int(same[b].argmax()), b) for b in _where(same.any(axis=1))]


def _box_counts(split: str, dataset: Dataset, data: DataConfig) -> Iterator[Finding]:
    """Findings about the number of boxes."""
    objects = np.concatenate([[0], np.cumsum(~dataset.ignore)])
    counts = np.diff(objects[dataset.offsets])
    if not counts.any():
        yield Finding(
            "no-objects", split, dataset.name, f"none of its {len(dataset)} images has a box, apart from ignore regions"
        )
        return
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        names = ", ".join(dataset.files[int(i)] for i in empty[:3]) + (" …" if len(empty) > 3 else "")
        sights = tuple(Sight(split, int(i)) for i in empty[:4])
        yield Finding("no-boxes", split, dataset.name, f"{len(empty)} of {len(dataset)} images: {names}", sights)
    if dataset.ignore.any():
        images = int((np.diff(dataset.offsets) > counts).sum())
        what = f"{int(dataset.ignore.sum())} regions in {images} of {len(dataset)} images"
        yield Finding("crowd", split, dataset.name, what, effect=_CROWD_POLICY[data.crowd])
    median = float(np.median(counts[counts > 0]))
    if median >= _MANY_BOXES:
        for index in _where((counts > 0) & (counts <= _FEW_BOXES * median)):
            path = str(dataset.path(index))
            boxes = _corners(dataset.boxes[dataset.rows(index)])
            what = f"{counts[index]} box{'es' if counts[index] > 1 else ''}, the median is {median:g}"
            yield Finding("few-boxes", split, path, what, (Sight(split, index, boxes),))


def _classes(splits: Splits, own_classes: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
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
    """Findings about class names that differ only by case, space, hyphen or underscore."""
    first = next(iter(splits))
    groups: dict[str, list[str]] = {}
    for name in splits[first].classes:
        groups.setdefault("".join(c for c in name.casefold() if not c.isspace() and c not in "-_"), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            boxes = ", ".join(f"{name!r} ({sum(c[name] for c in counts.values())} boxes)" for name in names)
            used = ", ".join(split for split, count in counts.items() if any(count[name] for name in names))
            yield Finding("similar-classes", used or first, splits[first].name.split(" [")[0], boxes)


def _not_in_train(name: str, splits: Splits, train: str, others: Mapping[str, int], listed: bool) -> Finding:
    """Finding about a class without a box in train.

    Args:
        name: the class.
        splits: all splits.
        train: name of the training split.
        others: number of its boxes in each other split that has any.
        listed: train lists the class.
    """
    if not others:
        return Finding("never-learnt", train, splits[train].name, f"{name!r}: no box in any split")
    places = ", ".join(f"{number} in {split}" for split, number in others.items())
    first, what = next(iter(others)), f"{name!r}: no box in {train}, {places}"
    if listed:
        return Finding("never-learnt", first, splits[first].name, what)
    # Training reads train and val only; other splits are first read by an evaluation.
    effect = "" if "val" in map(role, others) else "evaluation on this split stops"
    return Finding("unknown-class", first, splits[first].name, what, effect=effect)


def _duplicate_images(splits: Splits, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Findings about images that are equal or nearly equal."""
    places = [(split, index) for split, dataset in splits.items() for index in dataset]
    for pair in pairs:
        (split, index), (other, twin) = places[pair.second], places[pair.first]
        if split == other:
            code = "duplicate-image" if pair.exact else "near-duplicate"
        else:
            code = "leak" if pair.exact else "near-leak"
        where = str(splits[split].path(index))
        same = "the same as" if pair.exact else "nearly the same as"
        what = f"in {split}; {same} {splits[other].path(twin)} in {other}"
        yield Finding(code, split, where, what, (Sight(split, index), Sight(other, twin)))


def _unlisted_images(splits: Splits) -> Iterator[Finding]:
    """Findings about images that lie beside listed images but that no split lists."""
    listed = {os.path.abspath(dataset.path(index)) for dataset in splits.values() for index in dataset}
    split_of = {os.path.dirname(os.path.abspath(d.path(index))): split for split, d in splits.items() for index in d}
    # An image that the reader left out, or whose annotation file it left out, has a finding of its own.
    left_out = (p.where for d in splits.values() for p in d.problems if p.kind.left_out)
    reported = {os.path.splitext(os.path.basename(where))[0] for where in left_out}
    for folder in sorted(split_of):
        if os.path.isdir(folder):
            for name in sorted(filter(is_image, os.listdir(folder))):
                path = os.path.join(folder, name)
                known = path in listed or os.path.splitext(name)[0] in reported
                if not known and not name.startswith("."):
                    yield Finding("unlisted-image", split_of[folder], path, "in no annotation file")


def _at(code: str, split: str, dataset: Dataset, index: int, rows: Sequence[int], what: str) -> Finding:
    """Finding about boxes, with the place of the first box."""
    where = dataset.places[int(rows[0])] if dataset.places is not None else str(dataset.path(index))
    if dataset.files[index] not in where:
        what = f"{dataset.files[index]}: {what}"
    return Finding(code, split, where, what, (Sight(split, index, _corners(dataset.boxes[list(rows)]), True),))


def _where(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask)]


def _named(dataset: Dataset, row: int) -> str:
    label = int(dataset.labels[row])
    name = "no class" if label == NO_CLASS else dataset.classes[label]
    return f"{name} (" + ", ".join(f"{v:g}" for v in dataset.boxes[row].tolist()) + ")"


def _corners(boxes: npt.NDArray[np.float32]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist())
