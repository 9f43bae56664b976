"""How well anchors cover the boxes of a dataset: best IoU of each box, and its number of positive anchors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from retinanet.anchors.assign import assign_batch
from retinanet.anchors.grid import base_anchors, make_grid
from retinanet.config import AnchorSpec, Config, DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import scaled_size
from retinanet.data.sample import MIN_SIDE
from retinanet.data.training_tiles import training_tiles

Floats = npt.NDArray[np.float32]

# Number of boxes processed together; small enough that the intermediate arrays stay in the CPU cache.
_CHUNK = 1 << 15

# Images are assigned in batches of at most this many anchors in total, to limit memory use.
_BATCH_ANCHORS = 1 << 21


@dataclass(frozen=True)
class ScaledBoxes:
    """Boxes of a dataset in pixels of the network's input, after :func:`retinanet.data.transforms.resize`.

    Attributes:
        boxes: float32 ``(M, 4)``, ``xyxy`` pixels of the network's input.
        canvas: int64 ``(M, 2)``, height and width of the padded image of each box.
    """

    boxes: Floats
    canvas: npt.NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, data: DataConfig) -> ScaledBoxes:
        """Scale all M boxes of ``dataset``, including ignore regions, without the random ``data.scale``."""
        scaled, factors = _scaled_sizes(dataset, data)
        image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))  # (M,)
        limits = np.tile(scaled[:, ::-1].astype(np.float32), 2)  # (N, 4)
        boxes = np.minimum(dataset.boxes * factors[image], limits[image])
        # Store columns contiguously, because the computations use whole columns.
        return cls(np.asfortranarray(boxes), (-(-scaled // data.pad_to) * data.pad_to)[image])

    def __getitem__(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> ScaledBoxes:
        return ScaledBoxes(self.boxes[rows], self.canvas[rows])

    def __len__(self) -> int:
        return len(self.boxes)

    def best_overlaps(self, spec: AnchorSpec) -> Floats:
        """Highest IoU of each box with any anchor of its image: float32 ``(M,)``."""
        best = np.zeros(len(self), dtype=np.float32)
        for start in range(0, len(self), _CHUNK):
            chunk, found = self[start : start + _CHUNK], best[start : start + _CHUNK]
            for level in range(len(spec.strides)):
                nearest = chunk.nearest(spec, level)
                base = base_anchors(spec, level)
                for half in ((base[:, 2:] - base[:, :2]) / 2).tolist():
                    np.maximum(found, chunk.overlaps(nearest, half), out=found)
        return best

    def nearest(self, spec: AnchorSpec, level: int) -> npt.NDArray[np.float64]:
        """Center of the anchors of ``level`` nearest to the center of each box: ``(2, M)``, x and y."""
        across = self.canvas.T[::-1]  # width, height
        counts = -(-across // spec.strides[level])  # columns, rows
        step = across // counts if spec.layout == "torchvision" else spec.strides[level]
        first = base_anchors(spec, level)[0]
        offset = ((first[:2] + first[2:]) / 2).numpy()[:, None]  # the same for all anchors
        center = (self.boxes[:, :2].T.astype(np.float64) + self.boxes[:, 2:].T) / 2 - offset
        nearest: npt.NDArray[np.float64] = np.clip(np.rint(center / step), 0, counts - 1) * step + offset
        return nearest

    def overlaps(self, nearest: npt.NDArray[np.float64], half: Sequence[float]) -> Floats:
        """Highest IoU of each box with the anchors of one shape on one level: float32 ``(M,)``.

        These anchors lie on a grid, and the intersection of an anchor with a box is the product of their intersections
        along x and along y. So the best anchor is in the column and in the row nearest to the center of the box.

        Args:
            nearest: result of :meth:`nearest` for that level.
            half: half of the anchors' width and height.
        """
        shared, area, own = [], [], []
        for axis in (0, 1):
            low, high = self.boxes[:, axis], self.boxes[:, axis + 2]
            # use float32 corners as the grid does, so that rounding moves no IoU to the other side of a threshold
            start, end = ((nearest[axis] + sign * half[axis]).astype(np.float32) for sign in (-1, 1))
            shared.append(np.maximum(np.minimum(high, end) - np.maximum(low, start), 0))
            area.append(high - low)
            own.append(end - start)
        both = shared[0] * shared[1]
        union = area[0] * area[1] + own[0] * own[1] - both
        overlap: Floats = both / np.maximum(union, np.finfo(np.float32).tiny)
        return overlap


def best_overlaps(dataset: Dataset, spec: AnchorSpec, data: DataConfig) -> Floats:
    """Highest IoU of each ground-truth box with any anchor of its image.

    Images are scaled as for training, without random scale. Each image is padded as if it were alone in its batch. Up
    to float32 rounding, a comparison of each box with all anchors gives the same result.

    Returns:
        float32 ``(M,)``, one value per row of ``dataset.boxes``; NaN for ignore regions.
    """
    best = ScaledBoxes.of(dataset, data).best_overlaps(spec)
    best[dataset.ignore] = np.nan
    return best


def positives(
    dataset: Dataset, config: Config, progress: Callable[[int], object] = lambda images: None
) -> npt.NDArray[np.int64]:
    """Count the positive anchors of each ground-truth box with the assignment ``config.assign``.

    Images are scaled as for training without random scale. A box with a side under one pixel gets no anchor, as in
    training.

    Args:
        dataset: the images. Apply :meth:`Dataset.with_crowds` first if ``data.crowd`` should take effect.
        config: its ``anchors``, ``assign`` and ``data`` are used.
        progress: called with the number of images whose anchors were just assigned.

    Returns:
        int64 ``(M,)``, one value per row of ``dataset.boxes``; −1 for ignore regions.
    """
    if config.data.tile is not None and dataset.sizes.max() > config.data.tile:
        found = _positives_in_tiles(dataset, config)
        progress(len(dataset))
        return found
    count = np.where(dataset.ignore, -1, 0).astype(np.int64)
    scaled, _ = _scaled_sizes(dataset, config.data)
    boxes = ScaledBoxes.of(dataset, config.data).boxes
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= MIN_SIDE
    kept = large & ~dataset.ignore
    padded = -(-scaled // config.data.pad_to) * config.data.pad_to
    sizes, group = np.unique(padded, axis=0, return_inverse=True)
    for number, (height, width) in enumerate(sizes.tolist()):
        grid = make_grid(config.anchors, (height, width))
        images = np.flatnonzero(group == number)
        step = max(1, _BATCH_ANCHORS // len(grid.boxes))
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            rows = [np.arange(dataset.offsets[i], dataset.offsets[i + 1]) for i in batch]
            objects = [r[kept[r]] for r in rows]
            regions = [torch.from_numpy(boxes[r[dataset.ignore[r]]]) for r in rows]
            matched = assign_batch(grid, [torch.from_numpy(boxes[r]) for r in objects], regions, config.assign)
            every = np.concatenate(objects)
            count[every] = torch.bincount(matched[matched >= 0], minlength=len(every)).numpy()
            progress(len(batch))
    return count


def _positives_in_tiles(dataset: Dataset, config: Config) -> npt.NDArray[np.int64]:
    """Count the positive anchors of each box in its tile. An object that is larger than a tile has none."""
    tiles = training_tiles(dataset, config.data)
    count = np.where(dataset.ignore, -1, 0).astype(np.int64)
    with_objects = tiles.as_dataset().subset(np.flatnonzero(tiles.has_objects))  # keeps the order of the boxes
    count[tiles.rows] = positives(with_objects, config)
    return count


def _scaled_sizes(dataset: Dataset, data: DataConfig) -> tuple[npt.NDArray[np.int64], Floats]:
    """Height and width of each image after resizing ``(N, 2)``, and the factors that scale its boxes ``(N, 4)``."""
    distinct, image = np.unique(dataset.sizes, axis=0, return_inverse=True)
    sizes, factors = [], []
    for width, height in distinct.tolist():
        new_height, new_width = scaled_size(height, width, data)
        sizes.append((new_height, new_width))
        factors.append((new_width / width, new_height / height) * 2)
    return np.array(sizes, dtype=np.int64)[image], np.array(factors, dtype=np.float32)[image]
