"""Read image files as uint8 RGB: with EXIF orientation, gray, palette, RGBA, CMYK, 16-bit or with several frames."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from retinanet.errors import DataError
from retinanet.files import special_file

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jfif"})

# The limit at which Pillow refuses a file. An image of this size takes half a gigabyte of memory. A larger file is
# malicious or should be cut into tiles.
MAX_PIXELS = 178_000_000

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path, expected_size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Read an image file as uint8 RGB ``(H, W, 3)``.

    If a file has several frames, the first is read. An alpha channel is dropped, 16-bit values are divided by 257, and
    floating-point values are scaled from [0, 1]. EXIF orientation is applied, unless ``expected_size`` shows that the
    annotations refer to the unrotated pixels.

    Args:
        path: the file.
        expected_size: ``(width, height)`` that the annotations refer to.

    Raises:
        DataError: the file is missing, corrupt, not an image, or has more than ``MAX_PIXELS``.
    """
    with _open(path) as image:
        try:
            return to_rgb(image, expected_size)
        except Exception as error:  # Pillow's decoders also raise struct.error, KeyError, MemoryError …
            raise DataError(f"{path}: cannot be decoded ({_reason(error)}); replace or remove the file") from error


def to_rgb(image: Image.Image, expected_size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image to uint8 RGB ``(H, W, 3)``, as :func:`read_image` does."""
    turn = _TURNS.get(_orientation(image))  # ImageOps.exif_transpose fails if another tag is broken
    width, height = image.size
    if turn is not None and not (expected_size == (width, height) and width != height and _swaps_sides(image)):
        image = image.transpose(turn)
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


def image_size(path: Path) -> tuple[int, int]:
    """Return the ``(width, height)`` that :func:`read_image` would give, from the file header.

    Raises:
        DataError: the file is missing or not an image.
    """
    with _open(path) as image:
        width, height = image.size
        return (height, width) if _swaps_sides(image) else (width, height)


def read_thumbnail(
    path: Path, expected_size: tuple[int, int], side: int
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Decode a whole image as cheaply as possible, and scale it to a gray square.

    Args:
        path: the file.
        expected_size: ``(width, height)`` that the annotations refer to.
        side: side of the square in pixels.

    Returns:
        uint8 ``(side, side)``, and the ``(width, height)`` that :func:`read_image` would give.

    Raises:
        DataError: as :func:`read_image`.
    """
    with _open(path) as image:
        found = image.size
        try:
            if _swaps_sides(image) and found != expected_size:
                found = found[::-1]
            image.draft("L", (4 * side, 4 * side))  # JPEG: reads every byte but computes few pixels
            gray = Image.fromarray(to_rgb(image, expected_size if found == expected_size else None)).convert("L")
            return np.array(gray.resize((side, side), Image.Resampling.BOX)), found
        except Exception as error:  # as in read_image
            raise DataError(f"{path}: cannot be decoded ({_reason(error)}); replace or remove the file") from error


def _swaps_sides(image: Image.Image) -> bool:
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block raises many kinds of errors; the pixels may be fine
        return 1


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
