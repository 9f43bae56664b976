"""The gradients of a training step, for a whole batch or in slices, on one rank or on several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from retinanet.anchors import AnchorGrid, Matches, make_grid, match_batch
from retinanet.config import Config
from retinanet.data.image_sizes import padded_size
from retinanet.data.loader import Batch
from retinanet.data.transforms import normalized_batch
from retinanet.hardware import autocast
from retinanet.losses import Losses, Normalizer, detection_losses
from retinanet.losses.imbalance import Imbalance, loss_shares
from retinanet.model import Outputs, RetinaNet
from retinanet.training.distributed import Processes


class GroundTruth(NamedTuple):
    """Anchors of a batch and their matches, on the CPU, so that reading them never waits for a GPU.

    Attributes:
        grid: the anchors.
        matches: positive and ignored anchors.
        boxes: ``(G, 4)`` of all images.
        labels: int64 ``(G,)``.
    """

    grid: AnchorGrid
    matches: Matches
    boxes: Tensor
    labels: Tensor


def match_ground_truth(batch: Batch, size: tuple[int, int], config: Config) -> GroundTruth:
    """Match the anchors of images padded to ``size``, ``(height, width)``, with the objects of ``batch``.

    If this rank has no images in the step (:func:`_blank`), all anchors are ignored.
    """
    grid = make_grid(config.anchors, size)
    if batch.indices:
        matches = match_batch(grid, batch.boxes, batch.ignore, config.assign)
    else:
        matches = Matches.all_ignored(len(batch.images), len(grid.boxes))
    return GroundTruth(grid, matches, torch.cat(batch.boxes), torch.cat(batch.labels))


def backward(
    network: nn.Module,
    batch: Batch,
    config: Config,
    normalizer: Normalizer,
    dtype: torch.dtype,
    processes: Processes,
    images: int,
    measure_imbalance: bool = False,
) -> tuple[Losses, Imbalance | None]:
    """Add the gradients of a step to ``network``'s parameters.

    All images are padded to one size, and the losses are divided by the number of positive anchors of the whole step.
    So the sum over slices (``config.train.accumulate``) and ranks equals the result of one pass over the whole batch,
    unless batch norm is trained.

    Args:
        network: a :class:`RetinaNet`, possibly wrapped by :meth:`Processes.wrap`.
        batch: this process's share of the images; it may be empty.
        config: all settings.
        normalizer: computes the number that divides the losses.
        dtype: arithmetic of the network.
        processes: the ranks that train together.
        images: number of images in the step, on all ranks.
        measure_imbalance: also measure the loss shares.

    Returns:
        The losses of this rank, detached; their mean over the ranks is the loss of the step. Also the loss shares, or
        None if they were not measured.
    """
    model = network.module if isinstance(network, DistributedDataParallel) else network
    assert isinstance(model, RetinaNet)
    batch = batch if batch.images else _blank()
    device = next(model.parameters()).device
    height, width = processes.largest(*padded_size(batch.sizes, config.data.pad_to))
    each = config.loss.normalizer == "image"
    truth: GroundTruth | None = None
    positives, divisor = 0, None
    total, imbalance = torch.zeros(2, device=device), None
    parts = _parts(len(batch.images), config.train.accumulate)
    for part in parts:
        own = batch[part]
        with _gradients_stay_here(network, part is not parts[-1]):
            pixels = normalized_batch(own.images, model.mean, model.std, device, (height, width))  # (B, 3, H, W)
            with autocast(device, dtype):
                outputs = network(pixels)  # per level logits (B, A_l, K), deltas (B, A_l, 4)
            if truth is None:  # match on the CPU while a GPU computes the network
                truth = match_ground_truth(batch, (height, width), config)
                positives = len(truth.matches.positive)
                divisor = None if each else normalizer(positives)
            grid, matches, boxes, labels = truth
            losses = detection_losses(outputs, grid, matches[part], boxes, labels, config.loss, normalizer, divisor)
            # the mean over a slice's images is weighted by the slice's share of the step's images
            share = len(own.indices) * processes.world_size / images if each else 1.0
            (share * losses.total).backward()  # type: ignore[no-untyped-call]
        total += share * torch.stack([losses.classification.detach(), losses.box.detach()])
        if measure_imbalance:
            found = loss_shares(outputs, grid, matches[part], boxes, labels, config.loss)
            imbalance = found if imbalance is None else imbalance.plus(found)
    return Losses(total[0], total[1], torch.tensor(positives)), imbalance


def forward_alone(model: RetinaNet, batch: Batch, config: Config, dtype: torch.dtype) -> tuple[Outputs, Losses]:
    """Return outputs and losses of ``batch`` without gradients, independent of the other images of its step."""
    device = next(model.parameters()).device
    size = padded_size(batch.sizes, config.data.pad_to)
    truth = match_ground_truth(batch, size, config)
    with torch.no_grad(), autocast(device, dtype):
        outputs = model(normalized_batch(batch.images, model.mean, model.std, device, size))
    # Mined anchors are counted on this rank only, because other ranks may have fewer images.
    alone = Normalizer(replace(config.loss, normalizer="rank"))
    with torch.no_grad():
        return outputs, detection_losses(outputs, *truth, config.loss, alone, 1.0)


def _parts(images: int, count: int) -> list[slice]:
    length = -(-images // count)
    return [slice(start, start + length) for start in range(0, images, length)]


def _blank() -> Batch:
    """Return a blank batch for a rank without images in a step; the rank must still take part in the communication."""
    nothing = torch.zeros(0, 4)
    return Batch([torch.zeros(3, 1, 1, dtype=torch.uint8)], [nothing], [nothing[:, 0].long()], [nothing], [])


@contextlib.contextmanager
def _gradients_stay_here(network: nn.Module, stay: bool) -> Iterator[None]:
    """Exchange gradients between ranks once, after the last slice."""
    if stay and isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    else:
        yield
