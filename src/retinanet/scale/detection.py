"""``retinanet detect --ray``: the images of a run, divided among the workers of a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

from retinanet.detection.batching import Item, Task, Window
from retinanet.detection.detector import Detector
from retinanet.detection.input_sizes import InputSizes
from retinanet.detection.pipeline import ImageResult, MakeRunner, PipelineOptions, Timing
from retinanet.scale.cluster import joined
from retinanet.scale.options import ScaleOptions
from retinanet.scale.work import Batch, BatchImage, ModelSource, NumberedResult, WorkerSettings
from retinanet.scale.worker import weights_digest

# Threads that read headers.
_READERS = 16


@dataclass(eq=False)
class _NumberedItem(Item):
    """An image that waits for its batch; ``number`` is that of :class:`BatchImage`."""

    number: int | None = None


@dataclass(frozen=True)
class RunBatches:
    """The batches of a run: the same as those that one process forms, because the last bits of a result may depend on
    the batch.

    Only the headers of files are read. Images without a header that can be read, and images from the web, are alone in
    their batch.

    Attributes:
        tasks: the images; an iterable that other processes can be sent.
        sizes: sizes of images in the input of the network; ``None``: every image is alone, as with tiles.
        batch: number of images of a full batch.
    """

    tasks: Iterable[Task]
    sizes: InputSizes | None
    batch: int

    def __iter__(self) -> Iterator[Batch]:
        """Form the batches."""
        count = 0
        window = None if self.sizes is None else Window[_NumberedItem](self.sizes, self.batch)
        for task, size in self._with_sizes():
            number = None if task.done else count
            count += not task.done
            if number is not None and size is None:
                yield [BatchImage(task.image, number)]
            elif window is not None:
                for group in window.add(_NumberedItem(task, size, number=number)):
                    yield from _batch_of(group)
                deque(window.finished(), maxlen=0)  # their results are elsewhere
        if window is not None:
            for group in window.rest():
                yield from _batch_of(group)

    def _with_sizes(self) -> Iterator[tuple[Task, tuple[int, int] | None]]:
        """Yield the tasks with the sizes of their images. Threads read the next headers: storage may be slow."""
        if self.sizes is None:
            yield from ((task, task.size) for task in self.tasks)
            return
        ahead: deque[tuple[Task, Future[tuple[int, int] | None] | None]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            for task in self.tasks:
                ahead.append((task, None if task.done else pool.submit(task.image.header_size)))
                if len(ahead) > 2 * _READERS:
                    first, size = ahead.popleft()
                    yield first, first.size if size is None else size.result()
            for first, size in ahead:
                yield first, first.size if size is None else size.result()


def _batch_of(group: list[_NumberedItem]) -> Iterator[Batch]:
    """Yield the batch of a group of items, unless an earlier run has recorded all of them."""
    for item in group:
        item.finished = True
    if not all(item.task.done for item in group):
        yield [BatchImage(item.task.image, item.number) for item in group]


class ClusterTiming(Timing):
    """Images per second of all workers together."""

    def __str__(self) -> str:
        seconds = max(self.total, 1e-9)
        return f"{self.images / seconds:.3g} images/s on the cluster"


@dataclass
class ClusterRunner:
    """Runs a detector on the workers of a cluster.

    Args:
        address: the cluster; see :func:`retinanet.scale.cluster.joined`.
        scale: its workers.
        model: how the workers load the detector.
        detector: the detector of the command.
        options: score threshold, batch size and limits.

    Attributes:
        timing: images per second.
    """

    address: str
    scale: ScaleOptions
    model: ModelSource
    detector: Detector
    options: PipelineOptions
    timing: Timing = field(default_factory=ClusterTiming)

    def run(self, tasks: Iterable[Task]) -> Iterator[ImageResult]:
        """Yield the results in the order of ``tasks``, without those of images that are done.

        Raises:
            MissingPackageError: Ray is not installed.
            RetinaNetError: the cluster cannot be joined, or a worker cannot work.
        """
        options = self.options
        sizes = None if options.tiling else self.detector.input_sizes
        settings = WorkerSettings(
            self.model,
            weights_digest(self.detector),
            Path.cwd(),
            options.score,
            options.max_detections,
            options.keep_pixels,
            options.tiling,
            options.max_pixels,
            options.batch,
        )
        with joined(self.address, self.scale) as cluster:
            begin = perf_counter()
            for result in in_order(cluster.run(RunBatches(tasks, sizes, options.batch), settings)):
                self.timing.images += 1
                self.timing.total = perf_counter() - begin
                yield result


def in_order(results: Iterable[NumberedResult]) -> Iterator[ImageResult]:
    """Yield results in the order of their numbers."""
    waiting: dict[int, ImageResult] = {}
    following = 0
    for each in results:
        waiting[each.number] = each.result
        while following in waiting:
            yield waiting.pop(following)
            following += 1
    assert not waiting  # the cluster has checked that nothing is missing


def cluster_runner(address: str, scale: ScaleOptions, model: ModelSource) -> MakeRunner:
    """Return a function that makes a :class:`ClusterRunner`."""
    return partial(ClusterRunner, address, scale, model)
