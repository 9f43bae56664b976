"""Decode the images that clients send, with checks before anything is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from retinanet.data.deep_pixels import PixelRange, is_deep
from retinanet.data.exif import header_of_image, quick_header
from retinanet.data.images import to_rgb
from retinanet.data.open_images import MAX_PIXELS, is_deep_tiff
from retinanet.serve.refusals import Refusal

# Pillow also has readers that start other programs, follow paths or are slow; they are never asked.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

# Decoders of these formats that run in Python: a small file can keep one busy for minutes.
_SLOW_DECODERS = ("ppm_plain", "bmp_rle")

# Pillow reads the blocks of a file one by one in Python. A file of millions of tiny blocks would take minutes.
_MOST_READS = 100_000

# Each scan of a progressive JPEG goes over all pixels again. Encoders write about ten.
_MOST_SCANS = 200
_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True)
class UploadHeader:
    """What the header of an uploaded image says.

    Attributes:
        width: pixels of the upright image.
        height: pixels of the upright image.
    """

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height


def read_upload_header(content: bytes, megapixels: float) -> UploadHeader:
    """Return the size of an image file without decoding it.

    Raises:
        Refusal: ``content`` is not an image in one of :data:`FORMATS`, or is larger than ``megapixels``.
    """
    with _open(content) as image:
        _check_size(*image.size, megapixels)  # before the EXIF data are read, which may follow the pixels
        try:
            header = quick_header(content) or header_of_image(image)
        except Exception as error:  # damaged files raise errors of many classes
            raise _broken(error) from error
    _check_size(*header.upright, megapixels)
    return UploadHeader(*header.upright)


def _check_size(width: int, height: int, megapixels: float) -> None:
    if width < 1 or height < 1:
        raise Refusal("broken_image", f"the image has {width}×{height} pixels")
    if width * height > min(megapixels * 1e6, MAX_PIXELS):
        raise Refusal(
            "too_many_pixels", f"the image has {width}×{height} pixels; the limit is {megapixels:g} megapixels"
        )


def decode_upload(content: bytes, pixel_range: PixelRange | None = None) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8 RGB ``(H, W, 3)``, as :func:`retinanet.data.images.read_image` does for a path.

    Raises:
        Refusal: the image is damaged.
    """
    with _open(content) as image:
        try:
            return to_rgb(image, pixel_range)
        except Exception as error:  # Pillow's decoders raise errors of many classes
            raise _broken(error) from error


class _LimitedReads(io.BytesIO):
    """A file in memory that can be read a limited number of times."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise OSError("it has too many blocks")
        return super().read(size)


def _open(content: bytes) -> Image.Image:
    if content.count(_START_OF_SCAN) > _MOST_SCANS and content[:2] == b"\xff\xd8":
        raise Refusal("broken_image", f"the JPEG has more than {_MOST_SCANS} scans")
    try:
        image = Image.open(_LimitedReads(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Refusal("not_an_image", f"not an image; send one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise Refusal("too_many_pixels", f"the image has more than {MAX_PIXELS / 1e6:.0f} megapixels") from error
    except Exception as error:
        raise _broken(error) from error
    if is_deep(image) and image.mode in ("RGB", "RGBA", "LA"):
        image.close()  # Pillow would read 8 bits only, and the decoder for 16 bits crashes on damaged files
        raise Refusal("not_an_image", "PNG files with 16-bit colors are not read; send 8 bits, or 16-bit gray")
    plain = image.mode.startswith("I;16") or (image.mode == "F" and content.startswith(b"II"))
    if is_deep_tiff(image) and not plain:
        image.close()  # Pillow would read other values
        raise Refusal("not_an_image", "this kind of TIFF file is not read; send 8 bits, or 16-bit gray")
    tiles: Any = getattr(image, "tile", None) or []
    if any(tile[0] in _SLOW_DECODERS for tile in tiles):
        image.close()
        raise Refusal("not_an_image", "plain-text PPM and run-length BMP files are not read; send PNG or JPEG")
    return image


def _broken(error: Exception) -> Refusal:
    # The text of an error may quote the content of the image, so only its class is told.
    return Refusal("broken_image", f"the image cannot be decoded ({type(error).__name__}); it is damaged or cut off")
