"""Read image files as uint8 RGB: with EXIF orientation, gray, palette, RGBA, CMYK, 16-bit, float, several frames."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from retinanet.data.blocks import Blocks
from retinanet.data.deep_pixels import (
    UNREAD_DEEP_PNG,
    PixelRange,
    Spread,
    deep_values,
    inverted,
    is_deep,
    is_deep_png,
    spread_of,
    to_8_bits,
)
from retinanet.data.exif import Header, header_of_image, quick_header, turned_pixels, upright
from retinanet.data.png_blocks import png_blocks
from retinanet.data.rgb import plain_rgb
from retinanet.data.tiff_blocks import deep_tiff, tiff_blocks
from retinanet.data.tiff_layout import is_tiff
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
_BITS = 258  # TIFF tag: bits per value

_VIDEO_REMEDY = (
    "videos; give each to 'retinanet detect' by its path, or extract its frames, for example with "
    "ffmpeg -i FILE frames/%06d.jpg"
)
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
    with _opened(source, where, max_pixels) as image:
        try:
            return _rgb_of_blocks(image, pixel_range) if isinstance(image, Blocks) else to_rgb(image, pixel_range)
        except Exception as error:  # Pillow's decoders also raise struct.error, KeyError, MemoryError …
            raise _cannot_decode(where, error) from error


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
    with _opened(source, where) as image:
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
        raise _cannot_decode(where, error) from error


def _cannot_decode(where: object, error: Exception) -> DataError:
    return DataError(f"{where}: cannot be decoded ({reason(error)}); replace or remove the file")


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
    with _opened(path, str(path)) as image:
        try:
            if isinstance(image, Blocks):
                return spread_of(_floats(image)) if image.deep else None
            return spread_of(deep_values(image)) if is_deep(image) else None
        except Exception as error:  # as in _decoded
            raise _cannot_decode(path, error) from error


class Thumbnail(NamedTuple):
    """A small version of an image.

    Attributes:
        pixels: uint8 ``(side, side)``, gray.
        size: ``(width, height)`` that :func:`read_image` would give.
        contrast: difference between the brightest and the darkest pixel of the image, 0 to 255.
    """

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]
    contrast: int


def read_thumbnail(path: Path, side: int, pixel_range: PixelRange | None = None) -> Thumbnail:
    """Decode a whole image as cheaply as possible, and scale it to a gray square.

    Args:
        path: the file.
        side: side of the square in pixels.
        pixel_range: as in :func:`read_image`.

    Raises:
        DataError: as :func:`read_image`.
    """
    with _opened(path, str(path)) as image:
        try:
            if isinstance(image, Blocks):
                rgb = _rgb_of_blocks(image, pixel_range)
                size = (rgb.shape[1], rgb.shape[0])
            else:
                size = opened_header(image, path).upright
                image.draft("L", (4 * side, 4 * side))  # JPEG: reads every byte but computes few pixels
                rgb = to_rgb(image, pixel_range)
            gray = Image.fromarray(rgb).convert("L")
            darkest, brightest = gray.getextrema()
            pixels = np.array(gray.resize((side, side), Image.Resampling.BOX))
            return Thumbnail(pixels, size, int(brightest) - int(darkest))  # type: ignore[arg-type]
        except Exception as error:  # as in _decoded
            raise _cannot_decode(path, error) from error


def _opened(source: Path | bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image | Blocks:
    """Open an image file: files that Pillow would not read, or not with all bits, as blocks."""
    try:
        image = open_image(source, max_pixels) if isinstance(source, Path) else _open_content(source, where, max_pixels)
    except DataError:
        blocks = tiff_blocks(source, where) if is_tiff(source) else None
        if blocks is not None and blocks.size[0] * blocks.size[1] <= max_pixels:
            return blocks
        if blocks is not None:
            blocks.close()
        raise
    blocks = None
    if image.format == "TIFF" and image.width * image.height > MAX_PIXELS:  # Pillow opens it, but does not decode it
        blocks = tiff_blocks(source, where)
    elif is_deep_tiff(image):
        blocks = deep_tiff(source, where)
    elif is_deep_png(image):
        blocks = png_blocks(source)
        if blocks is None:
            image.close()
            raise _cannot_decode(where, ValueError(UNREAD_DEEP_PNG))
    if blocks is None:
        return image
    image.close()
    return blocks


def is_deep_tiff(image: Image.Image) -> bool:
    """Whether an image is a TIFF file with more than 8 bits per value; Pillow reads some of them wrong."""
    return image.format == "TIFF" and max(image.tag_v2.get(_BITS, (1,))) > 8  # type: ignore[attr-defined]


def _open_content(content: bytes, where: str, max_pixels: int) -> Image.Image:
    if _READS_HEIF and content[4:8] == b"ftyp":
        _register_heif()
    return _open_with_pillow(io.BytesIO(content), where, max_pixels)


def _rgb_of_blocks(blocks: Blocks, pixel_range: PixelRange | None) -> npt.NDArray[np.uint8]:
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


def open_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file with Pillow, without decoding its pixels.

    Args:
        path: the file.
        max_pixels: largest number of pixels of the image. More than ``MAX_PIXELS`` also lifts Pillow's own limit, for
            this file only.

    Raises:
        DataError: the file is missing, not an image, or has more pixels.
    """
    if special := special_file(path):
        raise DataError(f"{path}: not an image but {special}; remove it or put the image there")
    suffix = path.suffix.lower()
    if suffix in UNREAD_SUFFIXES and path.exists():
        raise DataError(f"{path}: {suffix[1:].upper()} files are not read: {UNREAD_SUFFIXES[suffix]}")
    if suffix in _HEIF:
        _register_heif()
    return _open_with_pillow(path, path, max_pixels)


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _open_with_pillow(file: Path | io.BytesIO, path: Path | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image whose messages name ``path``, and check its size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit below replaces Pillow's warning
            image = Image.open(file) if max_pixels <= MAX_PIXELS else _opened_at_any_size(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image file; correct the path or restore the file") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: image {_too_large(max_pixels)}") from error
    except Exception as error:  # as in _decoded
        raise DataError(f"{path}: not a readable image ({reason(error)}); replace or remove the file") from error
    try:
        check_pixels(path, image.size, max_pixels)
    except DataError:
        image.close()
        raise
    return image


def check_pixels(path: Path | str, size: tuple[int, int], max_pixels: int) -> None:
    """Raise DataError if an image of ``(width, height)`` has more than ``max_pixels``."""
    if size[0] * size[1] > max_pixels:
        raise DataError(f"{path}: {size[0]}×{size[1]} {_too_large(max_pixels)}")


def _too_large(max_pixels: int) -> str:
    limit = f"{max_pixels / 1e6:,.9g} megapixels" if max_pixels >= 1_000_000 else f"{max_pixels:,} pixels"
    return (
        f"is too large (limit {limit}); cut it into smaller images, or, if you trust the "
        "file, detect in tiles (--tile) with a higher --max-pixels (Python: max_pixels)"
    )


def _opened_at_any_size(source: Path | io.BytesIO) -> Image.Image:
    """Open an image as ``Image.open`` does. Its limit is a global variable that other threads share."""
    file = source.open("rb") if isinstance(source, Path) else source
    try:
        start = file.read(16)
        Image.init()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            if accepts is None or accepts(start) is True:
                file.seek(0)
                with suppress(SyntaxError, IndexError, TypeError, struct.error):
                    return factory(file, str(source) if isinstance(source, Path) else "")
        raise UnidentifiedImageError
    except BaseException:
        file.close()
        raise


def reason(error: BaseException) -> str:
    """Why an image cannot be decoded, for an error message: the first line of the decoder's message."""
    if isinstance(error, UnidentifiedImageError):  # its message repeats the path
        return "empty, or in an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0][:120] or type(error).__name__
