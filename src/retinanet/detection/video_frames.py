"""The frames of a video with their detections: decoding in a thread, the network in batches, tracking."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    batch = frames_waiting(reader, options.batch)
    count = limited = nonfinite = 0
    ahead = ReadAhead(times.measure_each("decode", reader), 2 * batch, latest=reader.source.realtime)
    with ahead, closing(reader):
        while frames := ahead.take(batch):
            with times.measured("network"):
                results = detector.detect([each.image for each in frames], lowest, batch, options.max_detections)
            for frame, found in zip(frames, results, strict=True):
                # Detections below the score that was asked for serve the tracking only; a limit may cost some of them.
                limited += len(found.limited) > 0 and bool((found.scores >= options.score).all())
                nonfinite += len(found.nonfinite)
                count += 1
                if tracking is None:
                    yield DetectedFrame(frame, found, None)
                    continue
                with times.measured("track"):
                    tracked = tracking.tracker.update(found, frame.time)
                yield DetectedFrame(frame, tracked.found, tracked.ids)
    notes += _problems(reader, ahead.dropped)
    if limited:
        notes.append(limit_note(limited, count, detector.decode_config(options.score, options.max_detections)))
    if nonfinite:
        notes.append(nonfinite_note(nonfinite, count))


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
