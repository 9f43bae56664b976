"""Evaluate the weights on val during a training. Each rank evaluates a share of the images; each image counts once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.loader import Timed, worker_count
from retinanet.detection.detector import Detector
from retinanet.detection.example_images import prediction_images, save_images
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.tile_plan import Tiling
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.curves import best_threshold
from retinanet.evaluation.predict import predict
from retinanet.machine import cores
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.object_sizes import ObjectSizes
from retinanet.training.checkpoint import Progress
from retinanet.training.distributed import Processes
from retinanet.training.recorder import Recorder
from retinanet.training.resume import Start
from retinanet.training.tools import Image
from retinanet.training.tracking import Trackers
from retinanet.training.watch import why_nothing_is_learnt
from retinanet.zoo.weights import save_weights

# If a larger fraction of an epoch than this is spent waiting for the loader, a line about it is printed.
_MUCH_WAITING = 0.2


class Validation:
    """The end of an epoch: evaluate, keep the best weights, draw, decide whether to stop."""

    def __init__(self, run: Start, recorder: Recorder, trackers: Trackers, batches: Timed) -> None:
        self._run, self._recorder, self._trackers, self._batches = run, recorder, trackers, batches
        self._began = self._epoch_began = time.monotonic()
        self._warned = False

    def after_epoch(self, progress: Progress) -> Progress:
        """Evaluate, save and draw after an epoch; return the progress with best epoch and reason to stop."""
        job, settings = self._run.job, self._run.job.config.train
        epoch = round(progress.epoch)
        if epoch % settings.eval_every == 0 or epoch == settings.epochs:
            progress = self._evaluate(progress, epoch)
        if job.processes.is_main and settings.images_every and epoch % settings.images_every == 0:
            folder = job.out / "images" / f"epoch_{epoch:04d}"
            drawn = draw_predictions(self._run.state.best_model, job.config, job.val_set, folder, job.objects)
            self._trackers.images(progress.step, drawn)
        return progress

    def _evaluate(self, progress: Progress, epoch: int) -> Progress:
        job, model, log = self._run.job, self._run.state.best_model, self._run.log
        waited = self._waited()
        metrics, broken = validate(model, job.config, job.val_set, job.processes, job.objects)
        seconds = round(time.monotonic() - self._began, 1)
        line = {"step": progress.step, "epoch": epoch, "seconds": seconds, "data_wait": round(waited, 3)}
        self._recorder.evaluation(line, metrics)
        epochs = job.config.train.epochs
        more_help = worker_count(job.config.data) < cores()
        line_of_epoch = epoch_line(epoch, epochs, log.newest("loss")["loss"], metrics, waited, more_help)
        job.console.print(line_of_epoch, highlight=False)
        for message in broken:
            job.console.print(f"warning: {message}; left out of this evaluation", highlight=False)
        self._warn_if_nothing_is_learnt(progress.step, epoch)
        # An AP below 0 means that val has no boxes. In that case the newest weights are kept.
        if metrics["AP"] > progress.best_ap or metrics["AP"] < 0:
            progress = replace(progress, best_ap=metrics["AP"], best_epoch=epoch)
            if job.processes.is_main:
                save_weights(job.best, dict(model.state_dict()), job.describe(model, progress, metrics))
        if job.processes.is_main:
            log.draw(job.out / "curves.png")
        self._batches.seconds, self._epoch_began = 0.0, time.monotonic()
        return replace(progress, finished=reason_to_stop(progress, epoch, job.config))

    def _waited(self) -> float:
        """The share of time spent waiting for images since the last evaluation."""
        return self._batches.seconds / (time.monotonic() - self._epoch_began)

    def _warn_if_nothing_is_learnt(self, step: int, epoch: int) -> None:
        reason = why_nothing_is_learnt(self._run.log.lines, epoch, self._run.job.config)
        if reason and not self._warned and self._run.job.processes.is_main:
            self._warned = True
            self._recorder.warn(reason, step, epoch)


def reason_to_stop(progress: Progress, epoch: int, config: Config) -> str | None:
    """Return why the training ends after ``epoch``; None if it goes on."""
    settings = config.train
    if epoch == settings.epochs:
        return f"all {settings.epochs} epochs are done"
    without = epoch - progress.best_epoch
    if settings.patience is not None and without >= settings.patience:
        return f"no better AP in the {without} epochs since epoch {progress.best_epoch}"
    return None


def epoch_line(
    epoch: int, epochs: int, loss: float, metrics: dict[str, Any], waited: float, more_workers_help: bool = True
) -> str:
    """Return the line that is printed after an evaluation; ``waited`` is the share of time spent waiting for images."""
    names = ("AP", "AP@100", "AP50", "AP75")
    precision = "  ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)
    line = f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {loss:.3f}  {precision}"
    if waited > _MUCH_WAITING:
        remedy = "try more --data.workers" if more_workers_help else "smaller or local files load faster"
        line += f"  ({waited:.0%} of the time waiting for images; {remedy})"
    return line


def validate(
    model: RetinaNet, config: Config, val_set: Dataset, processes: Processes, objects: ObjectSizes | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the COCO metrics of ``model`` on ``val_set``, and messages of images that could not be read.

    ``threshold`` among the metrics is the score threshold with the best mean F1.

    Unreadable images are left out. Every rank gets the same result. ``objects`` are the sizes of the training objects,
    which a detector that is trained on tiles needs.

    Raises:
        DataError: no image can be read.
    """
    processes.same_buffers(model)
    detector = _detector(model, config, val_set, objects)
    own = np.asarray(processes.share(range(len(val_set))))
    unreadable: dict[int, str] = {}
    tiling = _tiling(detector, val_set)
    found = Detections.empty()
    if len(own):
        found = predict(detector, val_set.subset(own), unreadable=unreadable, tiling=tiling)
    rows = np.column_stack([own[found.images], found.boxes, found.scores, found.labels]).astype(np.float64)
    rows = processes.gather_rows(rows)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    failed = dict(pair for part in processes.gather([(int(own[i]), m) for i, m in unreadable.items()]) for pair in part)
    kept = np.array([i for i in val_set if i not in failed], dtype=np.int64)
    if not len(kept):
        raise DataError(f"{val_set.name}: no image can be read any more; first error: {next(iter(failed.values()))}")
    predictions = Detections(
        np.searchsorted(kept, rows[:, 0].astype(np.int64)),
        rows[:, 1:5].astype(np.float32),
        rows[:, 5].astype(np.float32),
        rows[:, 6].astype(np.int64),
    )
    read = val_set if len(kept) == len(val_set) else val_set.subset(kept)
    limited = sum(processes.gather(len(found.limited)))
    metrics = coco_metrics(read, predictions).to_dict() | ({"images_at_limit": limited} if limited else {})
    if (threshold := best_threshold(read, predictions, config.decode.score)) is not None:
        metrics["threshold"] = min(max(threshold, 0.01), 0.99)  # as detection accepts and tracking needs it
    return metrics, list(failed.values())


def draw_predictions(
    model: RetinaNet, config: Config, val_set: Dataset, folder: Path, objects: ObjectSizes | None = None
) -> dict[str, Image]:
    """Draw the detections of ``model`` on a fixed choice of val images; write and return the drawings."""
    drawings = prediction_images(_detector(model, config, val_set, objects), val_set)
    save_images(folder, drawings)
    return drawings


def _tiling(detector: Detector, val_set: Dataset) -> Tiling | None:
    """Return the tiles of a detector that is trained on tiles; ``None`` if every image fits into a tile.

    Images that fit into a tile have the same scale with and without tiles, and share batches only without.
    """
    tile = detector.info.config.data.tile
    return None if tile is None or val_set.sizes.max() <= tile else detector.chosen_tiling(None)


def _detector(model: RetinaNet, config: Config, val_set: Dataset, objects: ObjectSizes | None) -> PyTorchDetector:
    info = ModelInfo.of(model, val_set.classes, config, objects=objects)
    return PyTorchDetector(model, info, config.train.precision, str(next(model.parameters()).device))
