"""The result of ``retinanet.detect``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DetectionRun:
    """The result of :func:`retinanet.detection.run.detect`.

    Attributes:
        images: number of images, or of frames of videos, in which objects were detected, also by the earlier runs that
            this one resumed.
        counts: detections of each class, by name.
        written: descriptions of the files in ``out``.
        failed: number of images or videos that could not be read; ``failed.txt`` in ``out`` lists the images.
        failures: error messages for the first of these.
        out: folder of the files.
        notes: sentences about files that were left out, and about images that reached the limit on detections.
        resumed: number of images that earlier runs had recorded.
        score: the lowest score reported.
        speed: images per second, and what the network waited for; empty if no image was new.
        videos: a line about each video.
    """

    images: int
    counts: Counter[str]
    written: list[str]
    failed: int
    failures: list[str]
    out: Path
    notes: list[str]
    score: float
    resumed: int = 0
    speed: str = ""
    videos: tuple[str, ...] = ()
