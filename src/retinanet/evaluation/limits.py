"""How many detections count: COCO's protocol, or all detections of datasets with dense images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.data.object_counts import most_objects
from retinanet.decode_config import ResolvedDecodeConfig, leaves_room, limit_note, nonfinite_note
from retinanet.detections import Detections

# COCO's protocol counts this many detections of each image and class.
COCO_LIMIT = 100

# How the metrics with @100 count.
_AT_100 = "AP@100, AP50@100 and AR100 count the 100 highest scores of each image and class"

# A limit that no image reaches.
ALL = int(np.iinfo(np.int64).max)


def counted(dataset: Dataset) -> int:
    """Return how many detections of each image and class count, those with the highest scores.

    This is COCO's 100, unless an image of ``dataset`` has more than 100 objects. In that case all detections count,
    because no detector could find all objects of this image with 100 detections.
    """
    return COCO_LIMIT if most_objects(dataset) <= COCO_LIMIT else ALL


@dataclass(frozen=True)
class Limits:
    """The limits on the detections of an evaluation.

    Attributes:
        counted: how many detections of each image and class count; ``None``: all.
        most_objects: number of objects in the densest image.
        images: number of images.
        max_detections: largest number of detections per image; ``None`` without a limit.
        limited: number of images that reached a limit of the detector, or ``max_detections``.
        nonfinite: number of images with predictions that were NaN or infinite.
        detector: the detector's settings; ``None`` for a file of detections.
        chosen: whether ``max_detections`` was given for this evaluation.
        tiled: whether the images were divided into tiles. In that case the limits are those of a tile, unless
            ``chosen``.
    """

    counted: int | None
    most_objects: int
    images: int
    max_detections: int | None
    limited: int
    nonfinite: int
    detector: ResolvedDecodeConfig | None
    chosen: bool
    tiled: bool = False

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        predictions: Detections,
        max_detections: int | None = None,
        detector: ResolvedDecodeConfig | None = None,
        tiled: bool = False,
    ) -> Limits:
        """Describe ``predictions``, which are from a file or from a detector with these settings."""
        number = counted(dataset)
        return cls(
            counted=None if number == ALL else number,
            most_objects=most_objects(dataset),
            images=len(dataset),
            max_detections=detector.max_detections if detector else max_detections,
            limited=len(predictions.limited),
            nonfinite=len(predictions.nonfinite),
            detector=detector,
            chosen=max_detections is not None,
            tiled=tiled,
        )

    def protocol(self) -> str:
        """Say in a sentence which detections count."""
        if self.counted is not None:
            among = f", among the {self.max_detections} highest of each image (--max-detections)" if self.chosen else ""
            return f"As in COCO's protocol, the {self.counted} highest scores of each image and class count{among}."
        dense = f"The densest image has {self.most_objects} objects, so"
        if self.chosen:
            what = f"the {self.max_detections} highest scores of each image count (--max-detections), of whatever class"
            return f"{dense} {what}. Among these, {_AT_100}."
        return f"{dense} all detections count. {_AT_100}, as in COCO's protocol."

    def notes(self, brief: bool = False) -> list[str]:
        """Say how many images reached a limit, and how many have predictions that were left out, in a sentence each.

        With ``brief``, a limit of the detector is left out if it has room for all objects.
        """
        notes = []
        roomy = self.detector is not None and leaves_room(self.detector.max_detections, self.most_objects)
        if self.limited and not (brief and roomy and not self.chosen):
            notes.append(self._limit_note())
        if self.nonfinite:
            notes.append(nonfinite_note(self.nonfinite, self.images))
        return notes

    def _limit_note(self) -> str:
        if self.detector is not None:
            per: Literal["image", "tile"] = "tile" if self.tiled and not self.chosen else "image"
            return limit_note(self.limited, self.images, self.detector, per)
        return (
            f"{self.limited} of {self.images} images have more than {self.max_detections} detections; only the highest "
            "scores count; --max-detections (Python: max_detections) raises the limit"
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to the form of ``metrics.json``; ``None`` means that there is no limit."""
        of_tile = {"max_detections": None, "max_detections_per_tile": self.max_detections}
        return {
            "counted_per_class": self.counted,
            "most_objects": self.most_objects,
            "max_detections": self.max_detections,
            "images_at_limit": self.limited,
            "images_not_finite": self.nonfinite,
        } | (of_tile if self.tiled and not self.chosen else {})
