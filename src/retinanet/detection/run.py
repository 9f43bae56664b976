"""``retinanet.detect``: detect objects in image files, draw them and write them to files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

from retinanet.decode_config import limit_note, nonfinite_note
from retinanet.detection.detector import Detector
from retinanet.detection.loading import load
from retinanet.detection.sources import detect_in_files, files_left_out, find_images
from retinanet.detection.tile_plan import TileOptions, TileSide
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
    """

    images: int
    counts: Counter[str]
    written: list[str]
    failed: list[str]
    out: Path
    notes: list[str]


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
    tile: TileOptions | TileSide | None = None,
    console: Console | None = None,
) -> DetectionRun:
    """Detect objects in image files, as the command ``retinanet detect`` does.

    To get the detections themselves, use :func:`retinanet.load`.

    Args:
        weights: a weight file, an exported file, the name of a bundled model, or a detector (to choose its precision
            and device).
        sources: images, folders or glob patterns.
        out: folder for the drawn images and the files.
        score: lowest score reported, 0 ≤ ``score`` < 1.
        formats: one or more file formats of the detections: ``coco``, ``csv``, ``yolo``, ``voc``.
        draw: draw the boxes on copies of the images.
        max_detections: largest number of detections per image; unset: the number that the weights store.
        tile: divide each image into tiles of this side in pixels, or ``"auto"``, or :class:`TileOptions`; unset: each
            image is scaled as a whole.
        console: where the progress bar is shown.

    Raises:
        ConfigError: a setting is out of range.
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
    files = find_images(places)
    detector = weights if isinstance(weights, Detector) else load(weights)
    settings = detector.limits(score, max_detections, tiled=tile is not None)
    options = TileOptions.of(tile)
    tiling = detector.tiling(options) if options else None
    writer = Writer(Path(out), detector.classes, chosen, draw, files)
    make_folder(Path(out))
    failed: list[str] = []
    limited = nonfinite = 0
    with progress_bar(console or plain_console(), "images", len(files)) as bar:
        for result in detect_in_files(detector, files, score, max_detections=max_detections, tiling=tiling):
            if result.found is None:
                failed.append(str(result.error))
            else:
                writer.add(result)
                limited += len(result.found.limited)
                nonfinite += len(result.found.nonfinite)
            bar.advance(1)
    images = len(files) - len(failed)
    per: Literal["image", "tile"] = "tile" if tiling and max_detections is None else "image"
    notes = [tiling.note] if tiling else []
    notes += files_left_out(places) + ([limit_note(limited, images, settings, per)] if limited else [])
    notes += [nonfinite_note(nonfinite, images)] if nonfinite else []
    return DetectionRun(images, writer.counts, writer.finish(), failed, Path(out), notes)
