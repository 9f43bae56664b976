"""Number of objects in each image of a dataset."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset


def objects_per_image(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Count the objects of each image, ``(N,)``, without ignore regions."""
    counts = np.concatenate([[0], np.cumsum(~dataset.ignore)])
    result: npt.NDArray[np.int64] = np.diff(counts[dataset.offsets])
    return result


def most_objects(dataset: Dataset) -> int:
    """Return the number of objects in the densest image; 0 without images."""
    return int(objects_per_image(dataset).max(initial=0))
