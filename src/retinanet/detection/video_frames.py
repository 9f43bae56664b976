"""The frames of a video with their detections: decoding in a thread, the network in batches, tracking."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinanet.data.array_windows import ArrayReader
from retinanet.decode_config import limit_note, nonfinite_note
from retinanet.detection.detector import Detector
from retinanet.detection.stages import ReadAhead, StageTimes
from retinanet.detection.video_options import VideoOptions
from retinanet.detection.video_reader import Frame, SequenceReader, VideoReader
from retinanet.detection.video_sources import VideoSource
from retinanet.detections import Detections

STAGES = ("decode", "network", "track", "draw", "encode")

# Frames that wait for a stage take at most about this many bytes.
BYTES_WAITING = 200 << 20

AnyReader = VideoReader | SequenceReader


@dataclass(frozen=True)
class DetectedFrame:
    """A frame with its detections, and the ids of the objects ``(D,)`` if they are tracked."""

    frame: Frame
    found: Detections
    ids: npt.NDArray[np.int64] | None


def open_reader(detector: Detector, source: VideoSource, options: VideoOptions) -> AnyReader:
    """Open a source of frames.

    Raises:
        DataError: the source cannot be opened, or holds no video that can be decoded.
    """
    if source.images:
        return SequenceReader(source, options.frame_rate, detector.info.config.data.pixel_range)
    return VideoReader(source, options.limits)


def frames_waiting(reader: AnyReader, count: int) -> int:
    """Return how many frames may wait for a stage: ``count``, or fewer if they are large."""
    return max(1, min(count, BYTES_WAITING // (3 * max(1, reader.pixels))))


def detected_frames(
    detector: Detector, reader: AnyReader, options: VideoOptions, times: StageTimes, notes: list[str]
) -> Generator[DetectedFrame, None, None]:
    """Yield each frame with its detections; at the end, append sentences about problems to ``notes``.

    Raises:
        DataError: the frames cannot be read.
    """
    tracking = _Tracking(reader, options.score) if options.track else None
    lowest = options.score if tracking is None else tracking.lowest
    tiling, largest = options.tiling, (0, 0)  # height and width of the largest frame
    # Tiles of different frames do not go through the network together, so no frame has to wait for others.
    batch = frames_waiting(reader, options.batch) if tiling is None else 1
    count = limited = nonfinite = 0
    ahead = ReadAhead(times.measure_each("decode", reader), 2 * batch, latest=reader.source.realtime)
    with ahead, closing(reader):
        while frames := ahead.take(batch):
            images = [each.image for each in frames]
            largest = max(largest, *(image.shape[:2] for image in images), key=max)
            with times.measured("network"):
                results = _detect(detector, images, lowest, batch, options)
            for frame, found in zip(frames, results, strict=True):
                limited += len(found.limited) > 0
                nonfinite += len(found.nonfinite)
                count += 1
                if tracking is None:
                    yield DetectedFrame(frame, found, None)
                    continue
                with times.measured("track"):
                    tracked = tracking.tracker.update(found, frame.time)
                yield DetectedFrame(frame, tracked.found, tracked.ids)
    notes += _problems(reader, ahead.dropped)
    if tiling is not None and count:
        notes += tiling.notes(largest)
    if limited:
        settings = detector.limits(options.score, options.max_detections, tiled=tiling is not None)
        per: Literal["image", "tile"] = "tile" if tiling and options.max_detections is None else "image"
        notes.append(limit_note(limited, count, settings, per))
    if nonfinite:
        notes.append(nonfinite_note(nonfinite, count))


def _detect(
    detector: Detector, images: Sequence[npt.NDArray[np.uint8]], score: float, batch: int, options: VideoOptions
) -> list[Detections]:
    """Detect objects in frames, with at most ``batch`` frames, or ``options.batch`` tiles of a frame, together.

    Detections below ``options.score`` serve only the tracking, so limits that cost only such detections do not count.
    """
    tiling, limit, wanted = options.tiling, options.max_detections, options.score
    if tiling is None:
        return [each.limited_above(wanted) for each in detector.detect(images, score, batch, limit)]
    return [detector.detect_tiled(ArrayReader(image), tiling, score, options.batch, limit, wanted) for image in images]


class _Tracking:
    """A tracker, and the lowest score that it uses."""

    def __init__(self, reader: AnyReader, score: float) -> None:
        from retinanet.detection.tracking import Tracker, TrackSettings  # imports SciPy

        settings = TrackSettings.from_score(score)
        # The detector compares float32 scores with this limit.
        self.lowest = math.nextafter(settings.low, 0)
        self.tracker = Tracker(settings, float(reader.rate))


def _problems(reader: AnyReader, dropped: int) -> list[str]:
    notes = [f"broken frames: {reader.broken}"] if reader.broken else []
    notes += (
        [f"times that the connection dropped and was opened again: {reader.reconnects}"] if reader.reconnects else []
    )
    notes += [f"frames dropped, because the network was slower than the source: {dropped}"] if dropped else []
    return [f"{reader.source.text}: {note}" for note in [*notes, *reader.notes]]
