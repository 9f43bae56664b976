"""``retinanet.detect``: detect objects in image files, draw them and write them to files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from retinanet.data.images import MAX_PIXELS
from retinanet.decode_config import ResolvedDecodeConfig, limit_note, nonfinite_note
from retinanet.detection.detector import Detector
from retinanet.detection.input_images import ImageFile, InputImage
from retinanet.detection.loading import load
from retinanet.detection.path_set import PathSet
from retinanet.detection.pipeline import Pipeline, PipelineOptions, Task
from retinanet.detection.record import Record
from retinanet.detection.result_files import Totals, write_result_files
from retinanet.detection.sources import SourceList
from retinanet.detection.tile_plan import TileOptions, TileSide, Tiling
from retinanet.detection.web_limits import WebLimits
from retinanet.detection.write import OutputFormat, OutputNames, Outputs, Writer, refuse_overwriting
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.files import claimed, make_folder, remove_leftovers
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import Bar, plain_console, progress_bar

# Images that share a batch at most.
_BATCH = 8


@dataclass(frozen=True)
class DetectionRun:
    """The result of :func:`detect`.

    Attributes:
        images: number of images in which objects were detected, also by the earlier runs that this one resumed.
        counts: detections of each class, by name.
        written: descriptions of the files in ``out``.
        failed: number of images that could not be read; ``failed.txt`` in ``out`` lists them.
        failures: error messages for the first of these.
        out: folder of the files.
        notes: sentences about files that were left out, and about images that reached the limit on detections.
        resumed: number of images that earlier runs had recorded.
        speed: images per second, and what the network waited for; empty if no image was new.
    """

    images: int
    counts: Counter[str]
    written: list[str]
    failed: int
    failures: list[str]
    out: Path
    notes: list[str]
    resumed: int
    speed: str


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
    max_pixels: int | None = None,
    resume: bool = False,
    web: WebLimits | None = None,
    console: Console | None = None,
) -> DetectionRun:
    """Detect objects in image files, as the command ``retinanet detect`` does.

    To get the detections themselves, use :func:`retinanet.load`.

    Args:
        weights: a weight file, an exported file, the name of a bundled model, or a detector (to choose its precision
            and device).
        sources: images, folders, glob patterns, zip archives, lists (``@list.txt``) or ``-`` (standard input); see
            :class:`retinanet.detection.sources.SourceList`.
        out: folder for the drawn images and the files.
        score: lowest score reported, 0 ≤ ``score`` < 1.
        formats: one or more file formats of the detections: ``coco``, ``csv``, ``yolo``, ``voc``, ``jsonl``,
            ``geojson``. ``detections.jsonl`` is written in any case.
        draw: draw the boxes on copies of the images.
        max_detections: largest number of detections per image; unset: the number that the weights store.
        tile: divide each image into tiles of this side in pixels, or ``"auto"``, or :class:`TileOptions`. Unset: each
            image is scaled as a whole, unless the model was trained on tiles.
        max_pixels: largest number of pixels of an image file that is divided into tiles. Unset: 178 million. Raise it
            for trusted files.
        resume: go on with the interrupted run in ``out``. Its result files equal those of an uninterrupted run.
        web: limits of downloads. Unset: URLs are refused, so that a program may pass names from its users.
        console: where the progress bar is shown.

    Raises:
        ConfigError: a setting is out of range.
        DataError: there is no image, or a drawn image would overwrite its source.
        CheckpointError: the weights cannot be read, or there is no run with these settings to resume.
        RetinaNetError: a file cannot be written.
    """
    if not 0 <= score < 1:
        raise ConfigError(f"--score is {score}; it must lie between 0 and 1")
    chosen: tuple[Any, ...] = (formats,) if isinstance(formats, str) else tuple(formats)
    if unknown := [name for name in chosen if name not in get_args(OutputFormat)]:
        raise ConfigError(f"unknown format {unknown[0]!r}; choose from {', '.join(get_args(OutputFormat))}")
    if "geojson" in chosen:
        import_module("rasterio")  # reported before the work
    if max_pixels is not None and max_pixels < 1:
        raise ConfigError(f"--max-pixels is {max_pixels}; give at least 1")
    listed = [sources] if isinstance(sources, str | Path) else sources
    if not listed:
        raise ConfigError("no images given; name images, folders or patterns after WEIGHTS")
    images = SourceList([str(source) for source in listed], web, Path(out))
    detector = weights if isinstance(weights, Detector) else None
    total, inside = _counted(images, Path(out), draw)
    detector = detector or load(weights)  # type: ignore[arg-type]  # after the sources, which take no time
    settings = detector.decode_config(score, max_detections)
    divided = detector.tile_options(TileOptions.of(tile))
    tiling = None if divided is None else detector.tiling(divided)
    outputs = Outputs(Path(out), detector.classes, chosen, draw)
    refuse_overwriting(outputs, inside, lambda: list(images))
    make_folder(Path(out))
    options = PipelineOptions(score, _BATCH, max_detections, draw, tiling, max_pixels or MAX_PIXELS)
    with claimed(Path(out)):
        record = _opened_record(outputs, resume, _stored_settings(detector, settings, outputs, tiling))
        pipeline = Pipeline(detector, options)
        try:
            with progress_bar(console or plain_console(), "images", total) as bar:
                resumed, unplaced = _run(pipeline, images, outputs, record, bar)
        finally:
            record.close()
        sums, written = write_result_files(outputs, record)
    speed = str(pipeline.timing) if pipeline.timing.images else ""
    notes = ([tiling.note] if tiling else []) + images.notes + _limit_notes(sums, settings)
    notes += [f"no GeoJSON for {unplaced} images that are not GeoTIFF files"] if unplaced else []
    return DetectionRun(sums.images, sums.counts, written, sums.failed, sums.failures, Path(out), notes, resumed, speed)


def _counted(images: SourceList, out: Path, draw: bool) -> tuple[int | None, list[Path]]:
    """Return the number of images, and the input files inside the folder ``out``, where drawings are written."""
    folder, inside = os.path.join(os.path.realpath(out), ""), list[Path]()
    real: dict[str, bool] = {}

    def visit(image: InputImage) -> None:
        if not draw or not isinstance(image, ImageFile):
            return
        parent = os.path.dirname(image.path)
        if parent not in real:
            real[parent] = os.path.join(os.path.realpath(parent or "."), "").startswith(folder)
        if real[parent] or (os.path.islink(image.path) and os.path.realpath(image.path).startswith(folder)):
            inside.append(image.path)

    return images.count(visit), inside


def _stored_settings(
    detector: Detector, decode: ResolvedDecodeConfig, outputs: Outputs, tiling: Tiling | None
) -> dict[str, Any]:
    """Return the settings that a resumed run must share. The formats that are written at the end may differ."""
    return {
        "weights": detector.fingerprint(),
        "classes": list(outputs.classes),
        "score": decode.score,
        "max-detections": decode.max_detections,
        "draw": outputs.draw,
        "tile": None if tiling is None else [tiling.side, tiling.overlap, *tiling.scales],
        "formats": [name for name in ("yolo", "voc", "geojson") if name in outputs.formats],
    }


def _opened_record(outputs: Outputs, resume: bool, settings: dict[str, Any]) -> Record:
    if not resume:
        return Record.start(outputs.out, outputs.classes, settings)
    for folder, _, _ in os.walk(outputs.out):
        remove_leftovers(Path(folder))
    return Record.resume(outputs.out, outputs.classes, settings)


def _run(
    pipeline: Pipeline, images: Iterable[InputImage], outputs: Outputs, record: Record, bar: Bar
) -> tuple[int, int]:
    """Detect objects in all images that are not in the record yet.

    Returns:
        The number of images in the record, and the number of new images for which no GeoJSON could be written.
    """
    names = OutputNames()
    resumed = 0
    for entry in record.entries(record.done):
        names.take(entry.name)
        resumed += 1
    bar.advance(resumed)
    with _told_how_to_go_on(outputs.out), Writer(outputs, record, names) as writer:
        for result in pipeline.run(_tasks(images, record)):
            writer.add(result)
            bar.update(1, str(pipeline.timing))
        writer.finish()
    return resumed, writer.without_coordinates


def _tasks(images: Iterable[InputImage], record: Record) -> Iterator[Task]:
    """Mark the images that are in the record.

    The record has the order of the images, so the two are read side by side. If the sources have changed since, the
    images that are not in the record are left.
    """
    entries = record.entries(record.done)
    known: PathSet | None = None
    for image in images:
        if known is None and (entry := next(entries, None)):
            if entry.path == image.address:
                yield Task(image, True, entry.size)
                continue
            known = PathSet()
            for each in record.entries(record.done):
                known.add(each.path)
        if known is None or image.address not in known:
            yield Task(image)


@contextmanager
def _told_how_to_go_on(out: Path) -> Iterator[None]:
    """Add to an error, or to Ctrl-C, that the run can be resumed."""
    try:
        yield
    except RetinaNetError as error:
        raise type(error)(f"{error}; then go on with --resume") from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"stopped; the results so far are in {out}") from error


def _limit_notes(sums: Totals, settings: ResolvedDecodeConfig) -> list[str]:
    notes = [limit_note(sums.limited, sums.images, settings)] if sums.limited else []
    return notes + ([nonfinite_note(sums.nonfinite, sums.images)] if sums.nonfinite else [])
