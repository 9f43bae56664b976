"""Open image files without decoding their pixels, within a limit on their pixels.

Pillow opens most files. TIFF and PNG files that it would not read, or not with all bits, are opened as blocks.
"""

from __future__ import annotations

import io
import struct
import warnings
from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from retinanet.data.blocks import Blocks
from retinanet.data.deep_pixels import UNREAD_DEEP_PNG, is_deep_png
from retinanet.data.image_suffixes import HEIF_SUFFIXES, READS_HEIF, UNREAD_SUFFIXES
from retinanet.data.png_blocks import png_blocks
from retinanet.data.tiff_blocks import deep_tiff, tiff_blocks
from retinanet.data.tiff_layout import is_tiff
from retinanet.errors import DataError
from retinanet.files import special_file

_BITS = 258  # TIFF tag: bits per value

# The limit at which Pillow refuses a file. An image of this size takes half a gigabyte of memory. A larger file is
# malicious or should be cut into tiles.
MAX_PIXELS = 178_000_000


def open_any_image(source: Path | bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image | Blocks:
    """Open an image file, or the bytes of one: files that Pillow would not read, or not with all bits, as blocks.

    Args:
        source: the path or the bytes of the file.
        where: names the image in messages.
        max_pixels: largest number of pixels of the image.

    Raises:
        DataError: the file is missing, not an image, or has more pixels.
    """
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
            raise cannot_decode(where, ValueError(UNREAD_DEEP_PNG))
    if blocks is None:
        return image
    image.close()
    return blocks


def is_deep_tiff(image: Image.Image) -> bool:
    """Whether an image is a TIFF file with more than 8 bits per value; Pillow reads some of them wrong."""
    return image.format == "TIFF" and max(image.tag_v2.get(_BITS, (1,))) > 8  # type: ignore[attr-defined]


def _open_content(content: bytes, where: str, max_pixels: int) -> Image.Image:
    if READS_HEIF and content[4:8] == b"ftyp":
        _register_heif()
    return _open_with_pillow(io.BytesIO(content), where, max_pixels)


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
    if suffix in HEIF_SUFFIXES:
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
    except Exception as error:  # as in retinanet.data.images
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


def cannot_decode(where: object, error: Exception) -> DataError:
    """Make the error that the pixels of an image cannot be decoded; ``where`` names the image."""
    return DataError(f"{where}: cannot be decoded ({reason(error)}); replace or remove the file")


def reason(error: BaseException) -> str:
    """Why an image cannot be decoded, for an error message: the first line of the decoder's message."""
    if isinstance(error, UnidentifiedImageError):  # its message repeats the path
        return "empty, or in an unknown format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0][:120] or type(error).__name__
