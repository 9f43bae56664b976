"""Find the pairs of boxes that can overlap enough, without comparing all boxes with all boxes. NumPy, no torch.

If the IoU of two boxes is above t, their widths and their heights differ by less than the factor 1 / t, and their
centers are closer than (1 − t) times the longer side. So boxes are divided into size classes, and the boxes of a class
are sorted into the cells of a grid of that size. Each box is compared only with the cells around it. For n boxes, time
and memory are O(n log n + pairs). The comparison of all boxes takes 10 s for 100,000 boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Number of pairs, and of boxes that are searched for, that are held in memory at a time. A pair takes about 150 bytes.
_CHUNK, _QUERIES = 1 << 15, 1 << 16

# The largest side in a size class is at least this many times the smallest. There are at most this many classes of
# widths and of heights, and the grid has at most this many rows and columns.
_LEAST_FACTOR, _CLASSES, _CELLS = 2.0, 1000, 1 << 20

# Distances are enlarged by this fraction, so that rounding loses no pair.
_SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class PairRanges:
    """Pairs of boxes that may overlap, as ranges: box ``first`` with ``order[start]`` to ``order[stop - 1]``.

    Attributes:
        first: int64 ``(R,)``, index of the first box of each pair of the range.
        start: int64 ``(R,)``.
        stop: int64 ``(R,)``, above ``start``.
        order: int64, indices of the second boxes.
    """

    first: Ints
    start: Ints
    stop: Ints
    order: Ints

    @property
    def total(self) -> int:
        """Number of pairs."""
        return int((self.stop - self.start).sum())

    def chunks(self) -> Iterator[tuple[Ints, Ints]]:
        """Yield the pairs in parts that fit in memory: indices of the first boxes, and of the second boxes."""
        lengths = self.stop - self.start
        part = np.cumsum(lengths) // _CHUNK
        bounds = [*np.flatnonzero(np.diff(part, prepend=-1)).tolist(), len(part)]
        for begin, end in pairwise(bounds):
            counts = lengths[begin:end]
            before = np.cumsum(counts) - counts
            place = np.arange(counts.sum()) + np.repeat(self.start[begin:end] - before, counts)
            yield np.repeat(self.first[begin:end], counts), self.order[place]


class BoxIndex:
    """Boxes divided into size classes, and sorted by group, row and column in the grid of their class.

    Boxes without area are left out, because they share no area with any box.

    Args:
        boxes: ``(M, 4)`` ``xyxy``, finite.
        least: lowest IoU, or covered fraction, that a search is about: above 0, at most 1.
        groups: ``(M,)``, the group of each box, such as its image: 0 to 2²¹ − 1. None: all boxes are in group 0.
    """

    def __init__(self, boxes: Floats, least: float, groups: Ints | None = None) -> None:
        rows = _with_area(boxes)
        boxes, groups = boxes[rows], np.zeros(len(rows), dtype=np.int64) if groups is None else groups[rows]
        size, center = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
        self._least = least
        self._factor = max(_LEAST_FACTOR, 1 / least)
        self._extent = float(np.abs(boxes).max(initial=0))
        self._low = center.min(axis=0, initial=np.inf)
        span = center.max(axis=0, initial=-np.inf) - self._low
        largest = size.max(axis=0, initial=0)
        # class 0 has the largest sides; the last class has no lower limit
        kind = np.minimum(np.log(largest / size) / math.log(self._factor), _CLASSES - 1).astype(np.int64)
        upper = largest * self._factor ** -kind.astype(np.float64) * (1 + _SLACK)
        cell = np.maximum(upper, span / _CELLS)
        column, row = np.floor((center - self._low) / cell).astype(np.int64).T
        keys, number = _key(groups, row, column), kind[:, 0] * _CLASSES + kind[:, 1]
        order = np.lexsort((keys, number))
        self._order, self._keys, number = rows[order], keys[order], number[order]
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        ends = np.append(starts, len(number))[1:].tolist()
        # first and last position of each class, its largest width and height, and the sides of its cells
        self._classes = list(zip(starts.tolist(), ends, upper[order[starts]], cell[order[starts]], strict=True))

    def search(self, boxes: Floats, groups: Ints | None = None, covered: bool = False) -> PairRanges:
        """Find the pairs of a box and an indexed box of its group with an IoU of at least ``least``, and some others.

        Args:
            boxes: ``(N, 4)`` ``xyxy``, finite.
            groups: ``(N,)``, the group of each box. None: all boxes are in group 0.
            covered: find the pairs in which the indexed box covers at least the fraction ``least`` of the box.
        """
        own = _with_area(boxes)
        own = own[_along_rows(boxes[own], None if groups is None else groups[own])]  # neighbors are found faster
        none = np.zeros(0, dtype=np.int64)
        parts = [(none, none, none)]
        for begin in range(0, len(own), _QUERIES):
            rows = own[begin : begin + _QUERIES]
            some = np.zeros(len(rows), dtype=np.int64) if groups is None else groups[rows]
            for row, start, stop in self._search(boxes[rows], some, covered):
                parts.append((rows[row], start, stop))
        first, starts, stops = (np.concatenate(column) for column in zip(*parts, strict=True))
        return PairRanges(first, starts, stops, self._order)

    def _search(self, boxes: Floats, groups: Ints, covered: bool) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Yield for each class the ranges of :class:`PairRanges`: the box, and start and stop in ``order``."""
        size, center = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
        least = self._least * (1 - _SLACK)
        for begin, end, upper, cell in self._classes:
            lower = upper / self._factor
            fits = least * size < upper
            if not covered:
                fits &= size > least * lower
            near = np.flatnonzero(fits[:, 0] & fits[:, 1])
            mine, middle = size[near], center[near]
            # The boxes share at least t max(w, w') of their widths w and w' (t w if they are covered), so their centers
            # are at most (w + w') / 2 − t max(w, w') apart. The width w' is that of the class which maximizes this.
            widest = np.clip(mine, lower, upper) if least >= 0.5 and not covered else upper
            reach = (mine + widest) / 2 - least * (mine if covered else np.maximum(mine, widest))
            reach += _SLACK * (mine + upper) + 1e-12 * self._extent
            row, start, stop = self._ranges(begin, end, cell, middle - reach, middle + reach, groups[near])
            yield near[row], start, stop

    def _ranges(
        self, begin: int, end: int, cell: Floats, low: Floats, high: Floats, groups: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """Find the boxes of a class with a center between ``low`` and ``high`` ``(Q, 2)``, row by row of the grid.

        Returns:
            For each row with boxes: the query, and start and stop in ``order``.
        """
        first, last = (np.clip(np.floor((v - self._low) / cell), -1, _CELLS + 1).astype(np.int64) for v in (low, high))
        rows = last[:, 1] - first[:, 1] + 1
        query = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(query)) - np.repeat(np.cumsum(rows) - rows - first[:, 1], rows)
        keys = self._keys[begin:end]
        start = np.searchsorted(keys, _key(groups[query], row, first[query, 0]), side="left")
        stop = np.searchsorted(keys, _key(groups[query], row, last[query, 0]), side="right")
        some = np.flatnonzero(stop > start)
        return query[some], begin + start[some], begin + stop[some]


