"""The size of the network's input for an image. It depends on few settings, which other processes can be sent."""

from __future__ import annotations

from dataclasses import dataclass

from retinanet.config import DataConfig
from retinanet.data.image_sizes import padded_size, scaled_size


@dataclass(frozen=True)
class InputSizes:
    """Sizes of images in the input of a network.

    Attributes:
        data: how images are scaled.
        largest: ``(H, W)`` of an input of fixed size; larger images are scaled down to fit in it. ``None``: any size.
    """

    data: DataConfig
    largest: tuple[int, int] | None = None

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Return the ``(height, width)`` that an image is scaled to."""
        scaled = scaled_size(height, width, self.data)
        size = self.largest
        if size is None or (scaled[0] <= size[0] and scaled[1] <= size[1]):
            return scaled
        factor = min(size[0] / height, size[1] / width)
        return max(1, min(size[0], int(height * factor + 0.5))), max(1, min(size[1], int(width * factor + 0.5)))

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the ``(height, width)`` that an image is padded to after it was scaled. Images share a batch only if
        these are equal."""
        return padded_size([self.scaled(height, width)], self.data.pad_to)
