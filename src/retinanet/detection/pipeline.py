"""Detect objects in many images: threads read the next images while the network works, and results stay in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from retinanet.data.open_images import MAX_PIXELS
from retinanet.detection.batching import Item, Task, Window
from retinanet.detection.detector import Detector
from retinanet.detection.input_images import InputImage
from retinanet.detection.overview import overview
from retinanet.detection.tile_plan import Tiling
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.machine import cores

# Limit of the pixels of images that are read ahead. Their sizes are unknown, so they count like the last images.
_AHEAD_PIXELS = 32_000_000


@dataclass(frozen=True)
class ImageResult:
    """The result for one image.

    Attributes:
        image: the image.
        size: its ``(height, width)``; ``None`` if it could not be read.
        found: detections in pixels of the image; ``None`` if it could not be read.
        pixels: uint8 RGB ``(h, w, 3)`` if they are to be drawn on; smaller than ``size`` if the image is very large.
        error: why it could not be read.
        drawing: JPEG file of the image with its boxes, if another process has drawn it.
    """

    image: InputImage
    size: tuple[int, int] | None = None
    found: Detections | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    error: str | None = None
    drawing: bytes | None = None


@dataclass
class Timing:
    """Time of a run in seconds.

    Attributes:
        reading: time in which the network waited for images.
        writing: time in which it waited until results were drawn and written.
        total: time from the start to the last result.
        images: number of results so far.
        tiled: whether images are divided into tiles; ``reading`` is not measured then.
    """

    reading: float = 0.0
    writing: float = 0.0
    total: float = 0.0
    images: int = 0
    tiled: bool = False

    def __str__(self) -> str:
        seconds = max(self.total, 1e-9)
        slow = self.images < seconds
        rate = f"{seconds / max(1, self.images):.3g} s per image" if slow else f"{self.images / seconds:.3g} images/s"
        reading = "" if self.tiled else f"{self.reading / seconds:.0%} for images, "
        return f"{rate}; the network waited {reading}{self.writing / seconds:.0%} for output files"


@dataclass(frozen=True)
class PipelineOptions:
    """Settings of a :class:`Pipeline`; see :meth:`retinanet.detection.detector.Detector.detect`.

    Attributes:
        score: lowest score of a detection.
        batch: largest number of images or tiles that go through the network together.
        max_detections: largest number of detections per image; unset: the number that the weights store.
        keep_pixels: whether results contain the pixels of their images.
        tiling: how images are divided into tiles; unset: each image is scaled as a whole.
        max_pixels: largest number of pixels of an image that is divided into tiles.
    """

    score: float
    batch: int = 8
    max_detections: int | None = None
    keep_pixels: bool = True
    tiling: Tiling | None = None
    max_pixels: int = MAX_PIXELS


class Runner(Protocol):
    """Runs a detector over images, in this process (:class:`Pipeline`) or in others.

    Attributes:
        timing: how fast it is.
    """

    timing: Timing

    def run(self, tasks: Iterable[Task]) -> Iterator[ImageResult]:
        """Yield the results in the order of ``tasks``, without those of images that are done."""


# Makes a runner for a detector and settings.
MakeRunner = Callable[[Detector, PipelineOptions], Runner]


class Pipeline:
    """Runs a detector over images.

    Only images of one padded size share a batch. Which images do depends on their order and sizes alone, not on
    the time that reading takes: the last bits of some networks depend on the batch, so this gives every run the same
    result, also a run that is resumed.

    Args:
        detector: the detector.
        options: score threshold, batch size and limits.

    Attributes:
        timing: how long the network has waited for images.
    """

    def __init__(self, detector: Detector, options: PipelineOptions) -> None:
        self.timing = Timing()
        self._detector, self._options = detector, options
        self._range = detector.info.config.data.pixel_range
        self._largest = 1  # pixels of the largest of the last images

    def run(self, tasks: Iterable[Task]) -> Iterator[ImageResult]:
        """Yield the results in the order of ``tasks``, without those of images that are done."""
        begin = perf_counter()
        if self._options.tiling is not None:
            yield from self._timed(self._tiled(tasks, self._options.tiling), begin)
            return
        window = Window[Item](self._detector.input_sizes, self._options.batch)
        pool = ThreadPoolExecutor(max_workers=min(8, max(2, cores())))
        try:
            for item in self._in_order(tasks, pool):
                for batch in window.add(item):
                    self._detect(batch)
                yield from self._timed(_results(window), begin)
            for batch in window.rest():
                self._detect(batch)
            yield from self._timed(_results(window), begin)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _tiled(self, tasks: Iterable[Task], tiling: Tiling) -> Iterator[ImageResult]:
        """Divide one image after the other into tiles; the next tiles are read while the network works."""
        options = self._options
        self.timing.tiled = True
        for image in (task.image for task in tasks if not task.done):
            try:
                with image.windows(self._range, options.max_pixels) as reader:
                    found = self._detector.detect_tiled(
                        reader, tiling, options.score, options.batch, options.max_detections
                    )
                    pixels = overview(reader) if options.keep_pixels else None
                    yield ImageResult(image, reader.size, found, pixels)
            except DataError as error:
                yield ImageResult(image, error=str(error))

    def _timed(self, results: Iterable[ImageResult], begin: float) -> Iterator[ImageResult]:
        """Yield ``results``, and measure how long the caller works on them."""
        for result in results:
            self.timing.images += 1
            start = perf_counter()
            self.timing.total = start - begin
            yield result
            self.timing.writing += perf_counter() - start

    def _in_order(self, tasks: Iterable[Task], pool: ThreadPoolExecutor) -> Iterator[Item]:
        """Read images ahead; yield them in order."""
        ahead: deque[Item | Future[Item]] = deque()
        for task in tasks:
            # The size of an image that is done decides which images share a batch. Its pixels are rarely needed.
            ahead.append(Item(task, task.size) if task.done else pool.submit(self._read, task))
            while len(ahead) > max(1, min(2 * self._options.batch, _AHEAD_PIXELS // self._largest)):
                yield self._waited_for(ahead.popleft())
        while ahead:
            yield self._waited_for(ahead.popleft())

    def _waited_for(self, item: Item | Future[Item]) -> Item:
        if isinstance(item, Future):
            begin = perf_counter()
            item = item.result()
            self.timing.reading += perf_counter() - begin
        if item.size is not None:
            self._largest = max(item.size[0] * item.size[1], self._largest * 7 // 8)
        return item

    def _read(self, task: Task) -> Item:
        """Read and scale an image; it runs in a thread."""
        try:
            pixels = task.image.read(self._range)
        except DataError as error:
            return Item(task, error=str(error))
        size = (pixels.shape[0], pixels.shape[1])
        scaled = self._detector.resize(pixels, self._detector.scaled_size(*size))
        return Item(task, size, scaled, pixels if self._options.keep_pixels else None)

    def _detect(self, batch: list[Item]) -> None:
        """Detect objects in a batch, unless all of its images are done."""
        for item in batch:
            item.finished = True
        if all(item.task.done for item in batch):
            return
        readable = [(item, item if item.scaled is not None else self._read(item.task)) for item in batch]
        inputs = [(item, read.scaled) for item, read in readable if read.scaled is not None]
        found = self._detector.detect_scaled(
            [scaled for _, scaled in inputs], self._options.score, self._options.max_detections
        )
        for (item, scaled), detections in zip(inputs, found, strict=True):
            assert item.size is not None
            item.scaled, item.found = None, self._detector.in_image(detections, scaled.shape[:2], item.size)


def _results(window: Window[Item]) -> Iterator[ImageResult]:
    """Yield the results of the images that are finished."""
    for item in window.finished():
        if not item.task.done:
            yield ImageResult(item.task.image, item.size, item.found, item.pixels, item.error)


def detect_in_files(
    detector: Detector,
    images: Iterable[InputImage],
    score: float,
    batch: int = 8,
    max_detections: int | None = None,
) -> Iterator[ImageResult]:
    """Detect objects in images, in order; see :class:`Pipeline`."""
    yield from Pipeline(detector, PipelineOptions(score, batch, max_detections)).run(map(Task, images))