def _with_area(boxes: Floats) -> Ints:
    return np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))


def _along_rows(boxes: Floats, groups: Ints | None) -> Ints:
    """Order boxes by group, row and x, in rows as high as half of the boxes."""
    middle = len(boxes) // 2
    height = np.partition(boxes[:, 3] - boxes[:, 1], middle)[middle] if len(boxes) else 1.0
    row = np.floor(boxes[:, 1] / height)
    return np.lexsort((boxes[:, 0], row) if groups is None else (boxes[:, 0], row, groups))


def _key(groups: Ints, row: Ints, column: Ints) -> Ints:
    """Combine a group, a row and a column into one number; rows and columns are −1 to 2²⁰ + 1."""
    result: Ints = (groups << 42) + ((row + 1) << 21) + column + 1
    return result


def pair_iou(boxes: Floats, others: Floats) -> Floats:
    """Compute the IoU of each box with its partner, ``(N, 4)`` each → ``(N,)``; 0 if neither box has an area."""
    shared = shared_area(boxes, others).astype(np.float64, copy=False)
    areas, other_areas = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others))
    union = areas + other_areas - shared
    result: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


def shared_area(boxes: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Compute the area of the intersection of each box with its partner, ``(N, 4)`` each → ``(N,)``."""
    width = np.minimum(boxes[:, 2], others[:, 2]) - np.maximum(boxes[:, 0], others[:, 0])
    height = np.minimum(boxes[:, 3], others[:, 3]) - np.maximum(boxes[:, 1], others[:, 1])
    area: npt.NDArray[np.floating] = np.maximum(width, 0) * np.maximum(height, 0)
    return area
