"""Read image files as uint8 RGB: with EXIF orientation, gray, palette, RGBA, CMYK, 16-bit or with several frames."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from retinanet.errors import DataError
from retinanet.files import special_file

_HEIF = frozenset({".heic", ".heif"})

# Whether the extra that reads HEIC and HEIF files is installed.
_READS_HEIF = importlib.util.find_spec("pillow_heif") is not None

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".avif",
        ".mpo",
    }
    | (_HEIF if _READS_HEIF else set())
)

_HEIF_REMEDY = "install retinanet[heic] to read them"
_VIDEO_REMEDY = "videos; extract their frames, for example with ffmpeg -i FILE frames/%06d.jpg"
_RAW_REMEDY = "convert them to JPEG or PNG"

# Files that hold images but are not read, by suffix, with what to do about them.
UNREAD_SUFFIXES = (
    ({} if _READS_HEIF else dict.fromkeys(_HEIF, _HEIF_REMEDY))
    | dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"), _VIDEO_REMEDY)
    | dict.fromkeys((".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".psd", ".svg"), _RAW_REMEDY)
)

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


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image that can be read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def unread_files(names: Iterable[str]) -> Iterator[str]:
    """Count the files that hold images but cannot be read: a sentence for each kind, such as HEIC files."""
    found: dict[str, Counter[str]] = {}
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        if remedy := UNREAD_SUFFIXES.get(suffix):
            found.setdefault(remedy, Counter())[suffix[1:].upper()] += 1
    for remedy, counts in found.items():
        files = " and ".join(f"{count} {kind} file{'s' * (count != 1)}" for kind, count in counts.items())
        yield f"{files} left out: {remedy}"


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
    suffix = path.suffix.lower()
    if suffix in UNREAD_SUFFIXES and path.exists():
        raise DataError(f"{path}: {suffix[1:].upper()} files are not read: {UNREAD_SUFFIXES[suffix]}")
    if suffix in _HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()
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
