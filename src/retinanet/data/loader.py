"""Load batches: worker processes decode the images, in an order that depends on the seed only."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import batches_of_one_padded_size, scaled_size
from retinanet.data.images import read_image
from retinanet.data.sample import Sample
from retinanet.data.sampling import TrainingOrder
from retinanet.data.tile_pixels import TilePixels
from retinanet.data.training_tiles import TrainingTiles
from retinanet.data.transforms import cut_ground_truth, resize, training_view
from retinanet.data.verify import other_size
from retinanet.data.workers import Workers
from retinanet.errors import DataError
from retinanet.machine import cores

# An image that became unreadable is replaced by another. If this many images in a row are unreadable, the disk may be
# gone, and loading stops.
_TRIES = 8


@dataclass
class Batch:
    """Samples of one step: ``images`` of any size, and the boxes, labels, ignore regions and index of each image.

    ``unreadable`` holds the errors of unreadable images; other images replace these in the batch. ``remarks`` holds
    notes about images, such as an unexpected size.
    """

    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]
    ignore: list[Tensor]
    indices: list[int]
    unreadable: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, samples: list[Sample]) -> Batch:
        """Collate samples."""
        return cls(
            [s.image for s in samples],
            [s.boxes for s in samples],
            [s.labels for s in samples],
            [s.ignore for s in samples],
            [s.index for s in samples],
            [message for s in samples for message in s.instead_of],
            [s.remark for s in samples if s.remark],
        )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """``(height, width)`` of each image."""
        return [(image.shape[-2], image.shape[-1]) for image in self.images]

    def __getitem__(self, images: slice) -> Batch:
        """Select some of the images."""
        columns = (getattr(self, name)[images] for name in ("images", "boxes", "labels", "ignore", "indices"))
        return Batch(*columns)


@dataclass(frozen=True, eq=False)
class TileSource:
    """Tiles and where their pixels are read from."""

    tiles: TrainingTiles
    pixels: TilePixels

    def __len__(self) -> int:
        return len(self.tiles)

    def path(self, index: int) -> Path:
        """Path of the image of tile ``index``."""
        return self.tiles.dataset.path(int(self.tiles.images[index]))


# Epoch, number of the batch in the epoch, and index of an image or a tile.
_Key = tuple[int, int, int]


@dataclass
class _TrainingImages:
    source: Dataset | TileSource
    config: DataConfig
    seed: int

    def __call__(self, keys: list[_Key]) -> list[Sample | DataError]:
        return [self._view(*key) for key in keys]

    def _view(self, epoch: int, number: int, index: int) -> Sample | DataError:
        # All images of a batch have one scale. With individual scales, all would be padded to the largest image.
        scale = random.Random(f"{self.seed}/{epoch}/batch {number}").uniform(*self.config.scale)
        rng = random.Random(f"{self.seed}/{epoch}/{number}/{index}")
        unreadable: list[str] = []
        for _ in range(_TRIES):
            try:
                sample = training_view(self._load(index, rng), self.config, rng, scale)
            except DataError as error:
                unreadable.append(str(error))
                index = rng.randrange(len(self.source))
                continue
            sample.instead_of = tuple(dict.fromkeys(unreadable))
            return sample
        return DataError(f"{_TRIES} images in a row cannot be read; check their disk. The first: {unreadable[0]}")

    def _load(self, index: int, rng: random.Random) -> Sample:
        if isinstance(self.source, TileSource):
            return load_tile(self.source, index, rng)
        sample = load_sample(self.source, index)
        if self.config.verify == "never":  # otherwise the check before training has printed the note
            sample.remark = other_size(self.source, index, sample.size) or ""
        return sample


@dataclass
class _EvaluationImages:
    dataset: Dataset
    config: DataConfig

    def __call__(self, indices: list[int]) -> list[Sample | DataError]:
        return [self._view(index) for index in indices]

    def _view(self, index: int) -> Sample | DataError:
        try:
            return resize(load_sample(self.dataset, index), self.config)
        except DataError as error:
            return error


def load_sample(dataset: Dataset, index: int) -> Sample:
    """Read image ``index`` with its ground truth.

    Raises:
        DataError: the image cannot be read.
    """
    pixels = read_image(dataset.path(index), dataset.pixel_range)
    return _with_ground_truth(dataset, index, pixels, (pixels.shape[1], pixels.shape[0]))


def load_tile(source: TileSource, index: int, rng: random.Random) -> Sample:
    """Read tile ``index`` at a random place of its image, with its ground truth; see :func:`cut_ground_truth`.

    Raises:
        DataError: the image cannot be read, or its size differs from that in the annotations.
    """
    tiles, window = source.tiles, source.tiles.window(index, rng)
    dataset, image = tiles.dataset, int(tiles.images[index])
    width, height = dataset.sizes[image].tolist()
    sample = _with_ground_truth(dataset, image, source.pixels.read(image, window), (width, height))
    return cut_ground_truth(sample, (window.top, window.left), tiles.config.visible)


def _with_ground_truth(dataset: Dataset, index: int, pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> Sample:
    rows = dataset.rows(index)
    ignored = dataset.ignore[rows]
    boxes = torch.from_numpy(dataset.boxes[rows])
    return Sample(
        image=torch.from_numpy(pixels).permute(2, 0, 1),
        boxes=boxes[~torch.from_numpy(ignored)],
        labels=torch.from_numpy(dataset.labels[rows][~ignored].astype(np.int64)),
        ignore=boxes[torch.from_numpy(ignored)],
        image_id=int(dataset.image_ids[index]),
        index=index,
        size=size,
    )


def training_loader(
    source: Dataset | TileSource,
    order: TrainingOrder,
    config: DataConfig,
    seed: int,
    pin_memory: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Yield a :class:`Batch` per step of ``order``, which draws images, or tiles of images, from ``source``.

    An unreadable image is replaced by another image.

    With ``pin_memory``, a thread moves the images to pinned memory, so that copies to a GPU do not block the CPU. While
    no image arrives, ``stop`` is asked whether to end early. If a worker process dies, a remark of the next batch says
    so.

    Raises:
        DataError: many images in a row can no longer be read, or an image crashes the processes that read it.
    """
    remarks: list[str] = []
    load = _TrainingImages(source, config, seed)
    workers = Workers(
        load,
        worker_count(config),
        warn=lambda message: remarks.append(f"{message}. Fewer --data.workers need less memory"),
        describe=lambda keys: _named(source, [index for _, _, index in keys]),
        on_arrival=_pinned if pin_memory else _unchanged,
        stop=stop,
    )
    for samples in workers.run(order):
        batch = Batch.of(_readable(samples))
        batch.remarks += remarks
        remarks.clear()
        yield batch


