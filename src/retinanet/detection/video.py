"""Detect objects in videos and streams, track them, and write annotated videos and JSON Lines.

Decoding, the network and writing work at the same time, each in its own thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.console import Console

from retinanet.decode_config import LowestScore
from retinanet.detection.detector import Detector
from retinanet.detection.results import to_supervision
from retinanet.detection.stages import StageTimes
from retinanet.detection.tile_plan import TileOptions, TileSide
from retinanet.detection.video_connection import Connection
from retinanet.detection.video_frames import STAGES, detected_frames, open_reader
from retinanet.detection.video_options import VideoOptions
from retinanet.detection.video_output import VideoOutput
from retinanet.detection.video_sources import VideoSource, rate_of_sequences, unique_names, video_source
from retinanet.detection.video_writer import SUFFIXES, suffix_for
from retinanet.errors import ConfigError, DataError
from retinanet.files import make_folder
from retinanet.progress import plain_console, progress_bar

if TYPE_CHECKING:
    import supervision


class VideoStopped(KeyboardInterrupt):
    """The user stopped the detection in a video. The message names the files with the frames until then."""

    resumable = False


@dataclass(frozen=True)
class VideoRun:
    """The result for one video.

    Attributes:
        source: the video as the user gave it.
        frames: number of frames in which objects were detected.
        seconds: how long this took.
        counts: detections of each class, by name.
        objects: tracked objects of each class, by name; empty without tracking.
        written: names of the files.
        notes: sentences about broken frames, dropped connections and limits.
        shares: share of the time in which each stage worked, such as ``decode 12%, network 80%``.
    """

    source: str
    frames: int
    seconds: float
    counts: Counter[str]
    objects: Counter[str]
    written: list[str]
    notes: list[str]
    shares: str

    def summary(self) -> str:
        """Return a line with the number of frames, the tracked objects, and the time."""
        objects = ", ".join(f"{name} {count}" for name, count in self.objects.most_common(8))
        rate = f"{self.frames / self.seconds:.1f} frames/s ({self.shares})"
        return f"{self.source}: {self.frames} frames, {f'objects: {objects}, ' if objects else ''}{rate}"


@dataclass(frozen=True)
class VideoFrame:
    """A frame with its detections, as :func:`frames` yields it.

    Attributes:
        number: position in the video, from 0.
        time: time stamp in seconds.
        image: uint8 RGB ``(H, W, 3)``.
        found: ``supervision.Detections``, with ``tracker_id`` if objects are tracked.
    """

    number: int
    time: float
    image: npt.NDArray[np.uint8]
    found: supervision.Detections


def frames(
    detector: Detector,
    source: str | Path,
    *,
    score: LowestScore = 0.3,
    track: bool = False,
    batch: int = 8,
    max_detections: int | None = None,
    frame_rate: float | None = None,
    tile: TileOptions | TileSide | None = None,
) -> Iterator[VideoFrame]:
    """Detect objects in the frames of a video, one frame after the other.

    Args:
        detector: from :func:`retinanet.load`.
        source: a video file, a stream (``rtsp://…``, ``http://…``), a webcam (``webcam:0``), a folder of images, or a
            pattern such as ``frame_%06d.png``.
        score: lowest score of a detection; with ``track``, of a detection that starts a track. Lower scores may
            continue a track. ``"auto"``: the threshold with the best F1 on val, which a training stores.
        track: give objects ids that stay the same from frame to frame. Only tracked objects are returned.
        batch: largest number of frames that go through the network together. Frames of a camera do not wait until a
            batch is full.
        max_detections: largest number of detections per frame; unset: the number that the weights store, with tiles
            per tile.
        frame_rate: frames per second of a folder or pattern. Unset: 25.
        tile: divide each frame into tiles of this side in pixels, or ``"auto"``, or :class:`TileOptions`; ``"none"``:
            each frame is scaled as a whole. Unset: ``"none"``, or ``"auto"`` if the model was trained on tiles.

    Yields:
        Each frame with its detections. Frames of a camera are dropped if the network is slower than the camera.

    Raises:
        DataError: the source cannot be opened or decoded.
        ConfigError: a setting is out of range.
    """
    described = video_source(str(source))
    rate = rate_of_sequences([described], frame_rate)
    tiling = detector.chosen_tiling(TileOptions.of(tile))
    options = VideoOptions(detector.lowest_score(score), max_detections, tiling, batch, track, frame_rate=rate)
    reader = open_reader(detector, described, options)
    for each in detected_frames(detector, reader, options, StageTimes(STAGES), []):
        found = to_supervision(each.found, detector.classes, each.ids)
        yield VideoFrame(each.frame.number, each.frame.time, each.frame.image, found)


def detect_videos(
    detector: Detector, sources: Sequence[str], out: Path, options: VideoOptions, console: Console | None = None
) -> tuple[list[VideoRun], list[str]]:
    """Detect objects in videos and write ``out/NAME.jsonl`` and ``out/NAME.mp4`` for each.

    Returns:
        The result for each video, and an error message for each video that cannot be read.

    Raises:
        ConfigError: an output would replace one of the sources.
        DataError: no video can be read.
        RetinaNetError: a file cannot be written.
        VideoStopped: the user stopped it. The files contain what was done until then.
    """
    described = [video_source(source) for source in sources]
    paths = [out / name for name in unique_names(described)]
    if options.draw:
        _refuse_replacing(described, paths, options)
    make_folder(out)
    runs, errors = [], []
    for source, path in zip(described, paths, strict=True):
        try:
            runs.append(_detect_video(detector, source, path, options, console or plain_console()))
        except DataError as error:
            errors.append(str(error))
    if not runs:
        raise DataError("; ".join(errors))
    return runs, errors


def _refuse_replacing(sources: Sequence[VideoSource], paths: Sequence[Path], options: VideoOptions) -> None:
    """Raise ConfigError if the annotated video of a source would replace a source. ``paths`` have no suffixes."""
    originals = {Path(each.address).resolve() for each in sources if each.is_file}
    for source, path in zip(sources, paths, strict=True):
        for suffix in SUFFIXES:
            video = path.with_name(path.name + suffix)
            if video.resolve() in originals and _suffix_of(source, options) == suffix:
                raise ConfigError(f"--out {path.parent}: {video} would replace a source; choose another --out")


def _suffix_of(source: VideoSource, options: VideoOptions) -> str | None:
    """Return the suffix of the annotated video of a source; ``None`` if the source cannot be opened."""
    if source.images:
        return suffix_for(())
    try:
        with closing(Connection(source, options.limits)) as connection:
            return suffix_for(connection.audio)
    except DataError:
        return None


def _detect_video(
    detector: Detector, source: VideoSource, path: Path, options: VideoOptions, console: Console
) -> VideoRun:
    reader, times, notes = open_reader(detector, source, options), StageTimes(STAGES), list[str]()
    output = VideoOutput(path, reader, detector.classes, options.draw, times)
    try:
        with (
            progress_bar(console, source.name, reader.total) as bar,
            closing(detected_frames(detector, reader, options, times, notes)) as detected,
        ):
            for each in detected:
                output.add(each)
                bar.update(1, f"{source.name} {output.frames / times.elapsed:.1f} frames/s, {times.shares()}")
        if not output.frames:
            raise DataError(f"{source.text}: has no frame that can be decoded; the file may be damaged")
        notes += output.finish()
    except KeyboardInterrupt:
        output.finish()
        files = " and ".join(output.written())
        raise VideoStopped(f"stopped after {output.frames} frames, which are in {files}") from None
    except BaseException:
        output.discard()
        raise
    written = output.written()
    return VideoRun(
        source.text, output.frames, times.elapsed, output.counts, output.objects, written, notes, times.shares()
    )
