"""Where the numbers and the messages of a training go: log, trackers, progress bar and console."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from retinanet.data.loader import Batch
from retinanet.errors import NonFiniteLossError
from retinanet.progress import Bar
from retinanet.training.meter import Meter, Reading, Step
from retinanet.training.nonfinite import explain
from retinanet.training.outlook import Clock
from retinanet.training.resume import Start
from retinanet.training.tracking import Trackers


class Recorder:
    """Records the steps and the evaluations of a training.

    Attributes:
        meter: collects the numbers of the steps.
        metrics: metrics of the newest evaluation; empty before the first evaluation.
        unreadable: messages of images that could not be read, and how often each occurred.
    """

    def __init__(self, run: Start, trackers: Trackers, bar: Bar) -> None:
        self.meter = Meter(run.job.processes, deferred=run.state.device.type == "cuda")
        self.metrics = run.metrics
        self.unreadable: Counter[str] = Counter()
        self._run, self._trackers, self._bar = run, trackers, bar
        self._printed: set[str] = set()
        self._clock = Clock()

    def step(self, step: Step) -> None:
        """Record a step, or on a GPU the step before it.

        Raises:
            NonFiniteLossError: the loss or the gradient of the recorded step is NaN or infinite.
        """
        self._record(self.meter.add(step))

    def flush(self) -> None:
        """Record the steps that are still in flight, so that the state is known to be finite before it is saved."""
        self._record(self.meter.flush())

    def evaluation(self, line: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Record an evaluation."""
        self.metrics = metrics
        self._run.log.write(**line, **metrics)
        self._trackers.log_line({**line, **metrics})

    def warn(self, message: str, step: int, epoch: float) -> None:
        """Log and print a warning."""
        self._run.log.write(step=step, epoch=epoch, warning=message)
        self._run.job.warn(message)

    def _record(self, readings: Iterable[Reading]) -> None:
        run = self._run
        for reading in readings:
            if not reading.finite:
                raise NonFiniteLossError(explain(run.job, run.state, reading.step.batch))
            line = reading.line(run.order.steps_per_epoch)
            run.log.write(**line)
            self._trackers.log_line(line)
            shares = run.log.newest("share_easy")
            status = step_status(line, run.job.config.train.epochs, self.metrics, shares)
            self._bar.update(reading.step.images, status)
            if left := self._clock.estimate(line["step"], run.job.config.train.epochs * run.order.steps_per_epoch):
                run.job.console.print(left)
            for message in self._new_messages(reading.step.batch):
                self.warn(message, line["step"], line["epoch"])

    def _new_messages(self, batch: Batch) -> list[str]:
        """Return the messages about a batch's images, without messages that were printed before."""
        messages = [remark for remark in dict.fromkeys(batch.remarks) if remark not in self._printed]
        self._printed.update(messages)
        for message in dict.fromkeys(batch.unreadable):
            self.unreadable[message] += 1
            if self.unreadable[message] == 1:
                messages.append(f"{message}; another image takes its place")
        return messages


def step_status(line: dict[str, Any], epochs: int, metrics: dict[str, Any], shares: dict[str, Any]) -> str:
    """Return the text beside the progress bar.

    Args:
        line: the step's line of ``metrics.jsonl``.
        epochs: number of epochs of the whole training.
        metrics: metrics of the newest evaluation, or empty.
        shares: the newest line with loss shares, or empty.
    """
    text = f"epoch {math.ceil(line['epoch'])}/{epochs}  loss {line['loss']:.3f}"
    if shares:
        parts = {"foreground": "foreground", "hard": "hard background", "easy": "easy"}
        text += " = " + " + ".join(f"{shares[f'share_{key}']:.0%} {name}" for key, name in parts.items())
    return text + (f"  AP {metrics['AP']:.3f}" if metrics else "")
