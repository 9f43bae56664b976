"""Measurements for the figures, except AP: loss curves (Figure 1), speed (Figure 2), loss distribution (Figure 4)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retinanet.anchors import assign_batch, make_grid
from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import padded_size
from retinanet.data.loader import evaluation_loader
from retinanet.data.transforms import normalized_batch
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.errors import DataError
from retinanet.losses import focal_loss, focal_star_loss
from retinanet.losses.distribution import anchor_losses, cumulative, share_of_hardest
from retinanet.model.inference import for_inference

GAMMAS = (0.0, 0.5, 1.0, 2.0)
HARDEST = (0.001, 0.01, 0.1, 0.2)

# Number of points of each stored curve, and the number of background anchors at which sampling ends (as in the paper).
_POINTS, BACKGROUND_ANCHORS = 501, 10_000_000


def loss_curves() -> dict[str, Any]:
    """Compute the curves of Figure 1 and Figure 5 with the package's loss functions."""
    x_t = torch.linspace(-6, 6, 241, dtype=torch.float64)
    p_t = torch.linspace(0.005, 1, 200, dtype=torch.float64)
    logits = torch.logit(p_t.clamp(max=1 - 1e-9))

    def each(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[float]:
        label = torch.zeros(1, dtype=torch.int64)
        return [round(loss(value.reshape(1, 1), label).item(), 6) for value in x]

    def fl(gamma: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda x, label: focal_loss(x, label, None, gamma)

    def star(gamma: float, beta: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda x, label: focal_star_loss(x, label, None, gamma, beta)

    checked = torch.tensor([0.5, 0.9, 0.968], dtype=torch.float64)
    at = [fl(gamma) for gamma in (0, 2)]
    label = torch.zeros(1, dtype=torch.int64)
    claims = [
        {"p_t": round(p.item(), 3), "ce": at[0](x, label).item(), "fl": at[1](x, label).item()}
        for p, x in ((p, torch.logit(p).reshape(1, 1)) for p in checked)
    ]
    return {
        "p_t": [round(p, 4) for p in p_t.tolist()],
        "fl": {f"{gamma:g}": each(fl(gamma), logits) for gamma in (0, 0.5, 1, 2, 5)},
        "x_t": [round(x, 4) for x in x_t.tolist()],
        "variants": {
            "CE": each(fl(0), x_t),
            "FL, γ = 2": each(fl(2), x_t),
            "FL*, γ = 2, β = 1": each(star(2, 1), x_t),
            "FL*, γ = 4, β = 0": each(star(4, 0), x_t),
        },
        "claims": claims,
    }


def milliseconds(weights: Path, dataset: Dataset, images: int = 30, warm_up: int = 3) -> dict[str, Any]:
    """Time the detector from an image file to its detections, one image at a time, on all threads.

    Returns:
        ``median``, ``low`` and ``high`` (quartiles) in milliseconds, ``images`` and ``threads``.
    """
    detector = load_pytorch(weights)
    paths = [dataset.path(i) for i in _evenly_spaced(len(dataset), images)]
    times = []
    for path in [*paths[:1] * warm_up, *paths]:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the image reaches the limit on detections
            detector(path, score=detector.info.config.decode.score)
        times.append(1000 * (time.perf_counter() - began))
    low, median, high = np.percentile(times[warm_up:], (25, 50, 75))
    rounded = {name: round(float(value), 1) for name, value in (("median", median), ("low", low), ("high", high))}
    return {**rounded, "images": len(paths), "threads": torch.get_num_threads()}


def _evenly_spaced(count: int, wanted: int) -> list[int]:
    """Up to ``wanted`` of ``count`` positions, evenly spaced."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, wanted))})


def loss_distribution(
    weights: Path, dataset: Dataset, progress: Callable[[int], object] = lambda images: None
) -> dict[str, Any]:
    """Compute the cumulative focal loss over the foreground and background anchors of ``dataset`` for ``GAMMAS``.

    Images are used in the order of a seeded shuffle, until there are as many background anchors as in the paper.

    Returns:
        ``images`` (their number); ``foreground`` and ``background``, each with ``anchors`` (their number), ``curves``
        (for each γ, the cumulative loss from the easiest to the hardest anchor, in equal steps) and ``hardest`` (for
        each γ and each fraction in ``HARDEST``, the share of the loss that this fraction of hardest anchors has).

    Raises:
        DataError: no anchor matches an object.
    """
    detector = load_pytorch(weights)
    dataset = dataset.with_classes(detector.classes)
    dataset = dataset.subset(np.random.default_rng(0).permutation(len(dataset)))
    parts: dict[str, list[torch.Tensor]] = {"foreground": [], "background": []}
    images = background = 0
    for part in (dataset.subset([i]) for i in dataset):
        losses = _anchor_losses(detector, part)
        for group, own in zip(parts, losses, strict=True):
            parts[group].append(own)
        images, background = images + 1, background + losses[1].shape[1]
        progress(1)
        if background >= BACKGROUND_ANCHORS:
            break
    result: dict[str, Any] = {"images": images}
    for group, values in parts.items():
        together = torch.cat(values, dim=1)  # (γ, anchors)
        if together.shape[1] == 0:
            raise DataError(f"{dataset.name}: no {group} anchor in {images} images, so its loss has no distribution")
        named = [(f"{gamma:g}", each) for gamma, each in zip(GAMMAS, together, strict=True)]
        result[group] = {
            "anchors": together.shape[1],
            "curves": {name: [round(v, 6) for v in cumulative(each, _POINTS).tolist()] for name, each in named},
            "hardest": {name: {f"{f:g}": round(share_of_hardest(each, f), 4) for f in HARDEST} for name, each in named},
        }
    return result


@torch.inference_mode()
def _anchor_losses(detector: PyTorchDetector, image: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    config = detector.info.config
    ((sample,),) = evaluation_loader(image, config.data)
    size = padded_size([sample.image.shape[-2:]], config.data.pad_to)
    pixels = normalized_batch([sample.image], detector.model.mean, detector.model.std, detector.device, size)
    # compute the losses in float32, because detection may use bf16
    outputs = for_inference(detector.model).to(detector.device)(pixels)
    grid = make_grid(config.anchors, (pixels.shape[-2], pixels.shape[-1]))
    matched = assign_batch(grid, [sample.boxes], [sample.ignore], config.assign)
    losses = anchor_losses(outputs, matched.to(detector.device), sample.labels.to(detector.device), GAMMAS)
    return losses[0].cpu(), losses[1].cpu()
