"""The container for detections, from the network to files and reports; NumPy arrays, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Detections:
    """D detections of one image or of many, best first within each image.

    Attributes:
        images: int64 ``(D,)``, the position of the image of each detection; 0 for a single image.
        boxes: float32 (float64 if read from a file) ``(D, 4)``, ``xyxy`` pixels.
        scores: float32 (float64 if read from a file) ``(D,)``.
        labels: int64 ``(D,)``, indices into the classes.
        limited: int64 ``(L,)``, positions of the images that reached a limit (``decode.max_detections`` or
            ``decode.top_k``), so that detections with lower scores may have been dropped; ascending.
        nonfinite: int64 ``(N,)``, positions of the images with predictions that were NaN or infinite; ascending.
    """

    images: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating]
    labels: npt.NDArray[np.int64]
    limited: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    nonfinite: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def of_one_image(
        cls,
        boxes: npt.NDArray[np.floating],
        scores: npt.NDArray[np.floating],
        labels: npt.NDArray[np.int64],
        image: int = 0,
    ) -> Detections:
        """Detections that all belong to the image at position ``image``."""
        return cls(np.full(len(scores), image, dtype=np.int64), boxes, scores, labels)

    @classmethod
    def empty(cls) -> Detections:
        """No detections."""
        integers, reals = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return cls(integers, reals.reshape(0, 4), reals, integers)

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Join detections and sort them by image; the order within an image is unchanged."""
        if not parts:
            return cls.empty()
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__]
        columns[-2:] = [np.unique(positions) for positions in columns[-2:]]  # limited, nonfinite
        return cls(*columns).take(np.argsort(columns[0], kind="stable"))

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: npt.NDArray[Any] | slice) -> Detections:
        """Select detections by position, mask or slice."""
        columns = {name: getattr(self, name)[rows] for name in ("images", "boxes", "scores", "labels")}
        return replace(self, **columns)

    def of_image(self, image: int) -> Detections:
        """Select the detections of the image at position ``image``."""
        marked = {name: (own := getattr(self, name))[own == image] for name in ("limited", "nonfinite")}
        return replace(self.take(self.images == image), **marked)

    def best(self, count: int | None) -> Detections:
        """Select the ``count`` detections with the highest scores of each image, in the order given; ``None``: all."""
        if count is None:
            return self
        order = np.lexsort((-self.scores, self.images))  # stable
        counts = np.bincount(self.images)
        starts = np.cumsum(counts) - counts
        keep = np.zeros(len(self), dtype=np.bool_)
        keep[order[np.arange(len(self)) - starts[self.images[order]] < count]] = True
        limited = np.union1d(self.limited, np.flatnonzero(counts > count))
        return replace(self.take(keep), limited=limited)

    def limited_above(self, score: float) -> Detections:
        """Drop the marks of limits if these cost only detections with scores below ``score``; for a single image."""
        costs_wanted = self.scores.min(initial=np.inf) >= score
        return self if costs_wanted else replace(self, limited=self.limited[:0])

    def moved(self, image: int) -> Detections:
        """Shift the positions of the images by ``image``."""
        positions = {name: getattr(self, name) + image for name in ("images", "limited", "nonfinite")}
        return replace(self, **positions)

    def rescaled(self, size: Sequence[int], new_size: Sequence[int]) -> Detections:
        """Convert boxes from an image of ``(height, width)`` pixels to the same image at another size."""
        return self.scaled(new_size[1] / size[1], new_size[0] / size[0])

    def scaled(self, across: float, down: float, inclusive: bool = False) -> Detections:
        """Multiply boxes by ``across`` (x) and ``down`` (y).

        If ``inclusive``, the last row and column of pixels in a box are scaled, and the pixel is added afterwards.
        """
        factors = np.array([across, down] * 2, dtype=np.float32)
        last = np.array([0, 0, inclusive, inclusive], dtype=np.float32)
        return replace(self, boxes=(self.boxes - last) * factors + last)

    def clipped(self, height: int, width: int) -> Detections:
        """Clip boxes to an image of ``height`` and ``width``, and leave out those without area."""
        boxes = np.clip(self.boxes, 0, np.array([width, height] * 2, dtype=np.float32))
        found = replace(self, boxes=boxes)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return found if inside.all() else found.take(inside)
