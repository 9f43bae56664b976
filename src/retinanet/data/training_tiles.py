"""Tiles of large images for training: which tiles there are, and where each is cut in an epoch.

A grid of overlapping tiles covers each image, and every object belongs to the tile whose part of the grid holds its
center. In every epoch a tile is cut at another random place from which it shows all of its objects wholly. So the
number of tiles is the same in every epoch, every epoch shows every object wholly at least once, and the other objects
at the edges of a tile are cut in different places.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.file_list import FileList
from retinanet.data.sampling import Factors, sampling_factors
from retinanet.data.windows import Window

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Neighboring tiles overlap by the longest side of nearly all objects, and by at least and at most these fractions of a
# tile. The overlap is also the room in which a tile full of objects moves from epoch to epoch.
_NEARLY_ALL, _LEAST_OVERLAP, _MOST_OVERLAP = 0.99, 1 / 8, 1 / 2


@dataclass(frozen=True, eq=False)
class TrainingTiles:
    """The tiles of a dataset.

    Attributes:
        dataset: the images.
        config: its ``tile`` and ``visible`` are used.
        overlap: overlap of neighboring tiles in the grid, in pixels of the image.
        images: int64 ``(T,)``, the image of each tile.
        first: int64 ``(T, 2)``, smallest top and left of each tile.
        last: int64 ``(T, 2)``, largest top and left.
        rows: int64 ``(P,)``, rows of ``dataset.boxes``; those of tile ``i`` are ``rows[offsets[i]:offsets[i+1]]``.
        offsets: int64 ``(T + 1,)``.
        too_large: number of objects that are so much larger than a tile that no tile shows ``config.visible`` of them.
    """

    dataset: Dataset
    config: DataConfig
    overlap: int
    images: Ints
    first: Ints
    last: Ints
    rows: Ints
    offsets: Ints
    too_large: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_objects(self) -> npt.NDArray[np.bool_]:
        """Whether an object belongs to each tile, bool ``(T,)``."""
        result: npt.NDArray[np.bool_] = np.diff(self.offsets) > 0
        return result

    def shape(self, index: int) -> tuple[int, int]:
        """``(height, width)`` of a tile: ``config.tile``, or the side of the image if it is smaller."""
        width, height = self.dataset.sizes[self.images[index]].tolist()
        return min(height, _side(self.config)), min(width, _side(self.config))

    def window(self, index: int, rng: random.Random) -> Window:
        """Draw the place of a tile in its image."""
        (top, left), (bottom, right) = self.first[index].tolist(), self.last[index].tolist()
        return Window(rng.randint(top, bottom), rng.randint(left, right), *self.shape(index))

    def middle(self, index: int) -> Window:
        """The middle of the places of a tile."""
        top, left = ((self.first[index] + self.last[index]) // 2).tolist()
        return Window(top, left, *self.shape(index))

    def as_dataset(self) -> Dataset:
        """The tiles as images, at their middle places, with the objects that belong to them."""
        source = self.dataset
        sizes = np.minimum(source.sizes[self.images], _side(self.config)).astype(np.int32)
        corners = ((self.first + self.last) // 2)[:, ::-1]  # (T, 2), left and top
        tile = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        shift, limit = (np.tile(each, 2)[tile].astype(np.float32) for each in (corners, sizes))
        return replace(
            source,
            files=FileList(source.files[image] for image in self.images.tolist()),
            image_ids=np.arange(len(self)),
            sizes=sizes,
            offsets=self.offsets,
            boxes=np.clip(source.boxes[self.rows] - shift, 0, limit),
            labels=source.labels[self.rows],
            ignore=source.ignore[self.rows],
            areas=source.areas[self.rows],
            places=None,
            orientations=None,
        )

    def factors(self) -> Factors:
        """Mean number of times that each tile appears in an epoch, see :func:`sampling_factors`."""
        with_objects, share = int(self.has_objects.sum()), self.config.background_limit or 0.0
        shown = min(len(self), max(1.0, with_objects / (1 - share)))  # a rare class is rare among these tiles
        return sampling_factors(self.as_dataset(), self.config, images=shown)

    def most_objects(self) -> int:
        """Number of objects whose center is in the densest tile, at the middle places."""
        most, boxes = 0, self.dataset.boxes
        for index in np.flatnonzero(self.has_objects).tolist():
            rows = self.dataset.rows(int(self.images[index]))
            center = (boxes[rows, :2] + boxes[rows, 2:]) / 2
            top, left, height, width = self.middle(index)
            inside = (center >= (left, top)).all(axis=1) & (center < (left + width, top + height)).all(axis=1)
            most = max(most, int((inside & ~self.dataset.ignore[rows]).sum()))
        return most


class _Tiles(NamedTuple):
    """Tiles of one image: ``first`` and ``last`` ``(t, 2)``, rows of its boxes by tile, and their number ``(t,)``."""

    first: Ints
    last: Ints
    rows: Ints
    counts: Ints


def training_tiles(dataset: Dataset, config: DataConfig) -> TrainingTiles:
    """Divide the images of ``dataset`` into tiles with a side of ``config.tile`` pixels.

    An image that is smaller than a tile is one tile.
    """
    side = _side(config)
    sides = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    most = np.minimum(1, np.tile(np.float32(side), 2) / sides).prod(axis=1)  # visible fraction in a tile
    owned = ~dataset.ignore & (most >= config.visible)
    overlap = _overlap(sides[owned].max(axis=1, initial=0), side)
    parts = []
    for image in dataset:
        rows = np.arange(dataset.offsets[image], dataset.offsets[image + 1])
        rows = rows[owned[rows]]
        width, height = dataset.sizes[image].tolist()
        found = _tiles_of_image((height, width), dataset.boxes[rows][:, [1, 0, 3, 2]], side, overlap)
        parts.append(found._replace(rows=rows[found.rows]))
    counts = np.concatenate([part.counts for part in parts])
    return TrainingTiles(
        dataset,
        config,
        overlap,
        images=np.repeat(np.arange(len(dataset)), [len(part.counts) for part in parts]),
        first=np.concatenate([part.first for part in parts]),
        last=np.concatenate([part.last for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        too_large=int((~dataset.ignore & ~owned).sum()),
    )


def _side(config: DataConfig) -> int:
    assert config.tile is not None, "config.tile must be set"
    return config.tile


def _overlap(longest: Floats, side: int) -> int:
    nearly_all = float(np.quantile(longest, _NEARLY_ALL)) if len(longest) else 0.0
    return round(min(max(nearly_all, _LEAST_OVERLAP * side), _MOST_OVERLAP * side))


def _tiles_of_image(size: tuple[int, int], boxes: Floats, side: int, overlap: int) -> _Tiles:
    """Divide an image of ``size`` into tiles; ``boxes`` ``(G, 4)`` and all places are y first."""
    room = np.maximum(0, np.array(size) - side)  # largest top and left of a tile
    starts = [_starts(length, side, overlap) for length in size]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    down, across = (np.searchsorted((s[1:] + s[:-1] + side) / 2, center[:, i], "right") for i, s in enumerate(starts))
    cell = down * len(starts[1]) + across
    groups = [part for rows in _by_value(cell) for part in _that_fit(rows, boxes, side)]
    low = np.array([boxes[rows, :2].min(axis=0) for rows in groups]).reshape(-1, 2)
    high = np.array([boxes[rows, 2:].max(axis=0) for rows in groups]).reshape(-1, 2)
    # A tile shows the box from (low) to (high) wholly if it starts at `low` or before and ends at `high` or behind. A
    # box that is larger than a tile fills it, from `low` on or before `high`.
    ends = np.floor(low), np.ceil(high) - side
    first, last = np.minimum(*ends), np.maximum(*ends)

    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    background = np.delete(corners, np.unique(cell), axis=0)
    step = (side - overlap) // 2
    first, last = np.concatenate([first, background - step]), np.concatenate([last, background + step])
    counts = [len(rows) for rows in groups] + [0] * len(background)
    return _Tiles(
        np.clip(first, 0, room).astype(np.int64),
        np.clip(last, 0, room).astype(np.int64),
        np.concatenate([np.zeros(0, dtype=np.int64), *groups]),
        np.array(counts, dtype=np.int64),
    )


def _starts(length: int, side: int, overlap: int) -> Ints:
    """Starts of evenly spaced tiles that cover ``length`` pixels and overlap by ``overlap`` or more, up to rounding."""
    count = max(1, math.ceil((length - overlap) / (side - overlap)))
    return np.rint(np.linspace(0, max(0, length - side), count)).astype(np.int64)


def _by_value(values: Ints) -> Iterator[Ints]:
    """Yield the positions of each distinct value."""
    order = np.argsort(values, kind="stable")
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _that_fit(rows: Ints, boxes: Floats, side: int) -> list[Ints]:
    """Divide ``rows`` of ``boxes`` into groups that one tile can show wholly; a box larger than a tile is alone.

    If no object is larger than the overlap of the tiles, all objects of a grid cell fit.
    """
    low, high = np.floor(boxes[rows, :2]), np.ceil(boxes[rows, 2:])
    if (high.max(axis=0) - low.min(axis=0)).max() <= side:
        return [rows]
    groups: list[list[int]] = []
    corners: list[npt.NDArray[np.float32]] = []  # (2, 2), low and high of each group
    for i in np.argsort(low[:, 0], kind="stable").tolist():
        for number, (least, most) in enumerate(corners):
            joint = np.stack([np.minimum(least, low[i]), np.maximum(most, high[i])])
            if (joint[1] - joint[0]).max() <= side:
                groups[number].append(i)
                corners[number] = joint
                break
        else:
            groups.append([i])
            corners.append(np.stack([low[i], high[i]]))
    return [rows[np.sort(group)] for group in groups]
