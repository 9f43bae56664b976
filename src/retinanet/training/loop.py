"""The training loop: start, step, evaluate, save. Read :func:`_train_steps` from top to bottom."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.loader import Timed, training_loader
from retinanet.files import claimed
from retinanet.progress import progress_bar
from retinanet.training.checkpoint import Checkpoint, Progress, save_training
from retinanet.training.distributed import Processes
from retinanet.training.job import Job, Result
from retinanet.training.meter import Step
from retinanet.training.optim import learning_rate
from retinanet.training.recorder import Recorder
from retinanet.training.resume import Start, open_run, start, starting_progress
from retinanet.training.stopping import StopRequest, TrainingStopped, stop_requests
from retinanet.training.tiles import with_tiles
from retinanet.training.tracking import open_trackers
from retinanet.training.validation import Validation
from retinanet.training.watch import objects_left_out
from retinanet.zoo.weights import read_info

# Steps between measurements of the loss shares; a measurement costs as much as a few passes over the logits.
_IMBALANCE_EVERY = 20


def train_on(
    config: Config,
    train_set: Dataset,
    val_set: Dataset,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
    processes: Processes | None = None,
) -> Result:
    """Train a detector on datasets; see :func:`retinanet.training.api.train` to start from a path.

    ``out`` gets ``best.safetensors``, ``last.safetensors``, ``metrics.jsonl``, ``config.yaml`` and ``curves.png``.

    Args:
        config: all settings.
        train_set: the data to train on.
        val_set: the data that chooses the best epoch; the same classes in the same order.
        out: the run's folder.
        resume: go on from ``out/last.safetensors`` if it exists; the result is that of an uninterrupted run.
        console: where progress is shown; unset: nowhere.
        processes: the ranks that train together, see :func:`retinanet.training.distributed.joined_processes`; unset:
            this process alone.

    Raises:
        TrainingStopped: Ctrl-C or SIGTERM; the state was saved.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is intact.
        CheckpointError: ``out`` holds another run, or a run with other settings or data.
        RetinaNetError: another training is writing to ``out``.
    """
    processes = processes or Processes()
    with claimed(out) if processes.is_main else nullcontext():
        config, checkpoint = open_run(out, resume, config)
        job = Job(config, train_set, val_set, out, console or Console(quiet=True), processes)
        return train_job(job, checkpoint)


def train_job(job: Job, checkpoint: Checkpoint | None) -> Result:
    """Train from the beginning or from a checkpoint; the caller has claimed the folder of ``job``."""
    job = replace(job, train_set=job.train_set.with_crowds(job.config.data.crowd))
    progress = starting_progress(job, checkpoint)
    if progress.finished is not None:
        return Result(job.best, read_info(job.best).metrics, 0.0, progress.finished)
    with with_tiles(job) as job:
        return _train(start(job, checkpoint, progress))


def _train(run: Start) -> Result:
    """Take the remaining steps of a training."""
    began, job, settings = time.monotonic(), run.job, run.job.config.train
    tracked = settings.track if job.processes.is_main else ()
    with (
        open_trackers(tracked, job.out, job.config, run.progress.step, job.console) as trackers,
        stop_requests() as stop,
        progress_bar(job.console, "images", run.total_images) as bar,
    ):
        bar.advance(run.order.images_before(run.progress.step))
        recorder = Recorder(run, trackers, bar)
        on_gpu = run.state.device.type == "cuda"
        # Several ranks must take the same steps, so a single rank cannot give up waiting for its images.
        waits_no_longer = (lambda: stop.requested) if job.processes.world_size == 1 else (lambda: False)
        loader = training_loader(job.source, run.order, job.config.data, settings.seed, on_gpu, waits_no_longer)
        batches = Timed(loader)
        validation = Validation(run, recorder, trackers, batches)
        new = job.processes.is_main and not run.progress.step
        if new and (warning := objects_left_out(job.images_shown, job.config)):
            recorder.warn(warning, step=0, epoch=0.0)
        finished = _train_steps(run, batches, recorder, validation, stop).finished
    unreadable: Counter[str] = Counter()
    for counts in job.processes.gather(dict(recorder.unreadable)):
        unreadable.update(counts)
    metrics = read_info(job.best).metrics if job.processes.is_main else recorder.metrics
    return Result(job.best, metrics, time.monotonic() - began, finished or "", dict(unreadable))


def _train_steps(run: Start, batches: Timed, recorder: Recorder, validation: Validation, stop: StopRequest) -> Progress:
    """Step, evaluate and save until the training is finished; return its progress."""
    job, state, order, progress = run.job, run.state, run.order, run.progress
    settings, meter = job.config.train, recorder.meter
    images_seen, saved = order.images_before(progress.step), time.monotonic()
    for batch, images in zip(batches, order.lengths(), strict=False):  # fewer batches if a stop is requested
        step = progress.step + 1
        progress = replace(progress, step=step, epoch=step / order.steps_per_epoch)

        torch.manual_seed(settings.seed + step)  # random layers of a backbone (drop path) depend on the step only
        lr = learning_rate(settings, images_seen, run.total_images)
        update = state.step(batch, images, lr, measure_imbalance=step % _IMBALANCE_EVERY == 1)
        images_seen += images
        late = time.monotonic() - saved > 60 * settings.checkpoint_minutes
        recorder.step(Step(step, batch, images, lr, update, stop.requested, late))

        epoch_ended = step % order.steps_per_epoch == 0
        # Several ranks must agree to stop; they do so one step later.
        stopping = meter.stop or (job.processes.world_size == 1 and stop.requested)
        if not (epoch_ended or stopping or meter.save):
            continue
        recorder.flush()
        if epoch_ended:
            progress = validation.after_epoch(progress)

        save_training(job.last, state, job.describe(state.model, progress, recorder.metrics))
        saved, meter.save = time.monotonic(), False
        if progress.finished or stopping:
            job.processes.wait()  # until the main rank has saved
        if progress.finished:
            break
        if stopping:
            raise _stopped(job, progress)
    if not progress.finished:  # a stop was requested while no images arrived
        recorder.flush()
        if progress.step > run.progress.step:
            save_training(job.last, state, job.describe(state.model, progress, recorder.metrics))
        raise _stopped(job, progress)
    return progress


def _stopped(job: Job, progress: Progress) -> TrainingStopped:
    if not progress.step:
        return TrainingStopped("stopped before the first step")
    where = f"epoch {progress.epoch:.2f} of {job.config.train.epochs}"
    return TrainingStopped(f"stopped after {where}; the state is in {job.last}")
