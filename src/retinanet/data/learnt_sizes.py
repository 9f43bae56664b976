"""Sizes of the objects of a dataset at the scale at which the network sees them."""

from __future__ import annotations

import numpy as np

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.object_sizes import ObjectSizes


def learnt_sizes(dataset: Dataset, config: DataConfig) -> ObjectSizes | None:
    """Measure the objects of ``dataset``, without ignore regions, in images scaled as ``config`` says.

    Random scaling (``data.scale``) is not considered: the sizes are those at its factor 1. ``None`` without objects.
    """
    images = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[~dataset.ignore]
    sides = dataset.sizes.astype(np.float64)
    scales = np.minimum(config.size / sides.min(axis=1), config.longest / sides.max(axis=1))
    return ObjectSizes.of(dataset.boxes[~dataset.ignore], scales[images])
