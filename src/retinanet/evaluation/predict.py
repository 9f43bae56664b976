"""Run a detector over a dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import batches_of_one_padded_size
from retinanet.data.images import read_image
from retinanet.data.windows import open_windows
from retinanet.detection.detector import Detector, Pixels
from retinanet.detection.runtime import RuntimeDetector
from retinanet.detection.tile_plan import Tiling
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.machine import cores

# Number of images that go through the network together, and of batches that are read ahead.
_BATCH, _AHEAD = 8, 3


@dataclass(frozen=True, eq=False)
class _ScaledImage:
    """An image of a dataset: its position, its pixels in the network's input size, and its own ``(height, width)``."""

    index: int
    pixels: Pixels
    size: tuple[int, int]


def predict(
    detector: Detector,
    dataset: Dataset,
    progress: Callable[[int], object] = lambda images: None,
    unreadable: dict[int, str] | None = None,
    max_detections: int | None = None,
    tiling: Tiling | None = None,
) -> Detections:
    """Detect objects in every image of ``dataset``, with boxes in pixels of the original images.

    Args:
        detector: its classes must be those of the dataset, see :meth:`Dataset.with_classes`.
        dataset: the images.
        progress: called with the number of images just finished.
        unreadable: if given, collects the position and the error message of each image that cannot be read.
        max_detections: largest number of detections per image; unset: the detector's own limit.
        tiling: divide each image into tiles; unset: each image is scaled as a whole.

    Raises:
        DataError: an image cannot be read and ``unreadable`` is not given.
    """
    # Deep images are scaled as in the training, and as the detector scales files.
    dataset = replace(dataset, pixel_range=detector.info.config.data.pixel_range)
    if tiling is not None:
        return _predict_tiled(detector, dataset, tiling, progress, unreadable, max_detections)
    read = _read_in_threads if isinstance(detector, RuntimeDetector) else _read_in_processes
    parts = []
    for images in read(detector, dataset, unreadable):
        found = detector.detect_scaled([image.pixels for image in images], max_detections=max_detections)
        for image, detections in zip(images, found, strict=True):
            parts.append(detections.rescaled(image.pixels.shape[:2], image.size).moved(image.index))
        progress(len(images))
    return Detections.concatenate(parts)  # the images are grouped by size


def _predict_tiled(
    detector: Detector,
    dataset: Dataset,
    tiling: Tiling,
    progress: Callable[[int], object],
    unreadable: dict[int, str] | None,
    max_detections: int | None,
) -> Detections:
    """Detect objects tile by tile, with one image after another, because their sizes may differ."""
    parts = []
    for index in dataset:
        try:
            with open_windows(dataset.path(index), dataset.pixel_range) as reader:
                found = detector.detect_tiled(reader, tiling, batch=_BATCH, max_detections=max_detections)
            parts.append(found.moved(index))
        except DataError as error:
            if unreadable is None:
                raise
            unreadable[index] = str(error)
        progress(1)
    return Detections.concatenate(parts)


def _read_in_processes(
    detector: Detector, dataset: Dataset, unreadable: dict[int, str] | None
) -> Iterator[list[_ScaledImage]]:
    """Yield batches of images with one padded size, scaled by the processes of :mod:`retinanet.data.loader`."""
    from retinanet.data.loader import evaluation_loader  # torch

    for samples in evaluation_loader(dataset, detector.info.config.data, _BATCH, unreadable):
        yield [
            _ScaledImage(sample.index, sample.image.permute(1, 2, 0).numpy(), sample.size[::-1]) for sample in samples
        ]


def _read_in_threads(
    detector: Detector, dataset: Dataset, unreadable: dict[int, str] | None
) -> Iterator[list[_ScaledImage]]:
    """Yield batches of images with one padded size. Threads read the next images; Pillow releases the GIL meanwhile."""

    def read(index: int) -> _ScaledImage:
        pixels = read_image(dataset.path(index), dataset.pixel_range)
        height, width = pixels.shape[:2]
        return _ScaledImage(index, detector.resize(pixels, detector.scaled_size(height, width)), (height, width))

    shapes = [detector.scaled_size(height, width) for width, height in dataset.sizes.tolist()]
    ahead = iter(batches_of_one_padded_size(shapes, _BATCH))
    with ThreadPoolExecutor(max_workers=min(8, max(2, cores()))) as pool:
        waiting: deque[list[tuple[int, Future[_ScaledImage]]]] = deque()
        for indices in ahead:
            waiting.append([(index, pool.submit(read, index)) for index in indices])
            if len(waiting) >= _AHEAD and (images := _finished(waiting.popleft(), unreadable)):
                yield images
        for batch in waiting:
            if images := _finished(batch, unreadable):
                yield images


def _finished(batch: list[tuple[int, Future[_ScaledImage]]], unreadable: dict[int, str] | None) -> list[_ScaledImage]:
    """Wait for the images of a batch. Unreadable images are left out and noted, or raise their error."""
    images = []
    for index, future in batch:
        try:
            images.append(future.result())
        except DataError as error:
            if unreadable is None:
                raise
            unreadable[index] = str(error)
    return images
