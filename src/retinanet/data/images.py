"""Read image files as uint8 RGB: with EXIF orientation, gray, palette, RGBA, CMYK, 16-bit, float, several frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.blocks import Blocks
from retinanet.data.deep_pixels import PixelRange, Spread, deep_values, inverted, is_deep, spread_of, to_8_bits
from retinanet.data.exif import Header, header_of_image, quick_header, turned_pixels, upright
from retinanet.data.open_images import MAX_PIXELS, cannot_decode, open_any_image, open_image
from retinanet.data.rgb import plain_rgb
from retinanet.errors import DataError
from retinanet.files import special_file


def read_image(
    path: str | Path, pixel_range: PixelRange | None = None, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Read an image file as uint8 RGB ``(H, W, 3)``, turned as its EXIF orientation says.

    If a file has several frames, the first is read. An alpha channel is dropped. Values with more than 8 bits are
    scaled.

    Args:
        path: the file.
        pixel_range: values that become 0 and 255 in images with more than 8 bits per value. Unset: chosen from the
            values of the image, see :mod:`retinanet.data.deep_pixels`.
        max_pixels: largest number of pixels of the image.

    Raises:
        DataError: the file is missing, corrupt, not an image, or has more than ``max_pixels``.
    """
    return _decoded(Path(path), str(path), pixel_range, max_pixels)


def decode_image(
    content: bytes, where: str, pixel_range: PixelRange | None = None, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decode the bytes of an image file as :func:`read_image` does; ``where`` names the image in messages.

    Raises:
        DataError: the content is corrupt, not an image, or has more than ``max_pixels``.
    """
    return _decoded(content, where, pixel_range, max_pixels)


def _decoded(
    source: Path | bytes, where: str, pixel_range: PixelRange | None, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    with open_any_image(source, where, max_pixels) as image:
        try:
            return rgb_of_blocks(image, pixel_range) if isinstance(image, Blocks) else to_rgb(image, pixel_range)
        except Exception as error:  # Pillow's decoders also raise struct.error, KeyError, MemoryError …
            raise cannot_decode(where, error) from error


def content_size(content: bytes, where: str) -> tuple[int, int]:
    """Return the ``(width, height)`` that :func:`decode_image` would give, from the header of the file.

    Raises:
        DataError: the content is not an image, or has more than ``MAX_PIXELS``.
    """
    return _header(content, where).upright


def _header(source: Path | bytes, where: str) -> Header:
    found = quick_header(source)
    if found is not None and found.stored[0] * found.stored[1] <= MAX_PIXELS:
        return found
    with open_any_image(source, where) as image:
        if isinstance(image, Blocks):
            return Header((image.size[1], image.size[0]), image.orientation)
        return opened_header(image, where)


def opened_header(image: Image.Image, where: object) -> Header:
    """Return the header of an image that Pillow has opened; ``where`` names the image in messages.

    Raises:
        DataError: the pixels were needed for it, and cannot be decoded.
    """
    try:
        return header_of_image(image)
    except Exception as error:  # as in _decoded
        raise cannot_decode(where, error) from error


def to_rgb(image: Image.Image, pixel_range: PixelRange | None = None) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image to uint8 RGB ``(H, W, 3)``, as :func:`read_image` does."""
    if is_deep(image):
        return to_8_bits(deep_values(image), pixel_range, inverted(image))
    return plain_rgb(upright(image))


def image_header(path: Path) -> Header:
    """Return the size and the EXIF orientation of an image file, without decoding its pixels.

    Raises:
        DataError: the file is missing or not an image.
    """
    if special_file(path):  # opening a pipe would wait forever
        open_image(path)  # raises the error that says so
    return _header(path, str(path))


def header_or_none(path: str) -> Header | None:
    """Return :func:`image_header`, or ``None`` if the file cannot be read."""
    try:
        return image_header(Path(path))
    except DataError:
        return None


def image_size(path: Path) -> tuple[int, int]:
    """Return the ``(width, height)`` that :func:`read_image` would give, from the file header.

    Raises:
        DataError: the file is missing or not an image.
    """
    return image_header(path).upright


def pixel_spread(path: Path) -> Spread | None:
    """Measure the values of an image with more than 8 bits per value; ``None`` for all other images.

    Raises:
        DataError: the file is missing or not an image.
    """
    with open_any_image(path, str(path)) as image:
        try:
            if isinstance(image, Blocks):
                return spread_of(_floats(image)) if image.deep else None
            return spread_of(deep_values(image)) if is_deep(image) else None
        except Exception as error:  # as in _decoded
            raise cannot_decode(path, error) from error


def rgb_of_blocks(blocks: Blocks, pixel_range: PixelRange | None) -> npt.NDArray[np.uint8]:
    """Decode all blocks to uint8 RGB ``(H, W, 3)``, as :func:`read_image` does."""
    if not blocks.deep:
        return np.ascontiguousarray(turned_pixels(blocks.whole().astype(np.uint8, copy=False), blocks.orientation))
    if pixel_range is None:
        pixels = to_8_bits(_floats(blocks), None, blocks.inverted)
    else:  # row by row, because four times as many bytes would be needed for the values
        rows = (blocks.row_of_blocks(row).astype(np.float32, copy=False) for row in range(blocks.grid[0]))
        pixels = np.concatenate([to_8_bits(row, pixel_range, blocks.inverted) for row in rows])
    return np.ascontiguousarray(turned_pixels(pixels, blocks.orientation))


def _floats(blocks: Blocks) -> npt.NDArray[np.float32]:
    return blocks.whole().astype(np.float32, copy=False)
