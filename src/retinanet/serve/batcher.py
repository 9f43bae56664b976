"""Collect the images of many clients in batches: threads decode, one thread runs the networks.

Only images with equal options share a batch. If the network computes a batch as a whole, they also have equal padded
size, so that no image changes the result of another (:mod:`retinanet.data.image_sizes`).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import numpy as np
import numpy.typing as npt

from retinanet.data.array_windows import ArrayReader
from retinanet.data.image_sizes import padded_size
from retinanet.detection.detector import Detector, Pixels
from retinanet.detection.tile_plan import Tiling
from retinanet.detections import Detections
from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import ServeSettings
from retinanet.serve.uploads import decode_upload

_log = logging.getLogger("retinanet.serve")

# Decoded images that may wait for the network, as a multiple of the batch size.
_AHEAD = 4


@dataclass(frozen=True)
class Options:
    """What a request asks for; see :meth:`retinanet.detection.detector.Detector.__call__`.

    Attributes:
        model: name of the model.
        score: lowest score returned.
        max_detections: largest number of detections; ``None``: the number that the weights store.
        tiling: the division into tiles; ``None``: the image is scaled as a whole.
    """

    model: str
    score: float
    max_detections: int | None = None
    tiling: Tiling | None = None


@dataclass
class Job:
    """An image on its way through the server.

    Attributes:
        content: the bytes of the image file.
        options: what the request asks for.
        deadline: the time of :func:`time.monotonic` after which nobody waits for the answer.
        keep: whether the decoded image is part of the result.
        future: the result. Who no longer waits for it cancels it.
        seconds: time spent in each stage.
    """

    content: bytes
    options: Options
    deadline: float
    keep: bool = False
    future: Future[Found] = field(default_factory=Future)
    seconds: dict[str, float] = field(default_factory=dict)
    image: npt.NDArray[np.uint8] | None = None
    size: tuple[int, int] = (0, 0)
    scaled: Pixels | None = None
    ready: float = 0.0

    def wanted(self) -> bool:
        """Whether somebody waits for the result. After the deadline, the job fails."""
        if self.future.cancelled():
            return False
        if monotonic() > self.deadline:
            self.fail(Refusal("deadline_exceeded", "the request waited too long; try again later", retry_after=2))
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """Let the future raise ``error``, unless nobody waits for it."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True)
class Found:
    """The detections of an image.

    Attributes:
        detections: boxes in pixels of the image.
        size: ``(height, width)`` of the upright image.
        image: uint8 RGB ``(H, W, 3)``, if the job kept it.
        seconds: time spent in each stage.
    """

    detections: Detections
    size: tuple[int, int]
    image: npt.NDArray[np.uint8] | None
    seconds: Mapping[str, float]


class JobRunner(Protocol):
    """Works on jobs, in this process (:class:`Batcher`) or in others. Its methods may be called from any thread."""

    def submit(self, job: Job) -> Future[Found]:
        """Start to work on a job; its future has the result, or raises :class:`Refusal` or the error of the network."""

    def stuck(self, seconds: float) -> bool:
        """Whether it has made no progress for longer than a number of seconds."""

    def close(self) -> None:
        """Finish all jobs. New jobs are refused."""


# Makes what works on the jobs of some models; the function is called with the number of images of each batch.
MakeJobRunner = Callable[[Mapping[str, Detector], ServeSettings, Callable[[int], object]], JobRunner]

_Group = tuple[Options, tuple[int, int]]


