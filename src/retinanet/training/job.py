"""A training: its settings, its data, and where its results go."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.learnt_sizes import learnt_sizes
from retinanet.data.sampling import TrainingOrder, sampling_factors
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.object_sizes import ObjectSizes
from retinanet.training.checkpoint import Progress
from retinanet.training.distributed import Processes


@dataclass(frozen=True)
class Job:
    """Settings, data and output folder of a training.

    Attributes:
        config: all settings.
        train_set: the data to train on; crowds are treated as ``config.data.crowd`` says.
        val_set: the data that chooses the best epoch; the same classes in the same order.
        out: the run's folder.
        console: where messages and progress are printed; quiet on all ranks except the main rank.
        processes: the ranks that train together.
    """

    config: Config
    train_set: Dataset
    val_set: Dataset
    out: Path
    console: Console
    processes: Processes

    @property
    def last(self) -> Path:
        """The checkpoint: everything needed to resume."""
        return self.out / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights of the best epoch, by AP on val."""
        return self.out / "best.safetensors"

    @cached_property
    def objects(self) -> ObjectSizes | None:
        """Sizes of the training objects at the input scale of the network."""
        return learnt_sizes(self.train_set, self.config.data)

    def training_order(self, epochs: int, first_step: int = 0) -> TrainingOrder:
        """Return the images of each step of ``epochs`` epochs, from ``first_step`` on."""
        settings, factors = self.config.train, sampling_factors(self.train_set, self.config.data)
        rank, world_size = self.processes.rank, self.processes.world_size
        return TrainingOrder(
            self.train_set, settings.batch, epochs, settings.seed, first_step, factors, rank, world_size
        )

    def describe(self, model: RetinaNet, progress: Progress, metrics: dict[str, Any]) -> ModelInfo:
        """Return what a weight file stores about ``model``."""
        progressed = progress.to_dict()
        return ModelInfo.of(
            model, self.train_set.classes, self.config, metrics=metrics, progress=progressed, objects=self.objects
        )

    def warn(self, message: str) -> None:
        """Print a warning. Other ranks have a quiet console, so they print it to stderr."""
        if self.processes.is_main:
            self.console.print(f"warning: {message}", highlight=False)
        else:
            print(f"rank {self.processes.rank}: warning: {message}", file=sys.stderr)


@dataclass(frozen=True)
class Result:
    """The result of a training.

    Attributes:
        best: file of the best weights.
        metrics: their COCO metrics on val.
        seconds: duration of this call; 0 if the run was finished before.
        finished: why the training ended.
        unreadable: messages of images that could not be read during training, and how often each occurred.
    """

    best: Path
    metrics: dict[str, Any]
    seconds: float
    finished: str
    unreadable: dict[str, int] = field(default_factory=dict)
