"""Advice to train on tiles if objects are small against their images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import scaled_size
from retinanet.inspection.findings import Finding

# Tiles are advised if the median object is smaller than the first number at the network's input, in pixels, and at
# least as large as the second in the images.
_SMALL, _VISIBLE = 8.0, 12.0

# Largest size of the median object at the network's input that advised tiles give. Larger objects gain nothing.
_LARGE_ENOUGH = 32.0

# Advised sides are multiples of this number.
_STEP = 64


def advised_tile(dataset: Dataset, data: DataConfig) -> int | None:
    """Return the ``data.tile`` with which the objects of ``dataset`` are large enough at the network's input.

    ``None`` if they are large enough without tiles, too small even in the images, or if ``data`` has tiles. The size
    of an object is the square root of its area.
    """
    sizes = _medians(dataset, data)
    if data.tile is not None or sizes is None or sizes[1] >= _SMALL or sizes[0] < _VISIBLE:
        return None
    side = data.size * max(1.0, sizes[0] / _LARGE_ENOUGH)
    tile = max(_STEP, round(side / _STEP) * _STEP)
    return tile if np.median(dataset.sizes.max(axis=1)) > tile else None


def tile_findings(split: str, dataset: Dataset, data: DataConfig) -> Iterator[Finding]:
    """Yield a finding if :func:`advised_tile` advises tiles."""
    tile, sizes = advised_tile(dataset, data), _medians(dataset, data)
    if tile is None or sizes is None:
        return
    what = f"the median object has {sizes[0]:.0f} pixels, but {sizes[1]:.1f} at data.size {data.size}"
    in_tiles = sizes[0] * data.size / tile
    effect = f"most objects are hard to detect; --data.tile {tile} trains on tiles, in which they have {in_tiles:.0f}"
    yield Finding("small-objects", split, dataset.name, what, effect=effect)


def _medians(dataset: Dataset, data: DataConfig) -> tuple[float, float] | None:
    """Median size of the objects, in pixels of their images and of the network's input; ``None`` without objects."""
    objects = ~dataset.ignore
    if not objects.any():
        return None
    distinct, image = np.unique(dataset.sizes, axis=0, return_inverse=True)
    factors = np.array([scaled_size(height, width, data)[0] / height for width, height in distinct.tolist()])
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[objects]
    boxes = dataset.boxes[objects].astype(np.float64)
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    return float(np.median(sides)), float(np.median(sides * factors[image.reshape(-1)][owner]))
