"""Compare two detectors, or files of detections, on the same images of a dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.formats.train_val import read_eval
from retinanet.data.verify import verify_images
from retinanet.decode_config import DecodeConfig, ResolvedDecodeConfig
from retinanet.detection.tile_plan import TileOptions, TileSide, Tiling
from retinanet.errors import ConfigError
from retinanet.evaluation.compare import Comparison, Contestant, compare_predictions, shared_classes
from retinanet.evaluation.detections import DetectionFile, read_detections
from retinanet.evaluation.model_evaluation import MakePredictor, Opened, Source, detections_on
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import progress_bar
from retinanet.read_options import AnnotationsOnly, ReadOptions

_DEFAULT_OPTIONS = ReadOptions()

if TYPE_CHECKING:
    from retinanet.detection.detector import Detector
    from retinanet.machine import Precision


@explain_missing_packages("retinanet.compare")
def compare(
    a: Source,
    b: Source,
    data: str | Path,
    split: str = "val",
    precision: Precision = "auto",
    device: str = "auto",
    console: Console | None = None,
    opened: Opened = lambda dataset, notes: None,
    options: ReadOptions = _DEFAULT_OPTIONS,
    max_detections: int | None = None,
    tile: TileOptions | TileSide | None = None,
    make_predictor: MakePredictor | None = None,
) -> Comparison:
    """Compare two detectors on a dataset, and test whether the choice of images could explain the difference.

    Args:
        a: path of a weights file or of an exported file, name of a bundled model, or a :class:`DetectionFile`.
        b: the other detector.
        data: folder or annotation file of a COCO, Pascal VOC, YOLO or CSV dataset.
        split: the split of ``data`` to compare on.
        precision: arithmetic of the networks.
        device: ``cpu``, ``cuda`` …; ``auto`` takes a GPU if there is one.
        console: where progress is shown; unset: on the standard output.
        opened: called with the dataset and notes for the user before the detectors run.
        options: how the dataset is read.
        max_detections: largest number of detections per image. Unset: the higher one of the numbers that the weights
            store (with ``tile``: no limit per image), or all detections of a file.
        tile: divide each image into tiles for the detectors, see :func:`retinanet.evaluate`.
        make_predictor: makes what runs a detector, see :func:`retinanet.evaluate`.

    Raises:
        RetinaNetError: the weights, the dataset or the detections cannot be read, the detectors share no class of the
            dataset, or the detectors set aside different images of the dataset for validation.
    """
    DecodeConfig().at_most(max_detections)  # refuse an invalid number before anything is read
    sources = (a, b)
    detectors = [_load(source, precision, device) for source in sources]
    tiles = TileOptions.of(tile)
    tilings = [_tiling(detector, tiles) for detector in detectors]
    dataset, notes = _read_eval(data, split, detectors, options)
    classes = [dataset.classes if detector is None else detector.classes for detector in detectors]
    shared = shared_classes(dataset, (str(a), str(b)), (classes[0], classes[1]))
    # Read files of detections before the detectors run, so that an error in a file is reported at once.
    files = {
        i: read_detections(each.path, dataset) for i, each in enumerate(sources) if isinstance(each, DetectionFile)
    }
    notes = [*notes, *dict.fromkeys(tiling.note for tiling in tilings if tiling)]
    opened(dataset, [*notes, *(remark for _, remarks in files.values() for remark in remarks)])
    found = {i: predictions.best(max_detections) for i, (predictions, _) in files.items()}
    stored = [detector.decode_config() for detector in detectors if detector is not None]
    limit = max_detections or (None if tiles else max((each.max_detections for each in stored), default=None))
    settings: list[ResolvedDecodeConfig | None] = [None, None]
    for i, (source, detector) in enumerate(zip(sources, detectors, strict=True)):
        if detector is not None and not isinstance(source, DetectionFile):
            settings[i] = detector.limits(max_detections=limit, tiled=tiles is not None)
            predictor = make_predictor(source) if make_predictor else None
            found[i] = detections_on(dataset, detector, f"images, {source}", console, limit, tilings[i], predictor)
    first, second = (Contestant(str(sources[i]), found[i], classes[i], max_detections, settings[i]) for i in (0, 1))
    counts = dataset.class_counts()
    steps = 2 * sum(counts[name] > 0 for name in shared)
    with progress_bar(console or Console(), "bootstrap, classes", steps) as bar:
        return compare_predictions(dataset, first, second, progress=bar.advance)


def _load(source: Source, precision: Precision, device: str) -> Detector | None:
    """Load weights; ``None`` for a file of detections."""
    if isinstance(source, DetectionFile):
        return None
    from retinanet.detection.loading import load

    return load(source, precision, device)


def _tiling(detector: Detector | None, given: TileOptions | None) -> Tiling | None:
    return None if detector is None else detector.chosen_tiling(given)


def _read_eval(
    data: str | Path, split: str, detectors: list[Detector | None], options: ReadOptions
) -> tuple[Dataset, list[str]]:
    """Read the dataset. If it has no val split, read the images of train that both models set aside for validation."""
    known = {detector.info.config.data.val_fraction for detector in detectors if detector is not None}
    fractions = sorted(known or {DataConfig().val_fraction})
    trained = [detector.info.config.data for detector in detectors if detector is not None]
    options = replace(options, skip_broken=options.skip_broken or any(each.skip_broken for each in trained))
    if not trained:
        options = AnnotationsOnly.of(options)
    dataset, notes = read_eval(data, split, fractions[0], options=options)
    if notes and len(fractions) > 1:  # the notes report that images of train were set aside
        raise ConfigError(
            f"{data}: there is no val split, and the two models set different fractions of train aside for validation "
            f"({fractions[0]:g} and {fractions[1]:g}); name a split with --split"
        )
    if options.skip_broken and options.needs_images:
        dataset, left_out = verify_images(dataset, True)
        notes = [*notes, *left_out]
    return dataset, notes
