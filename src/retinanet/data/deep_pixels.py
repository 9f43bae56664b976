"""Images with more than 8 bits per value: 16-bit and 32-bit integers and floating point, scaled to 8 bits.

A range says which values become black (0) and white (255). A training determines the range of its images and stores it
with the weights (:mod:`retinanet.data.pixel_range`), so that equal values have equal brightness in all images, and in
detection. Without a stored range, each image is scaled by its own range.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.exif import orientation_of, turned_pixels, upright
from retinanet.data.png_blocks import png_blocks

Floats = npt.NDArray[np.float32]

# Values that become black and white.
PixelRange = tuple[float, float]

# Ranges of common sensors and programs: fractions, and 8, 10, 12, 14 and 16 bits.
_FRACTIONS: PixelRange = (0.0, 1.0)
_BITS: tuple[PixelRange, ...] = tuple((0.0, 2.0**bits - 1) for bits in (8, 10, 12, 14, 16))

# If the values take up less than this fraction of such a range, they are scaled by their own range. Otherwise the
# images, for example of a thermal camera, would have no contrast.
_NARROW = 0.25

# Fractions of the values that may lie below and above the range, because single pixels of a sensor are often broken.
_DARKEST, _BRIGHTEST = 0.001, 0.999

# Number of values of an image that are looked at.
_VALUES = 200_000

# Larger numbers mark missing values, for example −3.4e38 in GeoTIFF files.
_MISSING = 1e30

# Why a PNG file with 16-bit colors is not read if it has no blocks.
UNREAD_DEEP_PNG = "damaged, or an interlaced PNG with 16-bit colors; save it without interlacing"

_PHOTOMETRIC, _WHITE_IS_ZERO, _NO_DATA = 262, 0, 42113


class Spread(NamedTuple):
    """Spread of the values of an image: whether they are ``whole`` numbers, the extremes, and the usual extremes."""

    whole: bool
    least: float
    most: float
    low: float
    high: float


def is_deep(image: Image.Image) -> bool:
    """Whether a Pillow image that was just opened has more than 8 bits per value."""
    return image.mode.startswith("I") or image.mode == "F" or is_deep_png(image)


def deep_values(image: Image.Image) -> Floats:
    """Values of a deep image that was just opened, turned upright: float32 ``(H, W)`` or ``(H, W, 3)``.

    Missing values are NaN.
    """
    if is_deep_png(image) and (path := getattr(image, "filename", "")):
        return turned_pixels(_png_values(path), orientation_of(image))
    image = upright(image)
    no_data = getattr(image, "tag_v2", {}).get(_NO_DATA, "")
    return without_missing(np.asarray(image).astype(np.float32), str(no_data).strip("\0 "))


def without_missing(values: Floats, no_data: str = "") -> Floats:
    """Replace missing values by NaN, in place: huge numbers, and the number that ``no_data`` states if it is one."""
    values[~(np.abs(values) < _MISSING)] = np.nan
    with suppress(ValueError):  # not a number
        values[values == np.float32(no_data)] = np.nan
    return values


def inverted(image: Image.Image) -> bool:
    """Whether 0 is white in a deep TIFF image. Pillow inverts only images with 8 bits."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def spread_of(values: Floats) -> Spread | None:
    """Measure the spread of the values of an image; ``None`` if none is a number."""
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // _VALUES)]
    finite = flat[np.isfinite(flat)]
    if not finite.size:
        return None
    low, high = np.quantile(finite, (_DARKEST, _BRIGHTEST))
    return Spread(bool((finite == np.rint(finite)).all()), *map(float, (finite.min(), finite.max(), low, high)))


def range_of(spreads: list[Spread]) -> PixelRange:
    """Choose the range of images: the smallest common range that holds all values, or their own if it is narrow."""
    whole = all(spread.whole for spread in spreads)
    least, most = min(s.least for s in spreads), max(s.most for s in spreads)
    low, high = min(s.low for s in spreads), max(s.high for s in spreads)
    common = _BITS if whole else (_FRACTIONS, *_BITS)
    for nominal in common:
        if least >= 0 and most <= nominal[1]:
            if high - low >= _NARROW * nominal[1] or high == low:
                return nominal
            break
    return (low, high) if high > low else (low, low + 1.0)


def to_8_bits(values: Floats, pixel_range: PixelRange | None, invert: bool = False) -> npt.NDArray[np.uint8]:
    """Scale values to uint8 RGB ``(H, W, 3)``; missing values become black.

    Args:
        values: ``(H, W)`` or ``(H, W, 3)``.
        pixel_range: values that become black and white; unset: those of :func:`range_of`.
        invert: whether the smallest value is white.
    """
    if pixel_range is None:
        spread = spread_of(values)
        pixel_range = _FRACTIONS if spread is None else range_of([spread])
    low, high = pixel_range
    scaled = (values - np.float32(low)) * np.float32(255.0 / (high - low))
    if invert:
        scaled = 255.0 - scaled
    gray = np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255).astype(np.uint8)
    return gray if gray.ndim == 3 else np.repeat(gray[:, :, None], 3, axis=2)


def is_deep_png(image: Image.Image) -> bool:
    """Whether a color PNG has 16 bits. Pillow would read only the upper 8 bits."""
    tiles = getattr(image, "tile", None)
    deep = image.format == "PNG" and tiles and ";16" in str(tiles[0].args)
    return bool(deep) and image.mode in ("RGB", "RGBA", "LA")


def _png_values(path: str) -> Floats:
    blocks = png_blocks(Path(path))
    if blocks is None:
        raise ValueError(UNREAD_DEEP_PNG)
    with blocks:
        return blocks.whole().astype(np.float32, copy=False)
