"""The range of pixel values of a dataset: which values of images with more than 8 bits become black and white."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.data.deep_pixels import PixelRange, range_of
from retinanet.data.images import pixel_spread
from retinanet.errors import DataError

# Number of images whose values are measured.
_SAMPLE = 64


def with_one_pixel_range(splits: Mapping[str, Dataset], given: PixelRange | None = None) -> dict[str, Dataset]:
    """Set the range with which the images of all splits are read.

    Args:
        splits: the splits, train first.
        given: the range; unset: from a sample of the images of the first split, which gets a note. Images with 8 bits
            have no range.
    """
    result: dict[str, Dataset] = {}
    for split, dataset in splits.items():
        result[split] = _observed(dataset) if given is None and not result else replace(dataset, pixel_range=given)
        given = result[split].pixel_range
    return result


def _observed(dataset: Dataset) -> Dataset:
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset))).astype(int))
    spreads = []
    for index in chosen.tolist():
        try:
            spread = pixel_spread(dataset.path(index))
        except DataError:  # reported when the images are checked
            continue
        if spread is not None:
            spreads.append(spread)
    if not spreads:
        return dataset
    low, high = range_of(spreads)
    values = f"{min(s.least for s in spreads):.6g} to {max(s.most for s in spreads):.6g}"
    message = f"pixel range {values}; values from {low:.6g} (black) to {high:.6g} (white) are scaled to 8 bits"
    remedy = "--data.pixel-range changes it"
    ranged = replace(dataset, pixel_range=(low, high))
    return ranged.with_problem("pixel-range", dataset.name, f"{message}; {remedy}")
