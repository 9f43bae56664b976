"""Evaluate a detector, or a file of detections, on a dataset: metrics and error analysis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats.train_val import read_eval, with_model_classes
from retinanet.data.verify import verify_images
from retinanet.decode_config import DecodeConfig, ResolvedDecodeConfig
from retinanet.detection.tile_plan import TileOptions, TileSide, Tiling
from retinanet.detections import Detections
from retinanet.errors import ConfigError
from retinanet.evaluation.analysis import Analysis, analyze
from retinanet.evaluation.coco_ap import Metrics, coco_metrics
from retinanet.evaluation.detections import DetectionFile, read_detections
from retinanet.evaluation.limits import Limits
from retinanet.evaluation.voc_ap import voc_metrics
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import progress_bar
from retinanet.read_options import AnnotationsOnly, ReadOptions

if TYPE_CHECKING:
    from retinanet.detection.detector import Detector
    from retinanet.machine import Precision

# A weights file, the name of a bundled model, or a file of detections from any program.
Source = str | Path | DetectionFile

_DEFAULT_OPTIONS = ReadOptions()

# A function that is called with the dataset and notes for the user as soon as both are known.
Opened = Callable[[Dataset, Sequence[str]], object]


class Predictor(Protocol):
    """Runs a detector over a dataset; see :func:`retinanet.evaluation.predict.predict`."""

    def __call__(
        self,
        detector: Detector,
        dataset: Dataset,
        progress: Callable[[int], object],
        *,
        max_detections: int | None,
        tiling: Tiling | None,
    ) -> Detections:
        """Detect objects in every image."""


# Makes a predictor for weights.
MakePredictor = Callable[[str | Path], Predictor]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of evaluating a detector on a dataset.

    Attributes:
        name: the weights or the file of detections.
        dataset: the images and objects, with the classes of the detector.
        predictions: the detections.
        metrics: COCO's and Pascal VOC's metrics.
        analysis: error analysis, thresholds, calibration and example images.
        notes: notes on the data and the detections for the user.
        max_detections: largest number of detections per image of a file; ``None`` without a limit.
        detector: the detector's settings of post-processing; ``None`` for a file of detections.
        config: the settings of the detector's training; ``None`` for a file of detections.
        tiled: whether the images were divided into tiles.
    """

    name: str
    dataset: Dataset
    predictions: Detections
    metrics: Metrics
    analysis: Analysis
    notes: tuple[str, ...] = ()
    max_detections: int | None = None
    detector: ResolvedDecodeConfig | None = None
    config: Config | None = None
    tiled: bool = False

    @property
    def limits(self) -> Limits:
        """How many detections count, and how many images reached the limit on detections."""
        return Limits.of(self.dataset, self.predictions, self.max_detections, self.detector, self.tiled)

    def to_dict(self) -> dict[str, Any]:
        """Convert to the content of ``metrics.json``."""
        return {**self.metrics.to_dict(), "limits": self.limits.to_dict(), "diagnosis": self.analysis.to_dict()}


@explain_missing_packages("retinanet.evaluate")
def evaluate(
    weights: Source,
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
) -> Evaluation:
    """Evaluate a detector on a dataset.

    COCO's protocol counts 100 detections of each image and class. If an image has more than 100 objects, all detections
    count, and the metrics of COCO's protocol are named ``AP@100``, ``AP50@100`` and ``AR100``.

    Args:
        weights: path of a weights file or of an exported file, name of a bundled model, or a :class:`DetectionFile`.
        data: folder or annotation file of a COCO, Pascal VOC, YOLO or CSV dataset.
        split: the split of ``data`` to evaluate on.
        precision: arithmetic of the network.
        device: ``cpu``, ``cuda`` …; ``auto`` takes a GPU if there is one.
        console: where progress is shown; unset: on the standard output.
        opened: called with the dataset and notes for the user before the detector runs.
        options: how the dataset is read. Images that cannot be read are also left out if the training left them out.
        max_detections: largest number of detections per image. Unset: the number that the weights store, or all
            detections of a file.
        tile: divide each image into tiles of this side in pixels, or ``"auto"``, or :class:`TileOptions`. Unset: each
            image is scaled as a whole, or ``"auto"`` if the detector was trained on tiles.
        make_predictor: makes what runs the detector of some weights, such as the workers of a cluster
            (:class:`retinanet.scale.evaluation.ClusterPredictor`). Unset: this process.

    Raises:
        RetinaNetError: the weights, the dataset or the detections cannot be read, or the device cannot be used.
    """
    DecodeConfig().at_most(max_detections)  # refuse an invalid number before anything is read
    options_of_tiles = TileOptions.of(tile)
    settings: ResolvedDecodeConfig | None = None
    config: Config | None = None
    tiling: Tiling | None = None
    if isinstance(weights, DetectionFile):
        if options_of_tiles is not None:
            raise ConfigError(f"{weights}: --tile is for a detector; a file of detections has no tiles, leave it out")
        dataset, notes = read_eval(data, split, options=AnnotationsOnly.of(options))
        predictions, remarks = read_detections(weights.path, dataset)
        predictions = predictions.best(max_detections)
        notes = [*notes, *remarks]
        opened(dataset, notes)
    else:
        from retinanet.detection.loading import load

        detector = load(weights, precision, device)
        config = detector.info.config
        trained = config.data
        options = replace(options, skip_broken=options.skip_broken or trained.skip_broken)
        dataset, notes = read_eval(data, split, trained.val_fraction, options=options)
        dataset = with_model_classes(dataset, detector.classes)
        if options.skip_broken:
            with progress_bar(console or Console(), "checking images", len(dataset)) as bar:
                dataset, left_out = verify_images(dataset, True, bar.advance)
            notes = [*notes, *left_out]
        tiling = detector.chosen_tiling(options_of_tiles)
        notes = [*notes, *(tiling.notes(_largest(dataset)) if tiling else [])]
        opened(dataset, notes)
        settings = detector.limits(max_detections=max_detections, tiled=tiling is not None)
        predictor = make_predictor(weights) if make_predictor else None
        predictions = detections_on(dataset, detector, "images", console, max_detections, tiling, predictor)
    metrics = replace(coco_metrics(dataset, predictions), voc=voc_metrics(dataset, predictions))
    analysis = analyze(dataset, predictions, lowest=settings.score if settings else 0.0)
    name = str(weights)
    tiled = tiling is not None
    return Evaluation(
        name, dataset, predictions, metrics, analysis, tuple(notes), max_detections, settings, config, tiled
    )


def _largest(dataset: Dataset) -> tuple[int, int]:
    """``(height, width)`` of the image with the longest side."""
    width, height = dataset.sizes[dataset.sizes.max(axis=1).argmax()].tolist()
    return height, width


def detections_on(
    dataset: Dataset,
    detector: Detector,
    what: str,
    console: Console | None,
    max_detections: int | None = None,
    tiling: Tiling | None = None,
    predictor: Predictor | None = None,
) -> Detections:
    """Run a detector on a dataset with a progress bar named ``what``; labels are those of the detector."""
    from retinanet.evaluation.predict import predict

    run = predictor or predict
    with progress_bar(console or Console(), what, len(dataset)) as bar:
        return run(detector, dataset, bar.advance, max_detections=max_detections, tiling=tiling)