class Batcher:
    """Decodes images and detects objects in them. Jobs may be submitted from any thread.

    Args:
        models: the detectors by name.
        settings: sizes of batches and number of threads.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self,
        models: Mapping[str, Detector],
        settings: ServeSettings,
        on_batch: Callable[[int], object] = lambda images: None,
    ) -> None:
        self._models, self._settings, self._on_batch = dict(models), settings, on_batch
        self._streams = {
            name: streams for name, each in models.items() if 1 < (streams := each.streams) <= settings.batch
        }
        self._network_threads = _torch_threads()
        self._pool = ThreadPoolExecutor(
            settings.decoders, thread_name_prefix="decode", initializer=_use_torch_threads, initargs=(1,)
        )
        self._ahead = threading.Semaphore(_AHEAD * settings.batch)
        self._groups: dict[_Group, deque[Job]] = {}
        self._decoding = 0  # jobs that are not in a group yet
        self._closing = False
        self._change = threading.Condition()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future[Found]:
        """Start to work on a job; its future has the result, or raises :class:`Refusal` or the error of the network."""
        with self._change:
            if self._closing:
                raise Refusal("shutting_down", "the server is shutting down", retry_after=5)
            self._decoding += 1
        self._pool.submit(self._prepare, job)
        return job.future

    def stuck(self, seconds: float) -> bool:
        """Whether the network has worked on one batch for longer than a number of seconds, or its thread has ended."""
        since = self._busy_since
        return not self._thread.is_alive() or (since is not None and monotonic() - since > seconds)

    def close(self) -> None:
        """Finish all jobs and end the threads. New jobs are refused."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._pool.shutdown(wait=True)
        self._thread.join()

    def _prepare(self, job: Job) -> None:
        """Decode and scale an image in a thread of the pool."""
        self._ahead.acquire()
        group: _Group | None = None
        try:
            if job.wanted():
                group = self._decoded(job)
        except BaseException as error:
            job.fail(error)
        with self._change:
            self._decoding -= 1
            if group is not None:
                job.ready = monotonic()
                self._groups.setdefault(group, deque()).append(job)
            self._change.notify_all()
        if group is None:
            self._ahead.release()

    def _decoded(self, job: Job) -> _Group:
        begin = monotonic()
        detector = self._models[job.options.model]
        image = decode_upload(job.content, detector.info.config.data.pixel_range)
        job.content = b""
        job.size = (image.shape[0], image.shape[1])
        if job.keep or job.options.tiling is not None:
            job.image = image
        padded = (0, 0)
        if job.options.tiling is None:
            shape = detector.scaled_size(*job.size)
            job.scaled = detector.resize(image, shape)
            if job.options.model not in self._streams:
                padded = padded_size([shape], detector.info.config.data.pad_to)
        job.seconds["decode"] = monotonic() - begin
        return job.options, padded

    def _run(self) -> None:
        _use_torch_threads(self._network_threads)
        while (jobs := self._next_jobs()) is not None:
            self._busy_since = monotonic()
            wanted = [job for job in jobs if job.wanted()]
            if wanted:
                self._compute(wanted)
            self._busy_since = None
            for _ in jobs:
                self._ahead.release()

    def _next_jobs(self) -> list[Job] | None:
        """Wait for the jobs of the next batch, the group with the oldest job first; ``None`` at the end."""
        with self._change:
            while True:
                if self._groups:
                    key = min(self._groups, key=lambda key: self._groups[key][0].ready)
                    group = self._groups[key]
                    left = group[0].ready + self._settings.wait_ms / 1000 - monotonic()
                    # More images than streams would only wait for each other.
                    most = self._streams.get(key[0].model, self._settings.batch)
                    if left <= 0 or len(group) >= most or not self._decoding:
                        break
                    self._change.wait(left)
                elif self._closing and not self._decoding:
                    return None
                else:
                    self._change.wait()
            jobs = [group.popleft() for _ in range(min(most, len(group)))]
            if not group:
                del self._groups[key]
            return jobs

    def _compute(self, jobs: list[Job]) -> None:
        """Run the network on a batch. If that fails, run it on each image, so that only one request fails."""
        begin = monotonic()
        try:
            results = self._detections(jobs)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    if job.wanted():
                        self._compute([job])
            else:
                _log.error("the network failed on an image of %d×%d pixels: %s", *jobs[0].size[::-1], _kind(error))
                jobs[0].fail(error)
            return
        end = monotonic()
        self._on_batch(len(jobs))
        for job, found in zip(jobs, results, strict=True):
            job.seconds |= {"queue": begin - job.ready, "network": end - begin}
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(Found(found, job.size, job.image if job.keep else None, job.seconds))

    def _detections(self, jobs: list[Job]) -> list[Detections]:
        options = jobs[0].options
        detector = self._models[options.model]
        if options.tiling is not None:
            images = [job.image for job in jobs if job.image is not None]
            return [
                detector.detect_tiled(
                    ArrayReader(image), options.tiling, options.score, self._settings.batch, options.max_detections
                )
                for image in images
            ]
        scaled = [job.scaled for job in jobs if job.scaled is not None]
        results = detector.detect_scaled(scaled, options.score, options.max_detections)
        return [
            detector.in_image(found, pixels.shape[:2], job.size)
            for found, pixels, job in zip(results, scaled, jobs, strict=True)
        ]


def _torch_threads() -> int:
    """Return the number of threads of PyTorch for the calling thread; 1 if it is not in use."""
    if "torch" not in sys.modules:
        return 1
    import torch

    return torch.get_num_threads()


def _use_torch_threads(count: int) -> None:
    """Set the number of threads that PyTorch uses in the calling thread, if it is in use: one to scale images, all
    others for the network.
    """
    if "torch" in sys.modules:
        from retinanet.detection.streams import use_torch_threads

        use_torch_threads(count)


def _kind(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
