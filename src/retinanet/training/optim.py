"""Optimizer, learning-rate schedule and EMA of the weights; progress is counted in images seen, not in steps."""

from __future__ import annotations

import math
from itertools import compress

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from retinanet.config import TrainConfig
from retinanet.model import RetinaNet

# Batch size that the learning rate and the EMA decay refer to: the paper's 16 images per step.
REFERENCE_BATCH = 16


def make_optimizer(model: RetinaNet, config: TrainConfig) -> torch.optim.Optimizer:
    """Return SGD or AdamW for the trainable parameters; each group's ``factor`` scales the learning rate.

    Biases are the parameters named ``bias``, of convolutions and of norms. The paper does not mention them. The code of
    its authors doubles their learning rate and does not decay them: ``bias_lr = 2``, ``bias_decay = False``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = name.endswith("bias")
        factor = (config.backbone_lr if name.startswith("backbone.") else 1.0) * (config.bias_lr if is_bias else 1.0)
        # AdamW's decoupled decay would harm norm weights and biases, the one-dimensional parameters.
        exempt = (config.optimizer == "adamw" and parameter.ndim <= 1) or (is_bias and not config.bias_decay)
        groups.setdefault((factor, 0.0 if exempt else config.weight_decay), []).append(parameter)
    parameters = [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def learning_rate(config: TrainConfig, seen: int, total: int) -> float:
    """Learning rate for the next batch, after ``seen`` of ``total`` images.

    The rate rises linearly from a thousandth of ``lr`` (warm-up). Then ``step`` divides it by 10 at 2/3 and at 8/9 (the
    paper's 60k and 80k of 90k steps), and ``cosine`` lowers it along half a cosine to 0. The rate is proportional to
    the batch size (https://arxiv.org/abs/1706.02677).
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
    """Exponential moving average (EMA) of a model's weights and buffers; integer buffers are copied.

    The decay rises from 0 to its configured value, so that the random initial weights soon lose their influence.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the weights after a step.

        This replaces PyTorch's own update, which copies its counter to the GPU at every step and waits for the copy.
        """
        done = int(self.n_averaged)  # on the CPU
        share = 1 - min((1 + done) / (10 + done), self.decay) if done else 1.0
        own, new = ([*of.parameters(), *of.buffers()] for of in (self.module, model))
        floating = [tensor.is_floating_point() for tensor in own]
        torch._foreach_lerp_(list(compress(own, floating)), list(compress(new, floating)), share)
        counters = [not is_floating for is_floating in floating]
        if any(counters):
            torch._foreach_copy_(list(compress(own, counters)), list(compress(new, counters)))
        self.n_averaged += 1


def make_average(model: nn.Module, config: TrainConfig) -> MovingAverage | None:
    """Create the EMA for ``config.ema``, a decay per :data:`REFERENCE_BATCH` images; None if it is unset."""
    return None if config.ema is None else MovingAverage(model, config.ema ** (config.batch / REFERENCE_BATCH))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to ``lr`` times its ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
