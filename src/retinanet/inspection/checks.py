"""What is wrong in a dataset, found before a training spends hours on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torchvision.ops import box_iou

from retinanet.config import DataConfig
from retinanet.data.dataset import NO_CLASS, REFUSED, Dataset, Problem
from retinanet.data.formats.reading import BROKEN, SPLIT_ALIASES, is_image
from retinanet.data.transforms import scaled_size
from retinanet.inspection.duplicates import Pair, Scan, find_pairs, scan
from retinanet.inspection.findings import Finding, Sight

SAME_BOX = 0.95

_FEW = 10
_TINY = 2.0
_HUGE, _RARE = 0.9, 0.05
_CROWD = 5

# A picture has far fewer boxes than the others if it has at most this share of the median, where that is at least this.
_FEWER, _MANY = 0.25, 8

_CROWD_POLICY = {
    "ignore": "neither object nor background (--data.crowd ignore)",
    "drop": "learnt as background (--data.crowd drop)",
    "object": "learnt as ordinary objects (--data.crowd object)",
}

Splits = Mapping[str, Dataset]


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        findings: in no order, see :func:`retinanet.inspection.findings.by_kind`.
        scans: of the pictures of all splits, one after the other.
        pairs: of pictures that are the same or nearly so, numbered like the scans.
    """

    findings: list[Finding]
    scans: list[Scan]
    pairs: list[Pair]


def diagnose(
    splits: Splits,
    failures: Mapping[str, str],
    own_classes: Mapping[str, Sequence[str]],
    data: DataConfig,
    whole: bool = True,
    progress: Callable[[int], object] = lambda images: None,
) -> Diagnosis:
    """Look for everything that is wrong.

    Args:
        splits: what :func:`retinanet.data.formats.open_dataset.read_tolerantly` gave, with one list of classes.
        failures: the splits that could not be read, and why.
        own_classes: the classes that each split lists itself.
        data: size of the network's input.
        whole: these are all splits, so a picture that none of them lists is used nowhere.
        progress: called with the number of images just decoded.
    """
    scans = scan(list(splits.values()), progress)
    pairs = find_pairs(list(splits.values()), scans)
    findings = [Finding("unreadable-split", split, reason, "cannot be used") for split, reason in failures.items()]
    first = 0
    for split, dataset in splits.items():
        findings += [_reported(split, problem) for problem in dataset.problems]
        findings += _pictures(split, dataset, scans[first : first + len(dataset)])
        findings += _boxes(split, dataset, data)
        findings += _images(split, dataset, data)
        first += len(dataset)
    findings += _classes(splits, own_classes)
    findings += _twins(splits, pairs)
    if whole and not failures:  # else it may be listed there
        findings += _unlisted(splits)
    return Diagnosis(findings, scans, pairs)


def without_unions(splits: Splits) -> tuple[dict[str, Dataset], dict[str, list[str]]]:
    """The splits, train first, without those that only put others together (VOC's ``trainval``), and their parts."""
    files = {split: {str(dataset.path(i)) for i in dataset} for split, dataset in splits.items()}
    unions = {}
    for split, own in files.items():
        parts = [other for other, theirs in files.items() if other != split and theirs < own]
        if len(parts) > 1 and set().union(*(files[part] for part in parts)) == own:
            unions[split] = parts
    return _in_order({split: dataset for split, dataset in splits.items() if split not in unions}), unions


def _in_order(splits: Splits) -> dict[str, Dataset]:
    """The splits with train first, then val, then test, then others."""
    order = list(SPLIT_ALIASES)
    return dict(sorted(splits.items(), key=lambda s: order.index(role(s[0])) if role(s[0]) in order else len(order)))


def role(split: str) -> str:
    """``train``, ``val`` or ``test`` for every name they go by, else the split's own name."""
    return next((name for name, aliases in SPLIT_ALIASES.items() if split.lower() in aliases), split)


