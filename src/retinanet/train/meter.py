"""The numbers of a step: read when they are there, added up over processes, written to the log.

On a GPU a step is only launched when Python goes on. Its numbers are read after the next step is launched, so that the
GPU never waits for Python; what must be exact (a checkpoint, the end of an epoch) asks for all of them first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retinanet.data.loader import Batch
from retinanet.losses import Losses
from retinanet.losses.imbalance import Imbalance
from retinanet.train.distributed import Processes


@dataclass(frozen=True)
class Step:
    """A step that was launched.

    Attributes:
        number: from 1.
        batch: this process's images.
        images: how many there are on all processes.
        lr: its learning rate.
        losses: this process's.
        grad_norm: scalar, before clipping.
        imbalance: who owns this process's loss, if it was measured.
        stop: this process was asked to stop.
        save: this process thinks that a checkpoint is due.
    """

    number: int
    batch: Batch
    images: int
    lr: float
    losses: Losses
    grad_norm: Tensor
    imbalance: Imbalance | None
    stop: bool
    save: bool


@dataclass(frozen=True)
class Reading:
    """A step's numbers over all processes."""

    step: Step
    loss: float
    classification: float
    box: float
    foreground: int
    grad_norm: float
    imbalance: Imbalance | None

    @property
    def finite(self) -> bool:
        """Whether losses and gradient are numbers; all processes agree."""
        return math.isfinite(self.loss + self.grad_norm)

    def line(self, steps_per_epoch: int) -> dict[str, Any]:
        """What the log says about the step."""
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
    """A step's losses, gradient norm and, if measured, shares of the loss, on their way to the CPU."""

    values: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, step: Step) -> _Numbers:
        """Copy them behind the step itself: who reads them later waits for this step and not for the next one."""
        shares = () if step.imbalance is None else step.imbalance[:3]
        values = torch.stack([step.losses.classification, step.losses.box, step.grad_norm, *shares]).detach()
        if values.device.type != "cuda":
            return cls(values, None)
        copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return cls(copied, arrived)

    def read(self) -> Tensor:
        """float64, on the CPU."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.double()


class Meter:
    """Takes launched steps and gives readings.

    Attributes:
        stop: some process was asked to stop.
        save: the first process wants a checkpoint.
    """

    def __init__(self, processes: Processes, deferred: bool) -> None:
        self.stop = self.save = False
        self._processes = processes
        self._deferred = deferred
        self._waiting: list[tuple[Step, _Numbers]] = []

    def add(self, step: Step) -> list[Reading]:
        """Readings that are due now that ``step`` is launched: its own, or on a GPU that of the step before."""
        self._waiting.append((step, _Numbers.of(step)))
        return self._read(len(self._waiting) - self._deferred)

    def flush(self) -> list[Reading]:
        """Readings of all steps so far."""
        return self._read(len(self._waiting))

    def _read(self, count: int) -> list[Reading]:
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return [self._reading(step, numbers.read()) for step, numbers in ready]

    def _reading(self, step: Step, numbers: Tensor) -> Reading:
        own, grad_norm, shares = numbers[:2], numbers[2].item(), numbers[3:]
        foreground = step.losses.foreground
        asked = torch.tensor([float(foreground), step.stop, step.save and self._processes.first], dtype=torch.float64)
        values = self._processes.sum(torch.cat([own, asked])).tolist()
        self.stop, self.save = self.stop or values[3] > 0, values[4] > 0
        # gradients are means over the processes, so the loss they are of is one, too
        classification_loss, box_loss = (value / self._processes.count for value in values[:2])
        return Reading(
            step,
            classification_loss + box_loss,
            classification_loss,
            box_loss,
            int(values[2]),
            grad_norm,
            self._summed(step.imbalance, shares),
        )

    def _summed(self, own: Imbalance | None, shares: Tensor) -> Imbalance | None:
        """Over all processes, which measure it in the same steps."""
        if own is None:
            return None
        together = self._processes.sum(torch.cat([shares, own.positives.double()]))
        return Imbalance(together[0], together[1], together[2], together[3:].long())
