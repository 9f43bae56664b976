"""Detect objects in image files: draw them, record them, and go on with interrupted runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from retinanet.data.open_images import MAX_PIXELS
from retinanet.decode_config import LowestScore, ResolvedDecodeConfig, limit_note, nonfinite_note
from retinanet.detection.batching import Task
from retinanet.detection.detector import Detector
from retinanet.detection.input_images import ImageFile, InputImage
from retinanet.detection.path_set import PathSet
from retinanet.detection.pipeline import MakeRunner, Pipeline, PipelineOptions, Runner
from retinanet.detection.record import Entries, Record
from retinanet.detection.result_files import Totals, write_result_files
from retinanet.detection.run_result import DetectionRun
from retinanet.detection.sources import SourceList
from retinanet.detection.tile_plan import TileOptions, Tiling
from retinanet.detection.write import OutputFormat, OutputNames, Outputs, OverwriteError, Writer, refuse_overwriting
from retinanet.detection.written_files import refuse_replacing_files, remember_files
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.files import claimed, make_folder, remove_leftovers
from retinanet.progress import Bar, plain_console, progress_bar

# Images that share a batch at most.
_BATCH = 8


@dataclass(frozen=True)
class ImageOptions:
    """Settings of :func:`detect_in_images`; see :func:`retinanet.detection.run.detect`."""

    score: LowestScore
    formats: tuple[OutputFormat, ...]
    draw: bool
    max_detections: int | None
    tile: TileOptions | None
    max_pixels: int | None
    resume: bool


def detect_in_images(
    load_detector: Callable[[], Detector],
    images: SourceList,
    out: Path,
    options: ImageOptions,
    console: Console | None = None,
    make_runner: MakeRunner | None = None,
) -> DetectionRun:
    """Detect objects in images, and write the drawings and the result files.

    ``load_detector`` is called after the images are listed, because a mistake in a path takes no time to find.
    ``make_runner`` makes what runs the detector over the images; unset: a :class:`Pipeline` in this process.
    """
    total, inside = _counted(images, out, options.draw)
    detector = load_detector()
    score = detector.lowest_score(options.score)
    tiling = detector.chosen_tiling(options.tile)
    if tiling is None and options.max_pixels is not None:
        raise ConfigError("--max-pixels is a limit of images that are divided into tiles; add --tile, or leave it out")
    settings = detector.limits(score, options.max_detections, tiled=tiling is not None)
    outputs = Outputs(out, detector.classes, options.formats, options.draw)
    refuse_replacing_files(outputs)
    refuse_overwriting(outputs, inside, images.without_stdin)
    make_folder(out)
    pixels = options.max_pixels or MAX_PIXELS
    pipeline = (make_runner or Pipeline)(
        detector, PipelineOptions(score, _BATCH, options.max_detections, options.draw, tiling, pixels)
    )
    with claimed(out):
        record = _opened_record(outputs, options.resume, _stored_settings(detector, settings, outputs, tiling))
        try:
            remember_files(outputs)
            with progress_bar(console or plain_console(), "images", total) as bar:
                resumed, unplaced = _run(pipeline, images, outputs, record, bar, images_known=total is not None)
        finally:
            record.close()
        sums, written = write_result_files(outputs, record)
    per: Literal["image", "tile"] = "tile" if tiling and options.max_detections is None else "image"
    tiles = [] if tiling is None else tiling.notes(sums.largest) if sums.images else [tiling.note]
    notes = tiles + images.notes + _limit_notes(sums, settings, per)
    notes += [f"no GeoJSON for {unplaced} images that are not GeoTIFF files"] if unplaced else []
    speed = str(pipeline.timing) if pipeline.timing.images else ""
    return DetectionRun(
        sums.images, sums.counts, written, sums.failed, sums.failures, out, notes, score, resumed, speed
    )


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
    pipeline: Runner, images: SourceList, outputs: Outputs, record: Record, bar: Bar, images_known: bool
) -> tuple[int, int]:
    """Detect objects in all images that are not in the record yet.

    ``images_known`` is false if images come from the standard input, so that :func:`refuse_overwriting` has not seen
    them.

    Returns:
        The number of images in the record, and the number of new images for which no GeoJSON could be written.
    """
    names = OutputNames()
    resumed = 0
    for entry in record.earlier():
        names.take(entry.name)
        resumed += 1
    bar.advance(resumed)
    with _told_how_to_go_on(outputs.out), Writer(outputs, record, names, check_drawings=not images_known) as writer:
        for result in pipeline.run(Tasks(images, record.earlier())):
            writer.add(result)
            bar.update(1, str(pipeline.timing))
        writer.finish()
    return resumed, writer.without_coordinates


@dataclass(frozen=True)
class Tasks:
    """The images of a run; those that earlier runs recorded are marked. Other processes can be sent it.

    The record has the order of the images, so the two are read side by side. If the sources have changed since, the
    images that are not in the record are left.

    Attributes:
        images: all images.
        recorded: the entries that earlier runs wrote.
    """

    images: SourceList
    recorded: Entries

    def __iter__(self) -> Iterator[Task]:
        """List the images."""
        entries = iter(self.recorded)
        known: PathSet | None = None
        for image in self.images:
            if known is None and (entry := next(entries, None)):
                if entry.path == image.address:
                    yield Task(image, True, entry.size)
                    continue
                known = PathSet()
                for each in self.recorded:
                    known.add(each.path)
            if known is None or image.address not in known:
                yield Task(image)


@contextmanager
def _told_how_to_go_on(out: Path) -> Iterator[None]:
    """Add to an error, or to Ctrl-C, that the run can be resumed."""
    try:
        yield
    except OverwriteError:
        raise
    except RetinaNetError as error:
        raise type(error)(f"{error}; then go on with --resume") from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"stopped; the results so far are in {out}") from error


def _limit_notes(sums: Totals, settings: ResolvedDecodeConfig, per: Literal["image", "tile"]) -> list[str]:
    notes = [limit_note(sums.limited, sums.images, settings, per)] if sums.limited else []
    return notes + ([nonfinite_note(sums.nonfinite, sums.images)] if sums.nonfinite else [])
