"""The state of a training, and the step that changes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from retinanet.config import Config
from retinanet.data.loader import Batch
from retinanet.errors import ConfigError
from retinanet.hardware import resolve_device, resolve_precision
from retinanet.losses import Losses, Normalizer
from retinanet.losses.imbalance import Imbalance
from retinanet.model import RetinaNet
from retinanet.training.distributed import Processes
from retinanet.training.fine_tuning import start_from
from retinanet.training.optim import MovingAverage, make_average, make_optimizer, set_learning_rate
from retinanet.training.step import backward


class Update(NamedTuple):
    """The numbers of a step, on the device of the model.

    Attributes:
        losses: losses of this rank.
        grad_norm: norm of the gradient before clipping, a scalar.
        imbalance: the loss shares on this rank, if they were measured.
    """

    losses: Losses
    grad_norm: Tensor
    imbalance: Imbalance | None


@dataclass(frozen=True)
class TrainingState:
    """The weights, their EMA, the optimizer and the loss normalizer.

    Attributes:
        config: all settings.
        model: the weights that the optimizer updates.
        network: ``model``, wrapped so that its gradients are averaged over the ranks.
        ema: exponential moving average of the weights, if ``config.train.ema`` is set.
        optimizer: optimizer of the trainable parameters.
        normalizer: computes the number that divides the losses.
        dtype: arithmetic of the network.
        processes: the ranks that train together.
    """

    config: Config
    model: RetinaNet
    network: nn.Module
    ema: MovingAverage | None
    optimizer: torch.optim.Optimizer
    normalizer: Normalizer
    dtype: torch.dtype
    processes: Processes

    @classmethod
    def create(
        cls, config: Config, classes: tuple[str, ...], processes: Processes, pretrained: bool | None = None
    ) -> Self:
        """Return the state before the first step; ``pretrained=False`` skips weights that a checkpoint will replace."""
        device = resolve_device(config.train.device, processes.local_rank)
        dtype = resolve_precision(config.train.precision, device)
        torch.manual_seed(config.train.seed)
        model = RetinaNet.from_config(config.model, config.anchors, len(classes), pretrained)
        if config.model.init is not None and pretrained is not False:
            start_from(model, config.model.init, classes)
        model.to(device).to(memory_format=torch.channels_last).train()
        if config.train.sync_norm:
            model = _with_synced_norm(model, device)
        ema = make_average(model, config.train)
        optimizer = make_optimizer(model, config.train)
        network = processes.wrap(model, device)
        return cls(config, model, network, ema, optimizer, Normalizer(config.loss), dtype, processes)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def best_model(self) -> RetinaNet:
        """The model to evaluate and to save: the EMA if there is one, else the trained model."""
        if self.ema is None:
            return self.model
        assert isinstance(self.ema.module, RetinaNet)
        return self.ema.module

    def step(self, batch: Batch, images: int, lr: float, measure_imbalance: bool = False) -> Update:
        """Update the weights with a batch.

        Args:
            batch: this rank's images of the step.
            images: number of images in the step, on all ranks.
            lr: learning rate of the step.
            measure_imbalance: also measure the loss shares of foreground, easy and hard background.
        """
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        losses, imbalance = backward(
            self.network, batch, self.config, self.normalizer, self.dtype, self.processes, images, measure_imbalance
        )
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip or math.inf)
        _skip_unless_finite(self.optimizer, losses.total + grad_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return Update(losses, grad_norm, imbalance)


def _with_synced_norm(model: RetinaNet, device: torch.device) -> RetinaNet:
    if device.type != "cuda":
        raise ConfigError("--train.sync-norm works on GPUs only; leave it out, or keep batch norm frozen")
    synced: RetinaNet = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synced


def _skip_unless_finite(optimizer: torch.optim.Optimizer, value: Tensor) -> None:
    """Make the fused optimizer skip its next step if ``value`` is not finite, without synchronizing with the GPU."""
    optimizer.found_inf = (~torch.isfinite(value)).float()  # type: ignore[attr-defined]
