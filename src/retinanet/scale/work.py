"""What workers are sent, and what they send back. No Ray, so that it can be tested in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet.data.open_images import MAX_PIXELS
from retinanet.detection.input_images import InputImage
from retinanet.detection.pipeline import ImageResult
from retinanet.detection.tile_plan import Tiling
from retinanet.machine import Precision


@dataclass(frozen=True)
class ModelSource:
    """How a worker loads the model; see :func:`retinanet.load`.

    Attributes:
        weights: path, which must lead to the same file on all machines, or name of a bundled model.
        precision: arithmetic of the network.
        device: where it runs.
        threads: threads of an exported file.
        streams: streams of an OpenVINO file.
    """

    weights: str
    precision: Precision = "auto"
    device: str = "auto"
    threads: int | None = None
    streams: int | None = None


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of a worker.

    Attributes:
        model: the model.
        fingerprint: that of the command's own detector; a worker with other weights stops the run.
        folder: working folder of the command, which relative paths start from.
        score: lowest score; unset: the number that the weights store.
        max_detections: largest number of detections per image; unset: the number that the weights store.
        draw: whether images are drawn.
        tiling: how images are divided into tiles; unset: each image is scaled as a whole.
        max_pixels: largest number of pixels of an image that is divided into tiles.
        batch: largest number of tiles that go through the network together.
    """

    model: ModelSource
    fingerprint: str
    folder: Path
    score: float | None = None
    max_detections: int | None = None
    draw: bool = False
    tiling: Tiling | None = None
    max_pixels: int = MAX_PIXELS
    batch: int = 8


@dataclass(frozen=True)
class BatchImage:
    """An image of a batch.

    Attributes:
        image: the image.
        number: position of its result among all results; ``None`` if no result is wanted: an earlier run has recorded
            it, and it only makes the batch the same as in that run.
    """

    image: InputImage
    number: int | None


# The images that go through the network together.
Batch = Sequence[BatchImage]


@dataclass(frozen=True)
class NumberedResult:
    """The result of an image, and its position among all results."""

    number: int
    result: ImageResult
