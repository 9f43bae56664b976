"""Read image files as uint8 RGB: with EXIF orientation, gray, palette, RGBA, CMYK, 16-bit or with several frames."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from retinanet.data.exif import Header, header_of_image, quick_header, upright
from retinanet.errors import DataError
from retinanet.files import special_file

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jfif"})

# The limit at which Pillow refuses a file. An image of this size takes half a gigabyte of memory. A larger file is
# malicious or should be cut into tiles.
MAX_PIXELS = 178_000_000


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as uint8 RGB ``(H, W, 3)``, turned as its EXIF orientation says.

    If a file has several frames, the first is read. An alpha channel is dropped, 16-bit values are divided by 257, and
    floating-point values are scaled from [0, 1].

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, corrupt, not an image, or has more than ``MAX_PIXELS``.
    """
    with _open(path) as image:
        try:
            return to_rgb(image)
        except Exception as error:  # Pillow's decoders also raise struct.error, KeyError, MemoryError …
            raise DataError(f"{path}: cannot be decoded ({_reason(error)}); replace or remove the file") from error


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image to uint8 RGB ``(H, W, 3)``, as :func:`read_image` does."""
    image = upright(image)
    if image.mode.startswith("I"):  # 16-bit files; Pillow reads some of them as 32 bits
        values = np.asarray(image).astype(np.float32)
        gray = np.clip(np.rint(values / 257.0), 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        scale = 255.0 if values.size and values.max() <= 1.0 else 1.0
        gray = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def image_header(path: Path) -> Header:
    """Return the size and the EXIF orientation of an image file, without decoding its pixels.

    Raises:
        DataError: the file is missing or not an image.
    """
    special = special_file(path)  # opening a pipe would wait forever
    found = None if special else quick_header(path)
    if found is not None and found.stored[0] * found.stored[1] <= MAX_PIXELS:
        return found
    with _open(path) as image:
        return header_of_image(image)


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


def read_thumbnail(path: Path, side: int) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Decode a whole image as cheaply as possible, and scale it to a gray square.

    Args:
        path: the file.
        side: side of the square in pixels.

    Returns:
        uint8 ``(side, side)``, and the ``(width, height)`` that :func:`read_image` would give.

    Raises:
        DataError: as :func:`read_image`.
    """
    with _open(path) as image:
        try:
            size = header_of_image(image).upright
            image.draft("L", (4 * side, 4 * side))  # JPEG: reads every byte but computes few pixels
            gray = Image.fromarray(to_rgb(image)).convert("L")
            return np.array(gray.resize((side, side), Image.Resampling.BOX)), size
        except Exception as error:  # as in read_image
            raise DataError(f"{path}: cannot be decoded ({_reason(error)}); replace or remove the file") from error


def _open(path: Path) -> Image.Image:
    if special := special_file(path):
        raise DataError(f"{path}: not an image but {special}; remove it or put the image there")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit below replaces Pillow's warning
            image = Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image file; correct the path or restore the file") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: image too large (limit {MAX_PIXELS / 1e6:.0f} megapixels); cut it into tiles"
        ) from error
    except Exception as error:  # as in read_image
        raise DataError(f"{path}: not a readable image ({_reason(error)}); replace or remove the file") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}×{image.height}"
        image.close()
        raise DataError(f"{path}: {size} is too large (limit {MAX_PIXELS / 1e6:.0f} megapixels); cut it into tiles")
    return image


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message repeats the path
        return "empty, or in an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0][:120] or type(error).__name__
