"""``retinanet.detect``: detect objects in images and videos, draw them and write them to files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from retinanet.decode_config import LowestScore, require_lowest_score
from retinanet.detection.detector import Detector
from retinanet.detection.image_run import ImageOptions, detect_in_images
from retinanet.detection.loading import load
from retinanet.detection.pipeline import MakeRunner
from retinanet.detection.run_result import DetectionRun
from retinanet.detection.sources import SourceList
from retinanet.detection.tile_plan import TileOptions, TileSide
from retinanet.detection.video_options import VideoOptions
from retinanet.detection.video_sources import is_video, rate_of_sequences, video_source
from retinanet.detection.web_limits import WebLimits
from retinanet.detection.write import OutputFormat
from retinanet.errors import ConfigError
from retinanet.interrupts import interrupted_once
from retinanet.optional_packages import explain_missing_packages


@explain_missing_packages("retinanet.detect")
def detect(
    weights: str | Path | Detector | Callable[[], Detector],
    sources: str | Path | Sequence[str | Path],
    out: str | Path = "detections",
    *,
    score: LowestScore = 0.3,
    formats: OutputFormat | Sequence[OutputFormat] | None = None,
    draw: bool = True,
    max_detections: int | None = None,
    tile: TileOptions | TileSide | None = None,
    max_pixels: int | None = None,
    resume: bool = False,
    web: WebLimits | None = None,
    video: bool = False,
    track: bool = False,
    frame_rate: float | None = None,
    console: Console | None = None,
    make_runner: MakeRunner | None = None,
) -> DetectionRun:
    """Detect objects in image files or videos, as the command ``retinanet detect`` does.

    Ctrl-C and SIGTERM end it with the files complete so far, and raise ``KeyboardInterrupt``.

    To get the detections themselves, use :func:`retinanet.load`.

    Args:
        weights: a weight file, an exported file, the name of a bundled model, or a detector (to choose its precision
            and device). Or a function that loads a detector: it is called after the sources are checked.
        sources: images, folders, glob patterns, zip archives, lists (``@list.txt``) or ``-`` (standard input), see
            :class:`retinanet.detection.sources.SourceList`; or videos, streams (``rtsp://…``), webcams (``webcam:0``)
            and patterns of frames (``frame_%06d.png``).
        out: folder for the drawn images and the files.
        score: lowest score reported, 0 ≤ ``score`` < 1. ``"auto"``: the threshold with the best F1 on val, which a
            training stores in the weights.
        formats: one or more file formats of the detections in images: ``coco``, ``csv``, ``yolo``, ``voc``, ``jsonl``,
            ``geojson``, ``parquet``. Unset: ``coco`` and ``csv``. ``detections.jsonl`` is written in any case. For
            videos, only JSON Lines are written (``jsonl``).
        draw: draw the boxes on copies of the images.
        max_detections: largest number of detections per image; unset: the number that the weights store.
        tile: divide each image or frame into tiles of this side in pixels, or ``"auto"``, or :class:`TileOptions`;
            ``"none"``: each is scaled as a whole. Unset: ``"none"``, or ``"auto"`` if the model was trained on tiles.
        max_pixels: largest number of pixels of an image that is divided into tiles. Unset: 178 million. Raise it for
            trusted images. Only with tiles.
        resume: go on with the interrupted run in ``out``. Its result files equal those of an uninterrupted run.
        web: limits of downloads. Unset: URLs are refused, so that a program may pass names from its users.
        video: treat all sources as videos: folders as sequences of frames, URLs as streams.
        track: give the objects of a video ids that stay the same from frame to frame.
        frame_rate: frames per second of a sequence of images. Unset: 25.
        console: where the progress bar is shown.
        make_runner: for images, makes what runs the detector, such as the workers of a cluster
            (:class:`retinanet.scale.detection.ClusterRunner`). Unset: this process.

    Raises:
        ConfigError: a setting is out of range, or images and videos are mixed.
        DataError: there is no image, or an output file would replace an input image or another
            file that no run has written.
        CheckpointError: the weights cannot be read, or there is no run with these settings to resume.
        RetinaNetError: a file cannot be written.
    """
    require_lowest_score(score)
    chosen: tuple[Any, ...] = (formats,) if isinstance(formats, str) else tuple(formats or ("coco", "csv"))
    if unknown := [name for name in chosen if name not in get_args(OutputFormat)]:
        raise ConfigError(f"unknown format {unknown[0]!r}; choose from {', '.join(get_args(OutputFormat))}")
    for name, package in (("geojson", "rasterio"), ("parquet", "pyarrow")):
        if name in chosen:
            import_module(package)  # a missing package is reported before the work
    if max_pixels is not None and max_pixels < 1:
        raise ConfigError(f"--max-pixels is {max_pixels}; give at least 1")
    listed = [sources] if isinstance(sources, str | Path) else sources
    if not listed:
        raise ConfigError("no images given; name images, folders or patterns after WEIGHTS")
    places = [str(source) for source in listed]
    divided = TileOptions.of(tile)

    def detector() -> Detector:
        if isinstance(weights, str | Path):
            return load(weights)
        return weights if isinstance(weights, Detector) else weights()

    if make_runner is not None and "-" in places:
        raise ConfigError("--ray: workers cannot read the standard input; write the paths to a file and give @FILE")
    if _are_videos(places, video, track):
        if resume or max_pixels is not None or make_runner is not None:
            raise ConfigError("--resume, --max-pixels and --ray are for images; leave them out for videos")
        if web not in (None, WebLimits()):
            raise ConfigError("--web.megabytes and --web.seconds are for images; leave them out for videos")
        if formats and set(chosen) != {"jsonl"}:
            raise ConfigError("--format is for images; the detections in videos are written as JSON Lines (jsonl)")
        # All sources are checked before the detector is loaded, so that a mistake in a path takes no time to find.
        rate = rate_of_sequences([video_source(place) for place in places], frame_rate)
        with interrupted_once():
            loaded = detector()
            lowest = loaded.lowest_score(score)
            tiling = loaded.chosen_tiling(divided)
            video_options = VideoOptions(lowest, max_detections, tiling, track=track, draw=draw, frame_rate=rate)
            return _detect_in_videos(loaded, places, Path(out), video_options, console)
    if frame_rate is not None:
        raise ConfigError("--frame-rate is for sequences of frames; add --video, or leave it out for images")
    options = ImageOptions(score, chosen, draw, max_detections, divided, max_pixels, resume)
    with interrupted_once():
        return detect_in_images(detector, SourceList(places, web, Path(out)), Path(out), options, console, make_runner)


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
    detector: Detector, sources: Sequence[str], out: Path, options: VideoOptions, console: Console | None
) -> DetectionRun:
    from retinanet.detection.video import detect_videos  # imports PyAV

    runs, failed = detect_videos(detector, sources, out, options, console)
    return DetectionRun(
        images=sum(run.frames for run in runs),
        counts=sum((run.counts for run in runs), Counter()),
        written=[name for run in runs for name in run.written],
        failed=len(failed),
        failures=failed,
        out=out,
        notes=list(dict.fromkeys(note for run in runs for note in run.notes)),
        score=options.score,
        videos=tuple(run.summary() for run in runs),
    )
