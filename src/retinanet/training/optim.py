"""Optimiser, learning-rate schedule and weight averaging, all counted in images seen rather than in steps."""

from __future__ import annotations

import math
from itertools import compress

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from retinanet.config import TrainConfig
from retinanet.model import RetinaNet

# The batch that learning rate and averaging decay refer to: the paper's 16 images per step.
REFERENCE_BATCH = 16


def make_optimizer(model: RetinaNet, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; each group's ``factor`` scales the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = config.backbone_lr if name.startswith("backbone.") else 1.0
        # Decoupled decay is strong; shrinking norm weights and biases with it only hurts (one-dimensional parameters).
        exempt = config.optimizer == "adamw" and parameter.ndim <= 1
        groups.setdefault((factor, 0.0 if exempt else config.weight_decay), []).append(parameter)
    parameters = [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def learning_rate(config: TrainConfig, seen: int, total: int) -> float:
    """Learning rate for the next batch, after ``seen`` of ``total`` images.

    Linear warm-up from a thousandth, then ``step``: ÷ 10 at 2/3 and at 8/9 (the paper's 60k and 80k of 90k steps), or
    ``cosine``: half a cosine to 0. In proportion to the batch, https://arxiv.org/abs/1706.02677.
    """
    base = config.lr * config.batch / REFERENCE_BATCH
    warmup = min(config.warmup, total // 10)
    if seen < warmup:
        return base * (0.001 + 0.999 * seen / warmup)
    if config.schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * (seen - warmup) / max(1, total - warmup)))
    done = seen / total
    return base * 0.1 ** ((done >= 2 / 3) + (done >= 8 / 9))


class MovingAverage(AveragedModel):
    """Exponential moving average of a model's weights and buffers; one that is no floating-point number is copied.

    The decay rises from 0 to its value, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights after a step.

        PyTorch's own update sends its counter to the GPU at every step and waits until it is there.
        """
        done = int(self.n_averaged)  # is on the CPU
        share = 1 - min((1 + done) / (10 + done), self.decay) if done else 1.0
        own, new = ([*of.parameters(), *of.buffers()] for of in (self.module, model))
        learnt = [tensor.is_floating_point() for tensor in own]
        torch._foreach_lerp_(list(compress(own, learnt)), list(compress(new, learnt)), share)
        for average, value, averaged in zip(own, new, learnt, strict=True):
            if not averaged:
                average.copy_(value)
        self.n_averaged += 1


def make_average(model: nn.Module, config: TrainConfig) -> MovingAverage | None:
    """The average of ``config.ema``, a decay for :data:`REFERENCE_BATCH` images a step; None where that is unset."""
    return None if config.ema is None else MovingAverage(model, config.ema ** (config.batch / REFERENCE_BATCH))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group ``lr`` times its ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
