"""The start of a training: settings, state and position, new or from the checkpoint of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.sampling import TrainingOrder
from retinanet.errors import CheckpointError, DataError
from retinanet.files import remove_leftovers, write_text
from retinanet.recipes import as_yaml, resolve
from retinanet.training.checkpoint import (
    Checkpoint,
    Progress,
    check_same_data,
    check_same_settings,
    describe_data,
    restore_training,
)
from retinanet.training.decode_limits import with_limits
from retinanet.training.distributed import require_agreement
from retinanet.training.find_lr import find_learning_rate
from retinanet.training.fine_tuning import start_lines, starting_config
from retinanet.training.job import Job
from retinanet.training.log import Log
from retinanet.training.state import TrainingState


@dataclass(frozen=True)
class Start:
    """Everything the training loop needs.

    Attributes:
        job: settings (after ``train.find_lr``, with the learning rate that it found), data and folder.
        state: weights, EMA, optimizer and normalizer.
        order: the images of the remaining steps.
        log: ``metrics.jsonl``, without lines after the checkpoint.
        progress: progress of the training.
        metrics: metrics of the last evaluation; empty before the first evaluation.
    """

    job: Job
    state: TrainingState
    order: TrainingOrder
    log: Log
    progress: Progress
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def total_images(self) -> int:
        """Number of images that the whole training shows."""
        return self.order.images_per_epoch * self.job.config.train.epochs


def open_run(
    out: Path, resume: bool, recipe: str | Config | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[Config, Checkpoint | None]:
    """Return the settings of the run in ``out``, and its checkpoint if it is resumed.

    Args:
        out: the run's folder.
        resume: go on from the checkpoint there, if there is one.
        recipe: see :func:`retinanet.recipes.resolve`.
        settings: see :func:`retinanet.recipes.resolve`.

    Raises:
        CheckpointError: ``out`` holds a run and ``resume`` is off, or a run with other settings.
        ConfigError: the recipe or a setting is invalid.
    """
    _refuse_other_run(out, resume)
    last = out / "last.safetensors"
    if not last.exists():
        return _starting_settings(recipe, settings or {}), None
    checkpoint = Checkpoint.read(last)
    config = resolve(recipe, settings, checkpoint.info.config)
    check_same_settings(last, checkpoint.info.config, config)
    stored = checkpoint.info.config.decode  # has the limits that were chosen at the start of the training
    return replace(config, decode=stored), checkpoint


def _starting_settings(recipe: str | Config | None, settings: Mapping[str, Any]) -> Config:
    """The settings of a new run. A :class:`Config` as the recipe is complete, unless ``model.init`` is added to it."""
    base = resolve(recipe)
    if not isinstance(recipe, Config) or "model.init" in settings:
        base = starting_config(base, settings)
    return resolve(base, settings)


def _refuse_other_run(out: Path, resume: bool) -> None:
    if (out / "last.safetensors").exists():
        if not resume:
            raise CheckpointError(f"{out} already holds a run; add --resume to continue it, or choose another --out")
    elif (out / "best.safetensors").exists() and not (resume and (out / "config.yaml").exists()):
        # If ``resume`` is set and config.yaml exists, the run was killed between its first best weights and its first
        # checkpoint. Such a run starts again.
        raise CheckpointError(
            f"{out} holds best.safetensors of an earlier run, which would be replaced; choose another --out, or move it"
        )


def starting_progress(job: Job, checkpoint: Checkpoint | None) -> Progress:
    """Return the progress from which the training goes on; ``finished`` is set if there is nothing left to do.

    Raises:
        CheckpointError: the data differs from the data of the checkpoint.
        DataError: there is nothing to train on.
    """
    train_set, val_set = job.train_set, job.val_set
    if not _has_boxes(train_set):
        raise DataError(f"{train_set.name}: there is no box to learn from in {len(train_set)} images")
    if not _has_boxes(val_set):
        job.warn(f"{val_set.name} has no box to measure with; the newest weights are kept as the best")
    data, val = describe_data(train_set), describe_data(val_set)
    if checkpoint is None:
        return Progress(data=data, val=val)
    before = checkpoint.progress
    check_same_data(checkpoint.path, before.data, data, "training", train_set)
    check_same_data(checkpoint.path, before.val, val, "validation", val_set)
    settings, stored = job.config.train, checkpoint.info.config.train
    more_patience = before.epoch < settings.epochs and settings.patience != stored.patience
    return replace(
        before,
        best_ap=before.best_ap if job.best.exists() else -math.inf,
        finished=None if more_patience else before.finished,
        data=data,
        val=val,
    )


def _has_boxes(dataset: Dataset) -> bool:
    return bool((~dataset.ignore).any())


def start(job: Job, checkpoint: Checkpoint | None, progress: Progress) -> Start:
    """Return everything that the training loop needs.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another model.
        ConfigError: the ranks do not agree, or the device cannot be used.
        DataError: no learning rate was found (``train.find_lr``).
    """
    is_main = job.processes.is_main
    if is_main:
        remove_leftovers(job.out)
    if checkpoint is None and job.config.model.init is not None:
        for line in start_lines(job.config.model.init, job.train_set.classes):
            job.console.print(line, markup=False, highlight=False)
    job = with_limits(job)
    if checkpoint is None and job.config.train.find_lr:
        job = _with_found_rate(job)
    config = job.config
    agreed = {"data": progress.data, "val": progress.val, "settings": config.to_dict(), "step": progress.step}
    require_agreement(job.processes, agreed)
    pretrained = None if checkpoint is None else False
    state = TrainingState.create(config, job.train_set.classes, job.processes, pretrained)
    if checkpoint is not None:
        restore_training(checkpoint.path, state)
        state.model.backbone.mean, state.model.backbone.std = checkpoint.info.mean, checkpoint.info.std
    log = Log(job.out / "metrics.jsonl", resume_at=progress.step, write=is_main)
    if is_main:
        write_text(job.out / "config.yaml", as_yaml(config))
    metrics = {} if checkpoint is None else checkpoint.info.metrics
    return Start(job, state, job.training_order(config.train.epochs, progress.step), log, progress, metrics)


def _with_found_rate(job: Job) -> Job:
    train = replace(job.config.train, lr=find_learning_rate(job), find_lr=False)
    return replace(job, config=replace(job.config, train=train))
