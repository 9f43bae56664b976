"""Pixels of tiles, without decoding a whole image for every tile.

Formats that can be read by window are read by window. Other large images are decoded once into uncompressed files, from
which a tile is read in about a millisecond.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset
from retinanet.data.deep_pixels import PixelRange
from retinanet.data.images import read_image
from retinanet.data.tiff_blocks import tiff_blocks
from retinanet.data.windows import Window, WindowReader, open_windows
from retinanet.errors import DataError, RetinaNetError
from retinanet.files import write_atomically
from retinanet.machine import cores

# A TIFF file is read by window if its blocks that a tile touches have at most this many times the pixels of a tile.
_MOST_DECODED = 16

# An image of up to this many tiles is decoded for every tile; a file would save little time and take much space.
_FEW_TILES = 4

# Rows that are decoded together.
_STRIP = 512

# Bytes that must remain free on the disk, for checkpoints and other programs.
_SPARE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class TilePixels:
    """Reads windows of the images of a dataset.

    Attributes:
        dataset: the images.
        folder: the decoded images, written by :func:`decode_images`. An image that is not there is decoded anew.
    """

    dataset: Dataset
    folder: Path

    def read(self, image: int, window: Window) -> npt.NDArray[np.uint8]:
        """Read a window of image ``image`` as uint8 RGB ``(h, w, 3)``.

        Raises:
            DataError: the image cannot be read, or its size differs from that in the annotations.
        """
        path, pixel_range = self.dataset.path(image), self.dataset.pixel_range
        if reads_tiles(str(path), max(window.height, window.width)):
            reader = _reader(str(path), pixel_range, os.getpid())
            self._require_size(image, reader.size)
            return reader.read(window)
        try:
            pixels = np.load(decoded_file(self.folder, image), mmap_mode="r")
        except (OSError, ValueError):
            pixels = read_image(path, pixel_range)
        self._require_size(image, pixels.shape[:2])
        top, left, height, width = window
        return np.array(pixels[top : top + height, left : left + width])

    def _require_size(self, image: int, found: tuple[int, ...]) -> None:
        width, height = self.dataset.sizes[image].tolist()
        if tuple(found) != (height, width):
            raise DataError(
                f"{self.dataset.path(image)}: the image has {found[1]}×{found[0]} pixels, its annotations say "
                f"{width}×{height}; correct the annotations, or leave out data.tile"
            )


@lru_cache(maxsize=1 << 16)
def reads_tiles(path: str, tile: int) -> bool:
    """Whether a tile of an image file can be read anywhere without decoding much else: from most TIFF files."""
    if os.path.splitext(path)[1].lower() not in (".tif", ".tiff"):
        return False
    try:
        blocks = tiff_blocks(Path(path), path)
    except (DataError, OSError):  # reported when the image is decoded
        return False
    if blocks is None:
        return False
    blocks.close()
    touched = [(-(-tile // side) + 1) * side for side in blocks.block]
    covered = [min(length, side) for length, side in zip(blocks.size, touched, strict=True)]
    return covered[0] * covered[1] <= _MOST_DECODED * tile**2


@lru_cache(maxsize=4)
def _reader(path: str, pixel_range: PixelRange | None, process: int) -> WindowReader:
    """Open a file once. A forked process opens it anew, because it would share the position in the file."""
    return open_windows(path, pixel_range)


def decoded_file(folder: Path, image: int) -> Path:
    """Path of the decoded pixels of an image."""
    return folder / f"{image}.npy"


def _decode(dataset: Dataset, image: int, file: Path) -> None:
    """Write the pixels of an image in the format of ``np.save``, strip by strip if they can be decoded so."""
    with open_windows(dataset.path(image), dataset.pixel_range) as reader, file.open("wb") as out:
        height, width = reader.size
        header = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
        np.lib.format.write_array_header_1_0(out, header)
        for top in range(0, height, _STRIP):  # not into mapped memory: a full disk would end the process
            out.write(reader.read(Window(top, 0, min(_STRIP, height - top), width)).tobytes())


def images_to_decode(dataset: Dataset, tile: int) -> list[int]:
    """Select the images that :func:`decode_images` should decode: large, and in a format without windows."""
    large = dataset.sizes.prod(axis=1, dtype=np.int64) > _FEW_TILES * tile**2
    return [i for i in np.flatnonzero(large).tolist() if not reads_tiles(str(dataset.path(i)), tile)]


def decoded_bytes(dataset: Dataset, images: Sequence[int]) -> int:
    """Size of the decoded ``images`` in bytes."""
    return 3 * int(dataset.sizes[list(images)].prod(axis=1, dtype=np.int64).sum())


def require_room(folder: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit onto the disk of ``folder``.

    Raises:
        RetinaNetError: they do not fit.
    """
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise RetinaNetError(
            f"{folder}: the decoded images need {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free on this "
            "disk; free some space, choose a folder on another disk, or convert the images to tiled TIFF, which needs "
            "no decoded copy"
        )


def decode_images(
    dataset: Dataset, images: Sequence[int], folder: Path, progress: Callable[[int], object] = lambda images: None
) -> None:
    """Write the pixels of ``images`` to ``folder``. An image that cannot be read is left out.

    Args:
        dataset: the images.
        images: positions in ``dataset``.
        folder: see :func:`decoded_file`.
        progress: called with the number of images just written.

    Raises:
        RetinaNetError: a file cannot be written.
    """

    def decode(image: int) -> None:
        with suppress(DataError):  # reported when a tile of it is read
            write_atomically(decoded_file(folder, image), partial(_decode, dataset, image))

    with ThreadPoolExecutor(max_workers=min(4, max(1, cores()))) as pool:  # Pillow releases the GIL while it decodes
        for _ in pool.map(decode, images):
            progress(1)
