"""Choose the images of each batch. The choice depends on seed, epoch and batch only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset

Factors = np.ndarray[Any, np.dtype[np.float64]]


def sampling_factors(dataset: Dataset, config: DataConfig, images: float | None = None) -> Factors:
    """Mean number of times that each image appears in an epoch: float64 ``(N,)``, 1 by default.

    Rare classes: a class that is present in a fraction f of the images has the factor
    max(1, √(``config.repeat_rare`` / f)), and an image has the factor of its rarest class (repeat-factor sampling,
    https://arxiv.org/abs/1908.03195, appendix A). Background: images without objects appear less often, so that they
    make up at most a fraction ``config.background_limit`` of an epoch.

    Args:
        dataset: the images.
        config: its ``repeat_rare`` and ``background_limit`` are used.
        images: number of images that f refers to; if unset, all images of ``dataset``.
    """
    factors = np.ones(len(dataset))
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[~dataset.ignore]
    labels = dataset.labels[~dataset.ignore]
    if config.repeat_rare > 0 and len(labels):
        pairs = np.unique(np.stack([owner, labels]), axis=1)  # count each class once per image
        share = np.bincount(pairs[1], minlength=len(dataset.classes)) / (images or len(dataset))
        of_class = np.maximum(1, np.sqrt(config.repeat_rare / np.maximum(share, 1e-12)))
        np.maximum.at(factors, pairs[0], of_class[pairs[1]])
    limit = config.background_limit
    if limit is not None:
        empty = np.ones(len(dataset), dtype=bool)
        empty[owner] = False
        wanted = limit / (1 - limit) * factors[~empty].sum()
        if empty.any() and empty.sum() > wanted:
            factors[empty] = wanted / empty.sum()
    return factors


class TrainingOrder(Sampler[list[tuple[int, int, int]]]):
    """Batches of a training, starting at step ``start``.

    A batch is a list of (epoch, number of the batch in the epoch, image index).

    Each epoch is a new shuffle of the same length. Portrait and landscape images are in separate batches, which saves
    padding. Each image appears as often as its factor says; the fractional part adds an appearance in some epochs.

    Args:
        dataset: the images.
        batch: images per step, on all ranks together.
        epochs: passes over the dataset.
        seed: fixes the order.
        start: number of finished steps, for resuming.
        factors: mean number of appearances of each image per epoch, see :func:`sampling_factors`. If unset, each image
            appears once.
        rank: rank of this process. It gets every ``world_size``-th image of a batch, possibly no image.
        world_size: number of ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch: int,
        epochs: int,
        seed: int,
        start: int = 0,
        factors: Factors | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batch, self.epochs, self.seed, self.start = batch, epochs, seed, start
        self.rank, self.world_size = rank, world_size
        portrait = dataset.sizes[:, 1] > dataset.sizes[:, 0]
        self._factors = np.ones(len(dataset)) if factors is None else factors.copy()
        self._groups = [group for group in (portrait, ~portrait) if self._factors[group].sum() > 0]
        totals = [max(1, round(float(self._factors[group].sum()))) for group in self._groups]
        for group, total in zip(self._groups, totals, strict=True):
            self._factors[group] *= total / self._factors[group].sum()
        self.images_per_epoch: int = sum(totals)
        self.steps_per_epoch: int = sum(-(-total // batch) for total in totals)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch, number, images in self._remaining():
            yield [(epoch, number, index) for index in images[self.rank :: self.world_size]]

    def lengths(self) -> Iterator[int]:
        """Number of images of each remaining batch, on all ranks together."""
        return (len(images) for _, _, images in self._remaining())

    def images_before(self, step: int) -> int:
        """Number of images in the first ``step`` batches, on all ranks together."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.images_per_epoch + (sum(map(len, self.batches(epochs)[:rest])) if rest else 0)

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as image indices."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._factors))
        batches = []
        for group in self._groups:
            images = self._drawn(order[group[order]], rng)
            batches += [images[i : i + self.batch].tolist() for i in range(0, len(images), self.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _drawn(self, images: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Repeat each of ``images`` ⌊factor⌋ or ⌈factor⌉ times, in random order.

        Systematic sampling keeps the total number of appearances the same in every epoch.
        """
        factors = self._factors[images]
        if (factors == 1).all():
            return images
        ends = np.floor(np.cumsum(factors) + rng.random())
        ends[-1] = round(factors.sum())  # equals the sum of the factors, apart from rounding errors
        return rng.permutation(np.repeat(images, np.diff(ends, prepend=0).astype(np.int64)))

    def _remaining(self) -> Iterator[tuple[int, int, list[int]]]:
        first, skip = divmod(self.start, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            done = skip if epoch == first else 0
            for number, images in enumerate(self.batches(epoch)[done:], start=done):
                yield epoch, number, images