def _reported(split: str, problem: Problem) -> Finding:
    """What the reader said, as a finding."""
    kind, action = problem.kind, problem.action
    if action == REFUSED and kind.startswith(BROKEN):
        return Finding("broken-picture", split, problem.where, kind.removeprefix(BROKEN).strip(" ()") or kind)
    if action == REFUSED:
        return Finding("broken-annotation", split, problem.where, kind)
    if kind.startswith("image without"):
        return Finding("unlisted-picture", split, problem.where, kind)
    if kind.startswith("label file without"):
        return Finding("bad-line", split, problem.where, kind, effect=action)
    if action == "clipped":
        return Finding("clipped-box", split, problem.where, kind)
    if action == "dropped":
        is_box = kind.startswith(("zero-area", "corners in", "box (", "coordinate"))
        return Finding("bad-box" if is_box else "bad-line", split, problem.where, kind)
    return Finding("remark", split, problem.where, kind, effect=action)


def _pictures(split: str, dataset: Dataset, scans: Sequence[Scan]) -> Iterator[Finding]:
    for index, found in enumerate(scans):
        path, size = str(dataset.path(index)), tuple(dataset.sizes[index].tolist())
        if found.error is not None:
            yield Finding("broken-picture", split, path, found.error.removeprefix(f"{path}: "))
        elif found.size != size:
            yield Finding(
                "picture-size",
                split,
                path,
                f"{found.size[0]}×{found.size[1]} pixels, its annotations say {size[0]}×{size[1]}",
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
    if 0 < huge.sum() <= _RARE * max(1, (~dataset.ignore).sum()):
        for row in _where(huge):
            yield _at("huge-box", split, dataset, int(image[row]), [row], _named(dataset, row))
    for index in dataset:
        rows = np.arange(dataset.offsets[index], dataset.offsets[index + 1])
        yield from _box_pairs(split, dataset, index, rows[~dataset.ignore[rows]])


def _box_pairs(split: str, dataset: Dataset, index: int, rows: npt.NDArray[np.int64]) -> Iterator[Finding]:
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
        )  # (n, n) the first around the second
        for a in _where(inside.sum(axis=1) > _CROWD):  # itself is one more
            what = f"{_named(dataset, rows[a])} around {inside[a].sum() - 1} others"
            yield _at("unflagged-crowd", split, dataset, index, [rows[a]], what)


