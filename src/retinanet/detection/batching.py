"""Divide a sequence of images into batches of one padded size, with a limited number of images that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from retinanet.detection.detector import Pixels
from retinanet.detection.input_images import InputImage
from retinanet.detection.input_sizes import InputSizes
from retinanet.detections import Detections

# Limits of the images that wait for others of their padded size, or for the result of an earlier image.
_WAITING_IMAGES, _WAITING_PIXELS = 64, 64_000_000


@dataclass(frozen=True)
class Task:
    """An image to detect objects in.

    Attributes:
        image: the image.
        done: whether an earlier run has recorded its result.
        size: for such an image, its ``(height, width)``; ``None`` if it could not be read.
    """

    image: InputImage
    done: bool = False
    size: tuple[int, int] | None = None


@dataclass(eq=False)
class Item:
    """An image on its way.

    Attributes:
        task: the image.
        size: its ``(height, width)``; ``None`` if it could not be read.
        scaled: the input of the network.
        pixels: uint8 RGB ``(H, W, 3)`` if they are kept.
        error: why it could not be read.
        found: its detections.
        finished: whether it has its detections, or needs none.
    """

    task: Task
    size: tuple[int, int] | None = None
    scaled: Pixels | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    error: str | None = None
    found: Detections | None = None
    finished: bool = False


AnyItem = TypeVar("AnyItem", bound=Item)


@dataclass
class Window(Generic[AnyItem]):
    """The images that are not finished, and those after them, in order.

    Attributes:
        sizes: sizes of images in the input of the network.
        batch: number of images of a full batch.
    """

    sizes: InputSizes
    batch: int
    _items: deque[AnyItem] = field(default_factory=deque)
    _groups: dict[tuple[int, int], list[AnyItem]] = field(default_factory=dict)
    _ready: deque[AnyItem] = field(default_factory=deque)
    _pixels: int = 0

    def add(self, item: AnyItem) -> Iterator[list[AnyItem]]:
        """Add an image; yield the batches that have to be detected now, each after the one before is finished."""
        self._items.append(item)
        if item.size is None:
            item.finished = True
        else:
            self._pixels += item.size[0] * item.size[1]
            size = self.sizes.padded(*item.size)
            self._groups.setdefault(size, []).append(item)
            if len(self._groups[size]) == self.batch:
                yield self._groups.pop(size)
        self._release()
        while len(self._items) > _WAITING_IMAGES or (self._items and self._pixels > _WAITING_PIXELS):
            yield self._oldest_group()
            self._release()

    def rest(self) -> Iterator[list[AnyItem]]:
        """Yield the batches of all images that are left."""
        while self._groups:
            yield self._oldest_group()
        self._release()

    def finished(self) -> Iterator[AnyItem]:
        """Yield finished images without a gap, in order."""
        while self._ready:
            yield self._ready.popleft()

    def _oldest_group(self) -> list[AnyItem]:
        return self._groups.pop(next(iter(self._groups)))  # a dictionary keeps the order in which groups began

    def _release(self) -> None:
        while self._items and self._items[0].finished:
            item = self._items.popleft()
            self._pixels -= 0 if item.size is None else item.size[0] * item.size[1]
            self._ready.append(item)
