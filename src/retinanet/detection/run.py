"""``retinanet.detect``: detect objects in image files, draw them and write them to files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from retinanet.decode_config import limit_note, nonfinite_note
from retinanet.detection.detector import Detector
from retinanet.detection.loading import load
from retinanet.detection.sources import detect_in_files, files_left_out, find_images
from retinanet.detection.video_options import VideoOptions
from retinanet.detection.video_sources import is_video
from retinanet.detection.write import OutputFormat, Writer
from retinanet.errors import ConfigError
from retinanet.files import make_folder
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import plain_console, progress_bar


@dataclass(frozen=True)
class DetectionRun:
    """The result of :func:`detect`.

    Attributes:
        images: number of images in which objects were detected.
        counts: detections of each class, by name.
        written: descriptions of the files in ``out``.
        failed: error messages for files that could not be read.
        out: folder of the files.
        notes: sentences about files that were left out, and about images that reached the limit on detections.
        videos: a line about each video. ``images`` then is the number of frames.
    """

    images: int
    counts: Counter[str]
    written: list[str]
    failed: list[str]
    out: Path
    notes: list[str]
    videos: tuple[str, ...] = ()


@explain_missing_packages("retinanet.detect")
def detect(
    weights: str | Path | Detector,
    sources: str | Path | Sequence[str | Path],
    out: str | Path = "detections",
    *,
    score: float = 0.3,
    formats: OutputFormat | Sequence[OutputFormat] = ("coco", "csv"),
    draw: bool = True,
    max_detections: int | None = None,
    track: bool = False,
    video: bool = False,
    frame_rate: float = 25.0,
    console: Console | None = None,
) -> DetectionRun:
    """Detect objects in image files or videos, as the command ``retinanet detect`` does.

    To get the detections themselves, use :func:`retinanet.load`.

    Args:
        weights: a weight file, an exported file, the name of a bundled model, or a detector (to choose its precision
            and device).
        sources: images, folders or glob patterns; or videos, streams (``rtsp://…``), webcams (``webcam:0``) and
            patterns of frames (``frame_%06d.png``).
        out: folder for the drawn images and the files.
        score: lowest score reported, 0 ≤ ``score`` < 1.
        formats: one or more file formats of the detections: ``coco``, ``csv``, ``yolo``, ``voc``. Detections in a
            video are always written as JSON Lines.
        draw: draw the boxes on copies of the images.
        max_detections: largest number of detections per image; unset: the number that the weights store.
        track: give the objects of a video ids that stay the same from frame to frame.
        video: treat all sources as videos: folders as sequences of frames, URLs as streams.
        frame_rate: frames per second of a sequence of images.
        console: where the progress bar is shown.

    Raises:
        ConfigError: a setting is out of range, or images and videos are mixed.
        DataError: there is no image, or a drawn image would overwrite its source.
        CheckpointError: the weights cannot be read.
    """
    if not 0 <= score < 1:
        raise ConfigError(f"--score is {score}; it must lie between 0 and 1")
    chosen: list[Any] = [formats] if isinstance(formats, str) else list(formats)
    if unknown := [name for name in chosen if name not in get_args(OutputFormat)]:
        raise ConfigError(f"unknown format {unknown[0]!r}; choose from {', '.join(get_args(OutputFormat))}")
    listed = [sources] if isinstance(sources, str | Path) else sources
    if not listed:
        raise ConfigError("no images given; name images, folders or patterns after WEIGHTS")
    places = [str(source) for source in listed]
    if _are_videos(places, video, track):
        options = VideoOptions(score, max_detections, track=track, draw=draw, frame_rate=frame_rate)
        return _detect_in_videos(weights, places, Path(out), options, console)
    files = find_images(places)
    detector = weights if isinstance(weights, Detector) else load(weights)
    settings = detector.decode_config(score, max_detections)
    writer = Writer(Path(out), detector.classes, chosen, draw, files)
    make_folder(Path(out))
    failed: list[str] = []
    limited = nonfinite = 0
    with progress_bar(console or plain_console(), "images", len(files)) as bar:
        for result in detect_in_files(detector, files, score, max_detections=max_detections):
            if result.found is None:
                failed.append(str(result.error))
            else:
                writer.add(result)
                limited += len(result.found.limited)
                nonfinite += len(result.found.nonfinite)
            bar.advance(1)
    images = len(files) - len(failed)
    notes = files_left_out(places) + ([limit_note(limited, images, settings)] if limited else [])
    notes += [nonfinite_note(nonfinite, images)] if nonfinite else []
    return DetectionRun(images, writer.counts, writer.finish(), failed, Path(out), notes)


def _are_videos(sources: Sequence[str], video: bool, track: bool) -> bool:
    videos = [source for source in sources if video or is_video(source)]
    if videos and len(videos) < len(sources):
        raise ConfigError(f"{videos[0]} is a video, and other sources are images; use one command for each kind")
    if track and not videos:
        raise ConfigError(
            "--track follows objects through a video; give a video, or add --video for a folder of frames"
        )
    return bool(videos)


def _detect_in_videos(
    weights: str | Path | Detector, sources: Sequence[str], out: Path, options: VideoOptions, console: Console | None
) -> DetectionRun:
    from retinanet.detection.video import detect_videos  # imports PyAV

    detector = weights if isinstance(weights, Detector) else load(weights)
    runs, failed = detect_videos(detector, sources, out, options, console)
    counts: Counter[str] = sum((run.counts for run in runs), Counter())
    return DetectionRun(
        images=sum(run.frames for run in runs),
        counts=counts,
        written=[name for run in runs for name in run.written],
        failed=failed,
        out=out,
        notes=[note for run in runs for note in run.notes],
        videos=tuple(run.summary() for run in runs),
    )
