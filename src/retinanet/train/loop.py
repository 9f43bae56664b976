"""The training loop. Read :func:`_train` from top to bottom."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.loader import Batch, Timed, training_loader
from retinanet.data.sampling import TrainingOrder, sampling_factors
from retinanet.errors import ConfigError, DataError, NonFiniteLossError
from retinanet.files import claimed, remove_leftovers, write_json, write_text
from retinanet.hardware import resolve_device, resolve_precision
from retinanet.losses import Normalizer
from retinanet.model import RetinaNet
from retinanet.progress import progress_bar
from retinanet.train.checkpoint import (
    check_same_data,
    check_same_settings,
    describe_data,
    refuse_other_run,
    restore_training,
    save_training,
    weights_to_use,
    with_found_rate,
)
from retinanet.train.distributed import Processes
from retinanet.train.find_lr import find_learning_rate
from retinanet.train.log import Log
from retinanet.train.meter import Meter, Reading, Step
from retinanet.train.optim import learning_rate, make_average, make_optimizer, set_learning_rate
from retinanet.train.step import backward, forward_alone
from retinanet.train.tracking import open_trackers
from retinanet.train.validation import draw_predictions, validate
from retinanet.train.watch import objects_left_out, why_nothing_is_learnt
from retinanet.zoo.weights import ModelInfo, read_info, save_weights

# Share of an epoch spent waiting for the loader that is worth a word.
_MUCH_WAITING = 0.2

# Steps between measurements of who owns the loss; each costs as much as a few passes over the logits.
_IMBALANCE_EVERY = 20


class TrainingStopped(KeyboardInterrupt):
    """The training was asked to stop and saved its state first."""


@dataclass(frozen=True)
class Result:
    """What a training ended with.

    Attributes:
        best: file of the best weights.
        metrics: theirs, on val.
        seconds: how long it took (this time).
        finished: why it ended.
        unreadable: images that could not be read when their turn came, and how often.
    """

    best: Path
    metrics: dict[str, Any]
    seconds: float
    finished: str
    unreadable: dict[str, int] = field(default_factory=dict)


def train(
    config: Config,
    train_set: Dataset,
    val_set: Dataset,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
    processes: Processes | None = None,
) -> Result:
    """Train a detector; ``out`` gets ``best.safetensors``, ``last.safetensors``, ``metrics.jsonl`` and ``curves.png``.

    Args:
        config: all settings.
        train_set: what to learn from.
        val_set: what to choose the best epoch on; the same classes in the same order.
        out: the run's folder.
        resume: go on from ``out/last.safetensors`` if it exists; the result is what an uninterrupted run gives.
        console: where progress is shown.
        processes: who trains together, see :func:`retinanet.train.distributed.joined_processes`; unset: this one alone.

    Raises:
        TrainingStopped: Ctrl-C or SIGTERM; the state was saved.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is intact.
        CheckpointError: ``out`` holds another run, or one with other settings or data.
        RetinaNetError: another training is writing to ``out``.
    """
    processes = processes or Processes()
    with claimed(out) if processes.first else nullcontext():
        return _train(config, train_set, val_set, out, resume, console or Console(quiet=True), processes)


def _train(
    config: Config,
    train_set: Dataset,
    val_set: Dataset,
    out: Path,
    resume: bool,
    console: Console,
    processes: Processes,
) -> Result:
    train_set = train_set.with_crowds(config.data.crowd)
    last, best = out / "last.safetensors", out / "best.safetensors"
    refuse_other_run(out, resume)
    if not (~train_set.ignore).any():
        raise DataError(f"{train_set.name}: there is no box to learn from in {len(train_set)} images")
    if not (~val_set.ignore).any():
        _warn(console, processes, f"{val_set.name} has no box to measure with; the newest weights are kept as the best")
    device = resolve_device(config.train.device, processes.local)
    dtype = resolve_precision(config.train.precision, device)
    resumed = last.exists()
    if resumed:
        config = with_found_rate(config, read_info(last))
    elif config.train.find_lr:
        lr = find_learning_rate(config, train_set, out, device, dtype, processes, console)
        config = replace(config, train=replace(config.train, lr=lr, find_lr=False))
    if processes.first:
        remove_leftovers(out)

    settings = config.train
    torch.manual_seed(settings.seed)
    model = RetinaNet.from_config(config.model, config.anchors, len(train_set.classes), not resumed and None)
    model.to(device).to(memory_format=torch.channels_last).train()
    if settings.sync_norm:
        model = _with_synced_norm(model, device)
    average = make_average(model, settings)
    optimizer = make_optimizer(model, settings)
    normalizer = Normalizer(config.loss)
    data = {"data": describe_data(train_set), "val": describe_data(val_set)}

    start, best_ap, best_epoch = 0, -math.inf, 0
    metrics: dict[str, Any] = {}
    if resumed:
        info = read_info(last)
        check_same_settings(last, info, config)
        check_same_data(last, info, train_set)
        check_same_data(last, info, val_set, "val")
        finished, epochs = info.progress.get("finished"), info.progress["epoch"]
        more_patience = epochs < settings.epochs and settings.patience != info.config.train.patience
        if finished and not more_patience:
            return Result(best, read_info(best).metrics, 0.0, str(finished))
        restore_training(last, model, average, optimizer, normalizer, processes)
        start, metrics = int(info.progress["step"]), info.metrics
        if best.exists() and info.progress["best_ap"] is not None:
            best_ap = float(info.progress["best_ap"])
        best_epoch = int(info.progress.get("best_epoch", 0))
        model.backbone.mean, model.backbone.std = info.mean, info.std
    _require_agreement(processes, {**data, "settings": config.to_dict(), "step": start})
    network = processes.wrap(model, device)

    factors = sampling_factors(train_set, config.data)
    order = TrainingOrder(
        train_set, settings.batch, settings.epochs, settings.seed, start, factors, processes.rank, processes.count
    )
    steps_per_epoch, total = order.steps_per_epoch, order.steps_per_epoch * settings.epochs
    images_in_all = order.images_per_epoch * settings.epochs
    log = Log(out / "metrics.jsonl", resume_at=start, write=processes.first)
    if processes.first:
        write_text(out / "config.yaml", _as_yaml(config))
    began = saved = time.monotonic()
    unreadable: Counter[str] = Counter()
    said: set[str] = set()  # warnings that need no repeating
    finished = None

    def describe(step: int) -> ModelInfo:
        progress = {
            "step": step,
            "epoch": step / steps_per_epoch,
            **data,
            "best_ap": best_ap if math.isfinite(best_ap) else None,
            "best_epoch": best_epoch,
            "finished": finished,
        }
        return ModelInfo.of(model, train_set.classes, config, metrics=metrics, progress=progress)

    tracked = settings.track if processes.first else ()
    with (
        open_trackers(tracked, out, config, start, console) as trackers,
        _stop_requests() as stop,
        progress_bar(console, "images", images_in_all) as bar,
    ):
        seen = order.images_before(start)
        bar.advance(seen)
        batches = Timed(training_loader(train_set, order, config.data, settings.seed))
        meter = Meter(processes, deferred=device.type == "cuda")
        epoch_began = time.monotonic()  # or the last evaluation, where not every epoch is evaluated
        if processes.first and start == 0 and (warning := objects_left_out(train_set, config)):
            log.write(step=0, epoch=0.0, warning=warning)
            _warn(console, processes, warning)

        def note(reading: Reading) -> None:
            if not reading.finite:
                raise NonFiniteLossError(_explain(model, reading.step.batch, config, train_set, out, dtype, processes))
            line = reading.line(steps_per_epoch)
            log.write(**line)
            trackers.log_line(line)
            bar.update(reading.step.images, _status(line, settings.epochs, metrics, log.newest("share_easy")))
            messages = []
            for message in dict.fromkeys(reading.step.batch.remarks):
                messages += [message] if message not in said else []
                said.add(message)
            for message in dict.fromkeys(reading.step.batch.unreadable):
                unreadable[message] += 1
                if unreadable[message] == 1:
                    messages.append(f"{message}; another image takes its place")
            for warning in messages:
                log.write(step=line["step"], epoch=line["epoch"], warning=warning)
                _warn(console, processes, warning)

        for step, (batch, images) in enumerate(zip(batches, order.lengths(), strict=True), start=start + 1):
            lr = learning_rate(settings, seen, images_in_all)
            set_learning_rate(optimizer, lr)
            torch.manual_seed(settings.seed + step)  # whatever a backbone draws (drop path) depends on the step alone

            optimizer.zero_grad(set_to_none=True)
            measure = step % _IMBALANCE_EVERY == 1
            losses, imbalance = backward(network, batch, config, normalizer, dtype, processes, images, measure)
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
            _leave_out_unless_finite(optimizer, losses.total + grad_norm)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            seen += images

            late = time.monotonic() - saved > 60 * settings.checkpoint_minutes
            launched = Step(step, batch, images, lr, losses, grad_norm, imbalance, stop.requested, late)
            for reading in meter.add(launched):
                note(reading)
            epoch_ended = step % steps_per_epoch == 0
            stopping = meter.stop or (processes.count == 1 and stop.requested)  # several must agree, a step later
            if not (epoch_ended or stopping or meter.save):
                continue
            for reading in meter.flush():  # on a GPU: what is saved must be known to be finite
                note(reading)

            number = step // steps_per_epoch
            if epoch_ended and (number % settings.eval_every == 0 or step == total):
                waited = batches.seconds / (time.monotonic() - epoch_began)  # for data, a share of the epoch
                metrics, broken = validate(weights_to_use(model, average), config, val_set, processes)
                seconds = round(time.monotonic() - began, 1)
                evaluation = {
                    "step": step,
                    "epoch": number,
                    "seconds": seconds,
                    "data_wait": round(waited, 3),
                    **metrics,
                }
                log.write(**evaluation)
                trackers.log_line(evaluation)
                line = _epoch_line(number, settings.epochs, log.newest("loss")["loss"], metrics, waited)
                console.print(line, highlight=False)
                for message in broken:
                    console.print(f"warning: {message}; left out of this evaluation", highlight=False)
                reason = why_nothing_is_learnt(log.lines, number)
                if reason and why_nothing_is_learnt.__name__ not in said:
                    said.add(why_nothing_is_learnt.__name__)
                    log.write(step=step, epoch=number, warning=reason)
                    console.print(f"warning: {reason}", highlight=False)
                # below 0: val has no boxes, and the newest weights are as good as any
                if metrics["AP"] > best_ap or metrics["AP"] < 0:
                    best_ap, best_epoch = metrics["AP"], number
                    if processes.first:
                        save_weights(best, dict(weights_to_use(model, average).state_dict()), describe(step))
                if processes.first:
                    log.draw(out / "curves.png")
                batches.seconds, epoch_began = 0.0, time.monotonic()
                if step == total:
                    finished = f"all {settings.epochs} epochs are done"
                elif settings.patience is not None and number - best_epoch >= settings.patience:
                    finished = f"no better AP in the {number - best_epoch} epochs since epoch {best_epoch}"
            if epoch_ended and processes.first and settings.pictures_every and number % settings.pictures_every == 0:
                folder = out / "pictures" / f"epoch_{number:04d}"
                trackers.pictures(step, draw_predictions(weights_to_use(model, average), config, val_set, folder))
            save_training(last, model, average, optimizer, normalizer, describe(step), processes)
            saved, meter.save = time.monotonic(), False
            if finished or stopping:
                processes.wait()  # for the first to save
            if finished:
                break
            if stopping:
                epoch = step / steps_per_epoch
                raise TrainingStopped(f"stopped after epoch {epoch:.2f} of {settings.epochs}; the state is in {last}")

    for counts in processes.gather(dict(unreadable))[1:]:
        unreadable.update(counts)
    result = read_info(best).metrics if processes.first else metrics
    return Result(best, result, time.monotonic() - began, finished or "", dict(unreadable))


def _warn(console: Console, processes: Processes, warning: str) -> None:
    """Say it; the console of the other processes is quiet, but what only they met must be heard."""
    if processes.first:
        console.print(f"warning: {warning}", highlight=False)
    else:
        print(f"rank {processes.rank}: warning: {warning}", file=sys.stderr)


def _leave_out_unless_finite(optimizer: torch.optim.Optimizer, value: Tensor) -> None:
    """Make the fused optimiser skip its step, on the device and without asking, if ``value`` is not finite."""
    optimizer.found_inf = (~torch.isfinite(value)).float()  # type: ignore[attr-defined]


def _with_synced_norm(model: RetinaNet, device: torch.device) -> RetinaNet:
    if device.type != "cuda":
        raise ConfigError("--train.sync-norm works on GPUs only; leave it out, or keep batch norm frozen")
    synced: RetinaNet = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synced


def _require_agreement(processes: Processes, state: dict[str, Any]) -> None:
    """All processes must start from the same data, settings and checkpoint.

    Raises:
        ConfigError: naming the first that differs.
    """
    for rank, other in enumerate(processes.gather(json.loads(json.dumps(state)))):
        for name, value in state.items():
            if other[name] != json.loads(json.dumps(value)):
                raise ConfigError(
                    f"process {rank} has other {name} than process {processes.rank}; all need the same DATA, flags and "
                    "--out, on a disk they share or in equal copies"
                )


def _explain(
    model: RetinaNet,
    batch: Batch,
    config: Config,
    train_set: Dataset,
    out: Path,
    dtype: torch.dtype,
    processes: Processes,
) -> str:
    """Write ``nonfinite.json`` with what each image of the failing batch contributes, and say it in a line."""
    images: list[dict[str, Any]] = []
    for row, index in enumerate(batch.indices):
        outputs, losses = forward_alone(model, batch[row : row + 1], config, dtype)
        values = {
            "classification loss": losses.classification.item(),
            "box loss": losses.box.item(),
            "largest logit": max(level.abs().max().item() for level in outputs.logits),
            "largest delta": max(level.abs().max().item() for level in outputs.deltas),
        }
        images.append(
            {
                "file": str(train_set.path(index)),
                "finite": all(map(math.isfinite, values.values())),
                **{name: str(value) for name, value in values.items()},  # JSON has no NaN
                "boxes": batch.boxes[row].tolist(),
                "classes": [train_set.classes[label] for label in batch.labels[row].tolist()],
            }
        )
    images = [image for part in processes.gather(images) for image in part]
    report = out / "nonfinite.json"
    if processes.first:
        write_json(report, images, indent=1)
    culprits = [image for image in images if not image["finite"]] or images
    named = ", ".join(
        f"{Path(i['file']).name} (classification {i['classification loss']}, box {i['box loss']})" for i in culprits[:3]
    )
    # a bound on the gradient is what most often helps, and costs nothing
    bound = "" if config.train.clip else "--train.clip 10, "
    return (
        f"the loss or its gradient is not finite on {named}{' …' if len(culprits) > 3 else ''}; "
        f"every value is in {report}. "
        f"Start again in another --out with {bound}a lower --train.lr than {config.train.lr:g}, "
        "or with --train.precision fp32"
    )


def _status(line: dict[str, Any], epochs: int, metrics: dict[str, Any], shares: dict[str, Any]) -> str:
    """What the progress bar shows beside itself; ``shares`` is the newest line that says who owns the loss."""
    text = f"epoch {math.ceil(line['epoch'])}/{epochs}  loss {line['loss']:.3f}"
    if shares:
        parts = {"foreground": "foreground", "hard": "hard background", "easy": "easy"}
        text += " = " + " + ".join(f"{shares[f'share_{key}']:.0%} {name}" for key, name in parts.items())
    return text + (f"  AP {metrics['AP']:.3f}" if metrics else "")


def _epoch_line(epoch: int, epochs: int, loss: float, metrics: dict[str, Any], waited: float) -> str:
    precision = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("AP", "AP50", "AP75"))
    line = f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {loss:.3f}  {precision}"
    if waited > _MUCH_WAITING:
        line += f"  ({waited:.0%} of the time waiting for pictures; try more --data.workers)"
    return line


def _as_yaml(config: Config) -> str:
    import yaml

    values = config.to_dict()
    for group in values.values():  # YAML has no tuples
        group.update({key: list(value) for key, value in group.items() if isinstance(value, tuple)})
    return yaml.safe_dump(values, sort_keys=False)


class _Stop:
    requested = False


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Turn Ctrl-C or SIGTERM into a request to stop after the step; a second Ctrl-C, half a second later, acts at once.

    Signals come in volleys: a terminal and ``torchrun`` both pass them on, and after Ctrl-C ``torchrun`` sends SIGTERM.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield stop
        return
    first = math.inf

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + 0.5:
            raise KeyboardInterrupt
        first = min(first, time.monotonic())
        stop.requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
