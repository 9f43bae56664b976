"""The training loop. Read :func:`train` from top to bottom."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch.optim.swa_utils import AveragedModel

from retinanet.anchors import AnchorGrid, assign_batch
from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.loader import Batch, Timed, TrainingOrder, training_loader
from retinanet.data.transforms import normalized_batch
from retinanet.detect.detector import Detector
from retinanet.errors import DataError, NonFiniteLossError
from retinanet.evaluate.ap import Metrics, evaluate
from retinanet.evaluate.predict import predict
from retinanet.files import write_json, write_text
from retinanet.hardware import autocast, resolve_device, resolve_precision
from retinanet.losses import Losses, Normalizer, detection_losses
from retinanet.model import Outputs, RetinaNet
from retinanet.progress import progress_bar
from retinanet.train.checkpoint import (
    check_same_data,
    check_same_settings,
    fingerprint,
    refuse_other_run,
    restore_training,
    save_training,
    weights_to_use,
)
from retinanet.train.log import Log
from retinanet.train.optim import learning_rate, make_average, make_optimizer, set_learning_rate
from retinanet.zoo.weights import ModelInfo, read_info, save_weights

# Share of an epoch spent waiting for the loader that is worth a word.
_MUCH_WAITING = 0.2


class TrainingStopped(KeyboardInterrupt):
    """The training was asked to stop and saved its state first."""


@dataclass(frozen=True)
class Result:
    """What a training ended with: the best weights, their metrics on val, and the seconds it took (this time)."""

    best: Path
    metrics: dict[str, Any]
    seconds: float


def train(
    config: Config,
    train_set: Dataset,
    val_set: Dataset,
    out: Path,
    resume: bool = False,
    console: Console | None = None,
) -> Result:
    """Train a detector; ``out`` gets ``best.safetensors``, ``last.safetensors``, ``metrics.jsonl`` and ``curves.png``.

    Args:
        config: all settings.
        train_set: what to learn from.
        val_set: what to choose the best epoch on; the same classes in the same order.
        out: the run's folder.
        resume: go on from ``out/last.safetensors`` if it exists; the result is what an uninterrupted run gives.
        console: where progress is shown.

    Raises:
        TrainingStopped: Ctrl-C or SIGTERM; the state was saved.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is intact.
        CheckpointError: ``out`` holds another run, or one with other settings or data.
    """
    console = console or Console(quiet=True)
    train_set = train_set.with_crowds(config.data.crowd)
    last, best = out / "last.safetensors", out / "best.safetensors"
    refuse_other_run(out, resume)
    if not (~train_set.ignore).any():
        raise DataError(f"{train_set.name}: there is no box to learn from in {len(train_set)} images")

    settings = config.train
    device = resolve_device(settings.device)
    dtype = resolve_precision(settings.precision, device)
    torch.manual_seed(settings.seed)
    model = RetinaNet.from_config(config.model, config.anchors, len(train_set.classes), not last.exists() and None)
    model.to(device).to(memory_format=torch.channels_last).train()
    average = make_average(model, settings)
    optimizer = make_optimizer(model, settings)
    normalizer = Normalizer(config.loss)
    data = fingerprint(train_set)

    start, best_ap = 0, -math.inf
    metrics: dict[str, Any] = {}
    if last.exists():
        info = read_info(last)
        check_same_settings(last, info, config)
        check_same_data(last, info, train_set)
        restore_training(last, model, average, optimizer, normalizer)
        start, metrics = int(info.progress["step"]), info.metrics
        best_ap = float(info.progress["best_ap"] if info.progress["best_ap"] is not None else -math.inf)
        model.backbone.mean, model.backbone.std = info.mean, info.std

    order = TrainingOrder(train_set, settings.batch, settings.epochs, settings.seed, start)
    steps_per_epoch, total = order.steps_per_epoch, order.steps_per_epoch * settings.epochs
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", _as_yaml(config))
    log = Log(out / "metrics.jsonl", resume_at=start)
    began = saved = time.monotonic()

    def describe(step: int) -> ModelInfo:
        progress = {
            "step": step,
            "epoch": step / steps_per_epoch,
            "data": data,
            "best_ap": best_ap if math.isfinite(best_ap) else None,
        }
        return ModelInfo.of(model, train_set.classes, config, metrics=metrics, progress=progress)

    with _stop_requests() as stop, progress_bar(console, "images", len(train_set) * settings.epochs) as bar:
        seen = _images_before(start, train_set, order)
        bar.advance(seen)
        batches = Timed(training_loader(train_set, order, config.data, settings.seed))
        epoch_began = time.monotonic()  # or the last evaluation, where not every epoch is evaluated
        for step, batch in enumerate(batches, start=start + 1):
            lr = learning_rate(settings, seen, len(train_set) * settings.epochs)
            set_learning_rate(optimizer, lr)
            torch.manual_seed(settings.seed + step)  # whatever a backbone draws (drop path) depends on the step alone

            images = normalized_batch(batch.images, model.mean, model.std, device)  # (B, 3, H, W)
            grid = config.anchors.grid((images.shape[-2], images.shape[-1])).to(device)  # boxes (A, 4)
            with autocast(device, dtype):
                outputs = model(images)  # per level logits (B, A_l, K), deltas (B, A_l, 4)
            losses = _losses(outputs, grid, batch, config, device, normalizer)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
            if not torch.isfinite(losses.total + grad_norm):
                raise NonFiniteLossError(_explain(outputs, grid, batch, config, train_set, out, normalizer))
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            seen += len(batch.images)

            epoch = step / steps_per_epoch
            values = {
                "loss": losses.total.detach(),
                "classification": losses.classification.detach(),
                "box": losses.box.detach(),
            }
            shown = {name: round(value.item(), 5) for name, value in values.items()}
            log.write(
                step=step,
                epoch=round(epoch, 4),
                **shown,
                foreground=int(losses.foreground),
                grad_norm=round(grad_norm.item(), 4),
                lr=lr,
            )
            status = f"epoch {math.ceil(epoch)}/{settings.epochs}  loss {shown['loss']:.3f}"
            bar.update(len(batch.images), status + (f"  AP {metrics['AP']:.3f}" if metrics else ""))

            epoch_ended = step % steps_per_epoch == 0
            if epoch_ended:
                number = step // steps_per_epoch
                waited = batches.seconds / (time.monotonic() - epoch_began)  # for data, a share of the epoch
                if number % settings.eval_every == 0 or step == total:
                    metrics = _validate(model, average, config, val_set).to_dict()
                    seconds = round(time.monotonic() - began, 1)
                    log.write(step=step, epoch=number, seconds=seconds, data_wait=round(waited, 3), **metrics)
                    console.print(_epoch_line(number, settings.epochs, shown, metrics, waited), highlight=False)
                    if metrics["AP"] > best_ap or not best.exists():
                        best_ap = metrics["AP"]
                        save_weights(best, dict(weights_to_use(model, average).state_dict()), describe(step))
                    log.draw(out / "curves.png")
                    batches.seconds, epoch_began = 0.0, time.monotonic()
            if epoch_ended or stop.requested or time.monotonic() - saved > 60 * settings.checkpoint_minutes:
                save_training(last, model, average, optimizer, normalizer, describe(step))
                saved = time.monotonic()
            if stop.requested and step < total:
                raise TrainingStopped(f"stopped after epoch {epoch:.2f} of {settings.epochs}; the state is in {last}")

    return Result(best, read_info(best).metrics, time.monotonic() - began)


def _losses(
    outputs: Outputs,
    grid: AnchorGrid,
    batch: Batch,
    config: Config,
    device: torch.device,
    normalizer: Normalizer | None = None,
) -> Losses:
    boxes = [b.to(device, non_blocking=True) for b in batch.boxes]
    ignore = [r.to(device, non_blocking=True) for r in batch.ignore]
    matched = assign_batch(grid, boxes, ignore, config.assign)  # (B, A)
    labels = torch.cat(batch.labels).to(device, non_blocking=True)
    return detection_losses(outputs, grid, matched, torch.cat(boxes), labels, config.loss, normalizer)


def _explain(
    outputs: Outputs,
    grid: AnchorGrid,
    batch: Batch,
    config: Config,
    train_set: Dataset,
    out: Path,
    normalizer: Normalizer,
) -> str:
    """Write ``nonfinite.json`` with what each image of the failing batch contributed, and say it in a line."""
    images: list[dict[str, Any]] = []
    for row, index in enumerate(batch.indices):
        logits, deltas = ([level[row : row + 1].detach() for level in levels] for levels in outputs)
        alone = Batch(*([getattr(batch, field.name)[row]] for field in dataclasses.fields(batch)))
        losses = _losses(Outputs(logits, deltas), grid, alone, config, grid.boxes.device, copy(normalizer))
        values = {
            "classification loss": losses.classification.item(),
            "box loss": losses.box.item(),
            "largest logit": max(level.abs().max().item() for level in logits),
            "largest delta": max(level.abs().max().item() for level in deltas),
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
    report = out / "nonfinite.json"
    write_json(report, images, indent=1)
    culprits = [image for image in images if not image["finite"]] or images
    named = ", ".join(
        f"{Path(i['file']).name} (classification {i['classification loss']}, box {i['box loss']})" for i in culprits[:3]
    )
    return (
        f"the loss or its gradient is not finite on {named}{' …' if len(culprits) > 3 else ''}; "
        f"every value is in {report}. "
        f"Start again in another --out with a lower --train.lr than {config.train.lr:g}, or with --train.precision fp32"
    )


def _validate(model: RetinaNet, average: AveragedModel | None, config: Config, val_set: Dataset) -> Metrics:
    used = weights_to_use(model, average)
    info = ModelInfo.of(model, val_set.classes, config)
    detector = Detector(used, info, config.train.precision, config.train.device)
    try:
        return evaluate(val_set, predict(detector, val_set))
    finally:
        used.train()


def _images_before(step: int, dataset: Dataset, order: TrainingOrder) -> int:
    """Images that the first ``step`` steps contained."""
    epochs, rest = divmod(step, order.steps_per_epoch)
    return epochs * len(dataset) + sum(len(batch) for batch in order.batches(epochs)[:rest])


def _epoch_line(epoch: int, epochs: int, losses: dict[str, float], metrics: dict[str, Any], waited: float) -> str:
    precision = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("AP", "AP50", "AP75"))
    line = f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {losses['loss']:.3f}  {precision}"
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
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the step; a second one acts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
