"""The sizes of the objects that a model was trained on. Weight files and exported files store them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

# The quantiles that are stored, in percent.
PERCENT = (1, 5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True)
class ObjectSizes:
    """Quantiles of the sizes of the training objects, in pixels of the network's input.

    Attributes:
        areas: square roots of the areas of the boxes, at the quantiles ``PERCENT``.
        longer_sides: longer sides of the boxes, at the quantiles ``PERCENT``.
        scale: input pixels per image pixel, the median over the objects.
    """

    areas: tuple[float, ...]
    longer_sides: tuple[float, ...]
    scale: float

    @classmethod
    def of(cls, boxes: npt.NDArray[np.floating], scales: npt.NDArray[np.floating]) -> Self | None:
        """Measure ``boxes`` ``(M, 4)`` ``xyxy`` in image pixels; ``None`` if there is no box.

        ``scales`` ``(M,)`` are the input pixels per image pixel of the image of each box.
        """
        if not len(boxes):
            return None
        sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64) * scales[:, None]
        measured = (np.sqrt(sides.prod(axis=1)), sides.max(axis=1))
        areas, longer = (tuple(np.percentile(values, PERCENT).round(2).tolist()) for values in measured)
        return cls(areas, longer, float(np.median(scales)))

    def longer_side(self, percent: int) -> float:
        """Return the quantile of the longer sides at ``percent``, one of ``PERCENT``, in input pixels."""
        return self.longer_sides[PERCENT.index(percent)]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Return the sizes that :meth:`to_dict` converted; ``None``, as in older files, stays ``None``.

        Raises:
            KeyError, TypeError, ValueError: a value is missing or invalid.
        """
        if values is None:
            return None
        return cls(_quantiles(values["areas"]), _quantiles(values["longer_sides"]), _positive(values["scale"]))


def _quantiles(values: Any) -> tuple[float, ...]:
    numbers = tuple(_positive(value) for value in values)
    if len(numbers) != len(PERCENT) or list(numbers) != sorted(numbers):
        raise ValueError(f"its object sizes {list(numbers)} are not {len(PERCENT)} rising quantiles")
    return numbers


def _positive(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"its object sizes contain {value}; they must be positive")
    return number
