"""The work of one worker: read the images of batches, run the network, and draw."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from retinanet.detection.detector import Detector, Pixels
from retinanet.detection.loading import load
from retinanet.detection.overview import overview
from retinanet.detection.pipeline import ImageResult
from retinanet.detection.tile_plan import Tiling
from retinanet.detection.write import drawn
from retinanet.errors import CheckpointError, DataError
from retinanet.scale.work import Batch, BatchImage, ModelSource, NumberedResult, WorkerSettings


@dataclass(frozen=True, eq=False)
class _ReadImage:
    """An image that was read: its ``(height, width)``, the input of the network, and the pixels to draw on."""

    item: BatchImage
    size: tuple[int, int] | None = None
    scaled: Pixels | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    error: str = ""


def load_model(model: ModelSource) -> Detector:
    """Load a detector as the command does."""
    return load(model.weights, model.precision, model.device, threads=model.threads, streams=model.streams)


def weights_digest(detector: Detector) -> str:
    """Return the part of a fingerprint that does not depend on the device and the arithmetic."""
    return detector.fingerprint().split()[0]


class Worker:
    """Detects objects in batches of images that were formed elsewhere.

    Args:
        settings: what to do.
        detector: the detector; unset: it is loaded.

    Raises:
        CheckpointError: the weights cannot be loaded, or are not those of the command.
    """

    def __init__(self, settings: WorkerSettings, detector: Detector | None = None) -> None:
        self._settings = settings
        self._detector = load_model(settings.model) if detector is None else detector
        if weights_digest(self._detector) != settings.fingerprint:
            raise CheckpointError(
                f"{settings.model.weights}: the file on a worker ({platform.node()}) is not that of the command; "
                "give a path that leads to the same file on all machines"
            )
        self._range = self._detector.info.config.data.pixel_range
        self._pool = ThreadPoolExecutor(4)

    def results(self, batches: Sequence[Batch]) -> list[NumberedResult]:
        """Return the results of the images whose results are wanted.

        The next batch is read while the network works.
        """
        if self._settings.tiling is not None:
            found = [self._tiled(item, self._settings.tiling) for batch in batches for item in batch]
        else:
            found = [result for read in self._read_ahead(batches) for result in self._detected(read)]
        drawings = [self._pool.submit(self._drawn, each) for each in found]
        return [drawing.result() for drawing in drawings]

    def _read_ahead(self, batches: Sequence[Batch]) -> Iterator[list[_ReadImage]]:
        ahead: list[Future[_ReadImage]] = []
        for batch in batches:
            following = [self._pool.submit(self._read, item) for item in batch]
            if ahead:
                yield [future.result() for future in ahead]
            ahead = following
        yield [future.result() for future in ahead]

    def _read(self, item: BatchImage) -> _ReadImage:
        """Read and scale an image; it runs in a thread."""
        try:
            pixels = item.image.read(self._range)
        except DataError as error:
            return _ReadImage(item, error=str(error))
        size = (pixels.shape[0], pixels.shape[1])
        scaled = self._detector.resize(pixels, self._detector.scaled_size(*size))
        return _ReadImage(item, size, scaled, pixels if self._settings.draw else None)

    def _detected(self, batch: Sequence[_ReadImage]) -> Iterator[NumberedResult]:
        """Run the network on the images of a batch that could be read."""
        inputs = [read.scaled for read in batch if read.scaled is not None]
        settings = self._settings
        found = iter(self._detector.detect_scaled(inputs, settings.score, settings.max_detections) if inputs else ())
        for read in batch:
            number, image = read.item.number, read.item.image
            detections = None if read.scaled is None else next(found)
            if number is None:
                continue
            if detections is None or read.size is None or read.scaled is None:
                yield NumberedResult(number, ImageResult(image, error=read.error))
                continue
            placed = self._detector.in_image(detections, read.scaled.shape[:2], read.size)
            yield NumberedResult(number, ImageResult(image, read.size, placed, read.pixels))

    def _tiled(self, item: BatchImage, tiling: Tiling) -> NumberedResult:
        """Divide an image into tiles; the next tiles are read while the network works."""
        settings = self._settings
        assert item.number is not None  # images with tiles have no neighbors that change their results
        try:
            with item.image.windows(self._range, settings.max_pixels) as reader:
                found = self._detector.detect_tiled(
                    reader, tiling, settings.score, settings.batch, settings.max_detections
                )
                pixels = overview(reader) if settings.draw else None
                return NumberedResult(item.number, ImageResult(item.image, reader.size, found, pixels))
        except DataError as error:
            return NumberedResult(item.number, ImageResult(item.image, error=str(error)))

    def _drawn(self, each: NumberedResult) -> NumberedResult:
        """Replace the pixels of a result by the drawing, which is smaller; it runs in a thread."""
        result = each.result
        if result.pixels is None or result.found is None:
            return each
        drawing = drawn(result, self._detector.classes)
        return NumberedResult(each.number, replace(result, pixels=None, drawing=drawing))
