"""Find a learning rate: train a few steps at rising rates, and take the rate at which the loss falls fastest.

This is the range test of https://arxiv.org/abs/1506.01186. The rate grows exponentially from step to step. If the
rate is too small, the loss hardly changes; if it is too large, the loss explodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from retinanet.data.loader import training_loader
from retinanet.errors import DataError
from retinanet.files import write_atomically
from retinanet.progress import progress_bar
from retinanet.training.job import Job
from retinanet.training.meter import Meter, Step
from retinanet.training.optim import REFERENCE_BATCH
from retinanet.training.state import TrainingState

_STEPS = 100

# Range of rates: from a hundredth of the recipe's rate to thirty times that rate.
_LOWEST, _HIGHEST = 0.01, 30.0

# The test ends when the smoothed loss exceeds its minimum by this factor.
_EXPLODED = 2.0

# Decay of the moving average that smooths the loss: the loss of a single small batch is mostly noise.
_SMOOTHING = 0.9


def find_learning_rate(job: Job) -> float:
    """Return the learning rate to train with, and write ``learning_rate.png``.

    Like ``train.lr``, the rate refers to a batch of 16 images. The weights that the test trains are discarded.

    Raises:
        DataError: the loss does not fall at any rate.
    """
    settings, curve = job.config.train, job.out / "learning_rate.png"
    rates, losses = _range_test(job)
    found = steepest(rates, losses)
    if found is None:
        raise DataError(
            f"{job.train_set.name}: --train.find-lr: the loss falls at no rate between {settings.lr * _LOWEST:.2g} and "
            f"{settings.lr * _HIGHEST:.2g}; 'retinanet data inspect' may show why"
        )
    if job.processes.is_main:
        draw(rates, losses, found, curve)
    job.console.print(
        f"learning rate: {found:.2g} for 16 images (the recipe's is {settings.lr:.2g}); curve in {curve}",
        highlight=False,
    )
    return found


def _range_test(job: Job) -> tuple[list[float], list[float]]:
    """Train at rising rates until the loss explodes; return the rate and the loss of each step."""
    settings = job.config.train
    config = replace(job.config, train=replace(settings, ema=None))
    state = TrainingState.create(config, job.train_set.classes, job.processes)
    meter, order = Meter(job.processes, deferred=False), job.training_order(epochs=_STEPS)
    data = replace(config.data, workers=0)  # the steps are too few to be worth starting processes
    batches = zip(training_loader(job.source, order, data, settings.seed), order.lengths(), strict=False)
    rates: list[float] = []
    losses: list[float] = []
    lowest = math.inf
    with progress_bar(job.console, "learning rate", _STEPS) as bar:
        for step, (batch, images) in zip(range(_STEPS), batches, strict=False):
            rate = settings.lr * _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
            update = state.step(batch, images, rate * settings.batch / REFERENCE_BATCH)
            (reading,) = meter.add(Step(step + 1, batch, images, rate, update))
            if not reading.finite:
                break
            rates.append(rate)
            losses.append(reading.loss)
            smooth = smoothed(losses)[-1]
            lowest = min(lowest, smooth)
            if step > _STEPS // 10 and smooth > _EXPLODED * lowest:
                break
            bar.update(1, f"lr {rate:.2g}  loss {smooth:.3f}")
    return rates, losses


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average of the losses so far, corrected for the bias of its start."""
    result, value = [], 0.0
    for step, loss in enumerate(losses, start=1):
        value = _SMOOTHING * value + (1 - _SMOOTHING) * loss
        result.append(value / (1 - _SMOOTHING**step))
    return result


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate at which the loss falls fastest per unit of log(rate); None if it never falls.

    The slope is that of a straight line fitted to a fifth of the steps. With fewer steps the slope would follow the
    noise of single batches.
    """
    window = max(3, len(losses) // 5)
    if len(losses) < window:
        return None
    x, y = (np.lib.stride_tricks.sliding_window_view(v, window) for v in (np.log(rates), np.asarray(losses)))
    x = x - x.mean(axis=1, keepdims=True)
    slopes = (x * y).sum(axis=1) / (x**2).sum(axis=1)
    place = int(slopes.argmin())
    return float(f"{rates[place + window // 2]:.2g}") if slopes[place] < 0 else None


def draw(rates: Sequence[float], losses: Sequence[float], chosen: float, path: Path) -> None:
    """Plot loss against learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="#1f6f8b", alpha=0.3, label="loss of each batch")
    axes.plot(rates, smoothed(losses), color="#333333", label="smoothed")
    axes.axvline(chosen, color="#c8553d", label=f"chosen: {chosen:.2g}")
    axes.set(xscale="log", xlabel="learning rate for 16 images", ylabel="training loss", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