def _unchanged(samples: list[Sample | DataError]) -> list[Sample | DataError]:
    return samples


def _pinned(samples: list[Sample | DataError]) -> list[Sample | DataError]:
    return [sample.pin_memory() if isinstance(sample, Sample) else sample for sample in samples]


def _named(source: Dataset | TileSource, indices: list[int]) -> str:
    """Name the first images."""
    more = f" and {len(indices) - 4} more" if len(indices) > 4 else ""
    return ", ".join(str(source.path(index)) for index in indices[:4]) + more


class Timed:
    """Iterate over batches, and measure the ``seconds`` spent waiting for them."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.seconds = 0.0
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        began = time.monotonic()
        for batch in self._batches:
            self.seconds += time.monotonic() - began
            yield batch
            began = time.monotonic()


def evaluation_loader(
    dataset: Dataset, config: DataConfig, batch: int = 8, unreadable: dict[int, str] | None = None
) -> Iterator[list[Sample]]:
    """Yield lists of :class:`Sample`, every image once.

    All images of a list are padded to the same size. So padding and results do not depend on the batch size.

    Args:
        dataset: the images.
        config: size of the network's input.
        batch: largest number of images in a list.
        unreadable: if given, index and error of each unreadable image are added to it, and the image is left out.

    Raises:
        DataError: an image cannot be read, and ``unreadable`` is not given.
    """
    scaled = [scaled_size(height, width, config) for width, height in dataset.sizes.tolist()]
    batches = batches_of_one_padded_size(scaled, batch, config.pad_to)
    workers = Workers(
        _EvaluationImages(dataset, config),
        worker_count(config) if len(batches) > 1 else 0,
        warn=lambda message: print(f"warning: {message}", file=sys.stderr),
        describe=lambda indices: _named(dataset, indices),
    )
    for indices, samples in zip(batches, workers.run(batches), strict=True):
        if unreadable is not None:
            failed = {i: str(s) for i, s in zip(indices, samples, strict=True) if isinstance(s, DataError)}
            unreadable.update(failed)
            samples = [sample for sample in samples if not isinstance(sample, DataError)]
        if samples:
            yield _readable(samples)


def _readable(samples: list[Sample | DataError]) -> list[Sample]:
    """Return the samples, or raise the first error among them.

    Workers return errors instead of raising them, because PyTorch would add the worker's traceback to the message.
    """
    readable = []
    for sample in samples:
        if isinstance(sample, DataError):
            raise sample
        readable.append(sample)
    return readable


def worker_count(config: DataConfig) -> int:
    """Number of worker processes: the configured number, or half of the available cores but at most 8."""
    if config.workers is not None:
        return config.workers
    return min(8, max(1, cores() // 2))
