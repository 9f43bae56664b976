"""Find a learning rate: train a while at rising rates, and look where the loss falls fastest.

The range test of https://arxiv.org/abs/1506.01186: the rate grows exponentially from step to step; where it is too
small, the loss stays; where it is too large, it explodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.loader import training_loader
from retinanet.data.sampling import TrainingOrder, sampling_factors
from retinanet.errors import DataError
from retinanet.files import write_atomically
from retinanet.losses import Normalizer
from retinanet.model import RetinaNet
from retinanet.progress import progress_bar
from retinanet.train.distributed import Processes
from retinanet.train.meter import Meter, Step
from retinanet.train.optim import REFERENCE_BATCH, make_optimizer, set_learning_rate
from retinanet.train.step import backward

_STEPS = 100

# From a hundredth of the recipe's rate to thirty times it.
_LOWEST, _HIGHEST = 0.01, 30.0

# The test ends when the smoothed loss is this many times its lowest.
_EXPLODED = 2.0

# Smoothing of the loss, as in Adam's moments: a batch of few images says little.
_SMOOTHING = 0.9


def find_learning_rate(
    config: Config,
    train_set: Dataset,
    out: Path,
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes,
    console: Console,
) -> float:
    """The learning rate, for 16 images as ``config.train.lr`` is, to train with; ``out`` gets ``learning_rate.png``.

    The weights that were trained for it are thrown away.

    Raises:
        DataError: the loss never falls, so nothing can be said.
    """
    settings = config.train
    torch.manual_seed(settings.seed)
    model = RetinaNet.from_config(config.model, config.anchors, len(train_set.classes))
    model.to(device).to(memory_format=torch.channels_last).train()
    network = processes.wrap(model, device)
    optimizer = make_optimizer(model, settings)
    normalizer, meter = Normalizer(config.loss), Meter(processes, deferred=False)
    factors = sampling_factors(train_set, config.data)
    order = TrainingOrder(train_set, settings.batch, _STEPS, settings.seed, 0, factors, processes.rank, processes.count)
    workers = replace(config.data, workers=0)  # few steps: not worth starting processes for
    rates, losses = [], []
    best = math.inf
    with progress_bar(console, "learning rate", _STEPS) as bar:
        batches = zip(training_loader(train_set, order, workers, settings.seed), order.lengths(), strict=False)
        for step, (batch, images) in zip(range(_STEPS), batches, strict=False):
            rate = settings.lr * _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
            set_learning_rate(optimizer, rate * settings.batch / REFERENCE_BATCH)
            optimizer.zero_grad(set_to_none=True)
            found, _ = backward(network, batch, config, normalizer, dtype, processes, images)
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
            (reading,) = meter.add(Step(step + 1, batch, images, rate, found, grad_norm, None, False, False))
            if not reading.finite:
                break
            rates.append(rate)
            losses.append(reading.loss)
            optimizer.step()
            smooth = smoothed(losses)[-1]
            best = min(best, smooth)
            if step > _STEPS // 10 and smooth > _EXPLODED * best:
                break
            bar.update(1, f"lr {rate:.2g}  loss {smooth:.3f}")
    chosen = steepest(rates, losses)
    if chosen is None:
        raise DataError(
            f"{train_set.name}: --train.find-lr: the loss falls at no rate between {settings.lr * _LOWEST:.2g} and "
            f"{settings.lr * _HIGHEST:.2g}; 'retinanet data inspect' may show why"
        )
    if processes.first:
        draw(rates, losses, chosen, out / "learning_rate.png")
    console.print(
        f"learning rate: {chosen:.2g} for 16 images (the recipe's is {settings.lr:.2g}); curve in "
        f"{out / 'learning_rate.png'}",
        highlight=False,
    )
    return chosen


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential moving average without the bias of its start."""
    result, value = [], 0.0
    for step, loss in enumerate(losses, start=1):
        value = _SMOOTHING * value + (1 - _SMOOTHING) * loss
        result.append(value / (1 - _SMOOTHING**step))
    return result


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Rate around which the loss falls fastest per unit of log(rate), by a straight line through a fifth of the steps.

    None if it falls nowhere. Fewer steps would follow the noise of small batches.
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
