"""Checks of boxes: size, duplicates, unflagged crowds, and the number of boxes per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from retinanet.config import DataConfig
from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.data.image_sizes import scaled_size
from retinanet.inspection.findings import Finding, Sight
from retinanet.overlaps import BoxIndex, Floats, Ints, pair_iou

# IoU above which two boxes are in the same place.
SAME_BOX = 0.95

# Side in pixels of the network's input below which a box is tiny.
_TINY = 2.0

# A huge box covers more than the first fraction of its image. Huge boxes are reported only if they are at most the
# second fraction of all boxes.
_HUGE, _RARE_HUGE = 0.9, 0.05

# A box around at least this many boxes of its class may be an unflagged crowd.
_CROWD = 5

# An image has few boxes if it has at most this fraction of the median number of boxes, and the median is at least
# _MANY_BOXES.
_FEW_BOXES, _MANY_BOXES = 0.25, 8

_CROWD_POLICY = {
    "ignore": "these regions are neither object nor background (--data.crowd ignore)",
    "drop": "these regions are treated as background (--data.crowd drop)",
    "object": "these regions are treated as ordinary objects (--data.crowd object)",
}


def box_findings(split: str, dataset: Dataset, data: DataConfig) -> Iterator[Finding]:
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
        contained = _contained(boxes.astype(np.float64), labels)
        for a in _where(contained > _CROWD):  # > and not ≥, because every box contains itself
            what = f"{_named(dataset, rows[a])} around {contained[a] - 1} boxes of its class"
            yield _at("unflagged-crowd", split, dataset, index, [rows[a]], what)


def same_boxes(boxes: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pair each of the boxes ``(n, 4)`` with the first earlier box in the same place: ``(earlier, later)``."""
    distinct, first, kind = np.unique(boxes.astype(np.float64), axis=0, return_index=True, return_inverse=True)
    earliest = np.full(len(distinct), len(boxes))
    for one, other in BoxIndex(distinct, SAME_BOX).search(distinct).chunks():
        same = pair_iou(distinct[one], distinct[other]) > SAME_BOX
        np.minimum.at(earliest, one[same], first[other[same]])
    earlier = earliest[kind.reshape(-1)]
    return [(int(earlier[b]), b) for b in _where(earlier < np.arange(len(boxes)))]


def _contained(boxes: Floats, labels: npt.NDArray[np.integer]) -> Ints:
    """Count the boxes of its class that each box contains, ``(n,)``; a box with an area contains itself."""
    counts = np.zeros(len(boxes), dtype=np.int64)
    for inner, outer in BoxIndex(boxes, 1.0).search(boxes, covered=True).chunks():
        a, b = boxes[outer], boxes[inner]
        inside = (a[:, :2] <= b[:, :2]).all(axis=1) & (a[:, 2:] >= b[:, 2:]).all(axis=1)
        counts += np.bincount(outer[inside & (labels[inner] == labels[outer])], minlength=len(boxes))
    return counts


def box_count_findings(split: str, dataset: Dataset, data: DataConfig) -> Iterator[Finding]:
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
        regions = int(dataset.ignore.sum())
        what = f"{regions} region{'s' * (regions != 1)} in {images} of {len(dataset)} images"
        yield Finding("crowd", split, dataset.name, what, effect=_CROWD_POLICY[data.crowd])
    median = float(np.median(counts[counts > 0]))
    if median >= _MANY_BOXES:
        for index in _where((counts > 0) & (counts <= _FEW_BOXES * median)):
            path = str(dataset.path(index))
            boxes = corners_of(dataset.boxes[dataset.rows(index)])
            what = f"{counts[index]} box{'es' if counts[index] > 1 else ''}, the median is {median:g}"
            yield Finding("few-boxes", split, path, what, (Sight(split, index, boxes),))


def _at(code: str, split: str, dataset: Dataset, index: int, rows: Sequence[int], what: str) -> Finding:
    """Finding about boxes, with the place of the first box."""
    where = dataset.places[int(rows[0])] if dataset.places is not None else str(dataset.path(index))
    if dataset.files[index] not in where:
        what = f"{dataset.files[index]}: {what}"
    return Finding(code, split, where, what, (Sight(split, index, corners_of(dataset.boxes[list(rows)]), True),))


def _where(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask)]


def _named(dataset: Dataset, row: int) -> str:
    label = int(dataset.labels[row])
    name = "no class" if label == NO_CLASS else dataset.classes[label]
    return f"{name} (" + ", ".join(f"{v:g}" for v in dataset.boxes[row].tolist()) + ")"


def corners_of(boxes: npt.NDArray[np.float32]) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes ``(n, 4)`` as plain numbers."""
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist())