def same_boxes(boxes: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """Of boxes ``(n, 4)``: pairs of one and the first earlier one of nearly the same place, ``(earlier, later)``."""
    import torch

    same = np.tril(box_iou(*[torch.from_numpy(np.ascontiguousarray(boxes))] * 2).numpy() > SAME_BOX, -1)
    return [(int(same[b].argmax()), b) for b in _where(same.any(axis=1))]


def _images(split: str, dataset: Dataset, data: DataConfig) -> Iterator[Finding]:
    """Findings about how many boxes there are."""
    objects = np.concatenate([[0], np.cumsum(~dataset.ignore)])
    counts = np.diff(objects[dataset.offsets])
    if not counts.any():
        yield Finding("no-objects", split, dataset.name, f"no box besides ignore regions; pictures: {len(dataset)}")
        return
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        names = ", ".join(dataset.files[int(i)] for i in empty[:3]) + (" …" if len(empty) > 3 else "")
        sights = tuple(Sight(split, int(i)) for i in empty[:4])
        yield Finding("no-boxes", split, dataset.name, f"{len(empty)} of {len(dataset)} pictures: {names}", sights)
    if dataset.ignore.any():
        images = int((np.diff(dataset.offsets) > counts).sum())
        what = f"{int(dataset.ignore.sum())} in {images} of {len(dataset)} pictures"
        yield Finding("crowd", split, dataset.name, what, effect=_CROWD_POLICY[data.crowd])
    median = float(np.median(counts[counts > 0]))
    if median >= _MANY:
        for index in _where((counts > 0) & (counts <= _FEWER * median)):
            path = str(dataset.path(index))
            boxes = _corners(dataset.boxes[dataset.rows(index)])
            what = f"{counts[index]} box{'es' if counts[index] > 1 else ''}, the median is {median:g}"
            yield Finding("few-boxes", split, path, what, (Sight(split, index, boxes),))


def _classes(splits: Splits, own_classes: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    counts = {split: dataset.class_counts() for split, dataset in splits.items()}
    classes = next(iter(splits.values())).classes
    similar: dict[str, list[str]] = {}
    for name in classes:
        similar.setdefault("".join(c for c in name.casefold() if not c.isspace() and c not in "-_"), []).append(name)
    for names in similar.values():
        if len(names) > 1:
            boxes = ", ".join(f"{name!r} ({sum(c[name] for c in counts.values())} boxes)" for name in names)
            where = ", ".join(s for s, c in counts.items() if any(c[name] for name in names)) or next(iter(splits))
            yield Finding("similar-classes", where, next(iter(splits.values())).name.split(" [")[0], boxes)
    train = next((split for split in splits if role(split) == "train"), None)
    if train is None:
        return
    listed = set(own_classes[train])
    for name in classes:
        number = counts[train][name]
        others = [split for split in splits if split != train]
        shown = [split for split in others if counts[split][name]]
        if number == 0 and shown:
            places = ", ".join(f"{counts[split][name]} in {split}" for split in shown)
            code = "never-learnt" if name in listed else "unknown-class"
            stops = "evaluation on it stops" if code == "unknown-class" and "val" not in map(role, shown) else ""
            yield Finding(code, shown[0], splits[shown[0]].name, f"{name!r}: no box in {train}, {places}", effect=stops)
        elif number == 0:
            yield Finding("never-learnt", train, splits[train].name, f"{name!r}: no box in any split")
        elif number < _FEW:
            yield Finding("rare-class", train, splits[train].name, f"{name!r}: {number} box{'es' * (number != 1)}")
        if number:
            for split in (s for s in others if s not in shown and any(counts[s].values())):
                yield Finding("never-measured", split, splits[split].name, f"{name!r}: {number} in {train}, none here")


def _twins(splits: Splits, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Findings about pictures that are the same or nearly so."""
    places = [(split, index) for split, dataset in splits.items() for index in dataset]
    for pair in pairs:
        (split, index), (other, twin) = places[pair.second], places[pair.first]
        code = ("duplicate-picture" if pair.exact else "near-duplicate") if split == other else "leak"
        if code == "leak" and not pair.exact:
            code = "near-leak"
        where = str(splits[split].path(index))
        what = f"in {split}; the same as {splits[other].path(twin)} in {other}"
        if "near" in code:
            what = what.replace("the same as", "nearly the same as")
        yield Finding(code, split, where, what, (Sight(split, index), Sight(other, twin)))


def _unlisted(splits: Splits) -> Iterator[Finding]:
    """Pictures beside those that are listed, but listed in no split."""
    listed = {os.path.abspath(dataset.path(index)) for dataset in splits.values() for index in dataset}
    split_of = {os.path.dirname(os.path.abspath(d.path(index))): split for split, d in splits.items() for index in d}
    # A picture that was left out, or whose annotation file was, is listed, and named already.
    left_out = (p.where for d in splits.values() for p in d.problems if p.action in (REFUSED, "left out"))
    reported = {os.path.splitext(os.path.basename(where))[0] for where in left_out}
    for folder in sorted(split_of):
        if os.path.isdir(folder):
            for name in sorted(filter(is_image, os.listdir(folder))):
                path = os.path.join(folder, name)
                known = path in listed or os.path.splitext(name)[0] in reported
                if not known and not name.startswith("."):
                    yield Finding("unlisted-picture", split_of[folder], path, "in no annotation file")


def _at(code: str, split: str, dataset: Dataset, index: int, rows: Sequence[int], what: str) -> Finding:
    """A finding about boxes, placed where the first of them stands."""
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
