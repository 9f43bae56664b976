"""Detections as users of Python get them: ``supervision.Detections``, or an equivalent without that package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retinanet.detections import Detections

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class PlainDetections:
    """Detections in an image, with the attributes of ``supervision.Detections``; used if supervision is missing.

    Attributes:
        xyxy: float32 ``(D, 4)``, pixels of the image.
        confidence: float32 ``(D,)``, best first.
        class_id: int64 ``(D,)``.
        data: names of the classes ``(D,)`` in ``data["class_name"]``.
        tracker_id: int64 ``(D,)``, ids of the tracked objects, or None without tracking.
    """

    xyxy: npt.NDArray[np.floating]
    confidence: npt.NDArray[np.floating]
    class_id: npt.NDArray[np.int64]
    data: dict[str, npt.NDArray[np.str_]]
    tracker_id: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.confidence)


def to_supervision(
    found: Detections, classes: Sequence[str], ids: npt.NDArray[np.int64] | None = None
) -> supervision.Detections:
    """Convert to ``supervision.Detections``, with class names in ``data["class_name"]``.

    ``ids`` ``(D,)`` are the ids of tracked objects, which become ``tracker_id``.

    Without the package supervision, the result is a :class:`PlainDetections`.
    """
    names = np.array([classes[int(k)] for k in found.labels], dtype=np.str_)
    converted: supervision.Detections = _detections_class()(
        xyxy=found.boxes, confidence=found.scores, class_id=found.labels, data={"class_name": names}, tracker_id=ids
    )
    return converted


@cache
def _detections_class() -> Any:
    """Return the class of the result. Importing supervision takes a second."""
    with warnings.catch_warnings():  # supervision says that OpenCV would be faster
        warnings.filterwarnings("ignore", message="OpenCV .* is not installed", category=UserWarning)
        try:
            return import_module("supervision").Detections
        except ModuleNotFoundError:
            return PlainDetections
