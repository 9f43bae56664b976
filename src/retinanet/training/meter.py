"""The numbers of each step, copied to the CPU and summed over the ranks.

On a GPU, Python runs ahead of the computation. The numbers of a step are read after the next step was launched, so that
the GPU never waits for Python. Before a checkpoint and at the end of an epoch, :meth:`Meter.flush` reads all numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retinanet.data.loader import Batch
from retinanet.losses.imbalance import Imbalance
from retinanet.training.distributed import Processes
from retinanet.training.state import Update


@dataclass(frozen=True)
class Step:
    """A step whose computation was launched.

    Attributes:
        number: number of the step, from 1.
        batch: this rank's images.
        images: number of images on all ranks.
        lr: learning rate of the step.
        update: losses, gradient norm and loss shares of this rank.
        stop: this rank was asked to stop.
        save: a checkpoint is due; only the main rank's value counts.
    """

    number: int
    batch: Batch
    images: int
    lr: float
    update: Update
    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Reading:
    """The numbers of a step over all ranks."""

    step: Step
    loss: float
    classification: float
    box: float
    foreground: int
    grad_norm: float
    imbalance: Imbalance | None

    @property
    def finite(self) -> bool:
        """Whether losses and gradient are finite; the same on all ranks."""
        return math.isfinite(self.loss + self.grad_norm)

    def line(self, steps_per_epoch: int) -> dict[str, Any]:
        """Return the step's line of ``metrics.jsonl``."""
        numbers = {name: round(getattr(self, name), 5) for name in ("loss", "classification", "box")}
        imbalance = self.imbalance.to_dict() if self.imbalance is not None else {}
        return {
            "step": self.step.number,
            "epoch": round(self.step.number / steps_per_epoch, 4),
            **numbers,
            "foreground": self.foreground,
            "grad_norm": round(self.grad_norm, 4),
            "lr": self.step.lr,
            **imbalance,
        }


@dataclass(frozen=True)
class _Numbers:
    """Losses, gradient norm and (if measured) loss shares of a step, on their way to the CPU."""

    values: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, step: Step) -> _Numbers:
        """Start the device-to-host copy now, so that reading the values later waits for this step only."""
        losses, grad_norm, imbalance = step.update
        shares = () if imbalance is None else imbalance[:3]
        values = torch.stack([losses.classification, losses.box, grad_norm, *shares]).detach()
        if values.device.type != "cuda":
            return cls(values, None)
        copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return cls(copied, arrived)

    def read(self) -> Tensor:
        """Return the values as float64 on the CPU."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.double()


class Meter:
    """Turns launched steps into readings.

    Attributes:
        stop: a rank was asked to stop.
        save: a checkpoint is due.
    """

    def __init__(self, processes: Processes, deferred: bool) -> None:
        self.stop = self.save = False
        self._processes = processes
        self._deferred = deferred
        self._waiting: list[tuple[Step, _Numbers]] = []

    def add(self, step: Step) -> list[Reading]:
        """Return the readings that are due: the reading of ``step``, or on a GPU the reading of the step before."""
        self._waiting.append((step, _Numbers.of(step)))
        return self._read(len(self._waiting) - self._deferred)

    def flush(self) -> list[Reading]:
        """Return the readings of all steps that were not read yet."""
        return self._read(len(self._waiting))

    def _read(self, count: int) -> list[Reading]:
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return [self._reading(step, numbers.read()) for step, numbers in ready]

    def _reading(self, step: Step, numbers: Tensor) -> Reading:
        own, grad_norm, shares = numbers[:2], numbers[2].item(), numbers[3:]
        foreground = step.update.losses.foreground
        asked = torch.tensor([float(foreground), step.stop, step.save and self._processes.is_main], dtype=torch.float64)
        values = self._processes.sum(torch.cat([own, asked])).tolist()
        self.stop, self.save = self.stop or values[3] > 0, values[4] > 0
        # Gradients are averaged over the ranks, so the losses are averaged, too.
        classification_loss, box_loss = (value / self._processes.world_size for value in values[:2])
        return Reading(
            step,
            classification_loss + box_loss,
            classification_loss,
            box_loss,
            int(values[2]),
            grad_norm,
            self._summed(step.update.imbalance, shares),
        )

    def _summed(self, own: Imbalance | None, shares: Tensor) -> Imbalance | None:
        """Sum the loss shares over all ranks; all ranks measure them in the same steps."""
        if own is None:
            return None
        together = self._processes.sum(torch.cat([shares, own.positives.double()]))
        return Imbalance(together[0], together[1], together[2], together[3:].long())
