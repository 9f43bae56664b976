"""Where the blocks of a TIFF or BigTIFF file lie, and what their bytes mean; read from the header by tifffile."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from retinanet.data.blocks import LARGEST_BLOCK, STRIP_ROWS, strip_rows
from retinanet.data.exif import TURNS
from retinanet.files import start_of

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

UNCOMPRESSED = 1
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2

# Compressions whose result is an image instead of bytes: CCITT, JPEG and WebP.
IMAGE_CODECS = (2, 3, 4, 6, 7, 50001)

_OLD_JPEG, _YCBCR, _ORIENTATION, _NO_DATA = 6, 6, 274, 42113
_LONGEST_TAG = 2**20

# Tags that say how a block is decoded; all but the sizes and the places of blocks.
_DECODING = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532, _NO_DATA)

_KINDS = {1: "u", 2: "i", 3: "f"}

# tifffile logs remarks about unusual tags. Without a handler, Python would print them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class Tag(NamedTuple):
    """A TIFF tag: its code, the code of its type, the number of values, and their bytes in the order of the file."""

    code: int
    kind: int
    values: int
    data: bytes


@dataclass(frozen=True)
class TiffLayout:
    """Layout of the first image of a TIFF file.

    Attributes:
        order: byte order, ``<`` or ``>``.
        size: ``(height, width)`` of the stored image.
        block: ``(height, width)`` of a block: a tile, or the strips that are decoded together.
        tiled: whether the blocks are tiles of the file.
        strip: rows of a strip of the file; the height of a tile.
        cuttable: whether strips can be cut between any two rows, because they are not compressed.
        samples: values per pixel.
        planes: number of planes that are stored one after another; 1 if the values of a pixel lie together.
        dtype: type of the values, in the byte order of the file; ``None`` for bits and unusual types.
        compression: code of the compression.
        predictor: 1 (none), 2 (differences of values) or 3 (differences of bytes of floating-point values).
        photometric: what the values mean.
        offsets: int64 ``(N,)``, where the strips or tiles start, in bytes.
        counts: int64 ``(N,)``, their lengths in bytes.
        orientation: EXIF orientation.
        no_data: the value that marks missing values, as text; empty if there is none.
        tags: tags with which a decoder reads a block.
    """

    order: str
    size: tuple[int, int]
    block: tuple[int, int]
    tiled: bool
    strip: int
    cuttable: bool
    samples: int
    planes: int
    dtype: np.dtype[Any] | None
    compression: int
    predictor: int
    photometric: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    orientation: int
    no_data: str
    tags: tuple[Tag, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a decompressed row of a block of one plane; 0 if the type of the values is unusual."""
        size = 0 if self.dtype is None else self.dtype.itemsize
        return self.block[1] * size * (self.samples if self.planes == 1 else 1)


def is_tiff(source: Path | bytes) -> bool:
    """Whether a file starts as a TIFF or BigTIFF file does; ``False`` for files that cannot be read."""
    return start_of(source).startswith(_SIGNATURES)


def tiff_layout(source: Path | bytes) -> TiffLayout | None:
    """Read the layout of the first image of a file, given by its path or its content; ``None`` if it cannot be read
    block by block.

    That is so for damaged headers, volumes, and blocks of more than ``LARGEST_BLOCK`` pixels.
    """
    from tifffile import TiffFile

    try:
        with TiffFile(source if isinstance(source, Path) else io.BytesIO(source)) as file:
            return _layout(file.pages.first, file.filehandle)
    except Exception:  # of a damaged header; Pillow's error is reported for it
        return None


def compression_name(code: int) -> str:
    """Name of a compression, such as ``JPEG2000``; its number if it has none."""
    from tifffile import COMPRESSION

    return COMPRESSION(code).name if code in set(COMPRESSION) else str(code)


def tiff_orientation(path: Path) -> int:
    """EXIF orientation of the first image; 1 if the file has none, or cannot be read."""
    from tifffile import TiffFile

    try:
        with TiffFile(path) as file:
            return _orientation(file.pages.first)
    except Exception:  # as above
        return 1


def _orientation(page: Any) -> int:
    value = page.tags[_ORIENTATION].value if _ORIENTATION in page.tags else 1
    return value if isinstance(value, int) and value in TURNS else 1


def _layout(page: Any, file: Any) -> TiffLayout | None:
    height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
    planes = samples if int(page.planarconfig) == 2 else 1
    tiled = bool(page.is_tiled)
    strip = int(page.tilelength) if tiled else min(height, int(page.rowsperstrip) or height)
    across = int(page.tilewidth) if tiled else width
    compression, dtype = int(page.compression), _dtype(page)
    offsets, counts = (np.array(values, dtype=np.int64) for values in (page.dataoffsets, page.databytecounts))
    if min(height, width, samples, strip, across) < 1 or int(page.imagedepth) > 1 or compression == _OLD_JPEG:
        return None
    if min(len(offsets), len(counts)) < planes * -(-height // strip) * -(-width // across):
        return None
    cuttable = not tiled and compression == UNCOMPRESSED and dtype is not None and int(page.photometric) != _YCBCR
    rows = strip
    if cuttable and dtype is not None:
        rows = strip_rows(width * samples * dtype.itemsize, height)
    elif not tiled:
        rows = strip * max(1, min(STRIP_ROWS // strip, -(-height // strip)))
    if rows * across > LARGEST_BLOCK:
        return None
    return TiffLayout(
        order=str(page.parent.byteorder),
        size=(height, width),
        block=(rows, across),
        tiled=tiled,
        strip=strip,
        cuttable=cuttable,
        samples=samples,
        planes=planes,
        dtype=dtype,
        compression=compression,
        predictor=int(page.predictor),
        photometric=int(page.photometric),
        offsets=offsets,
        counts=counts,
        orientation=_orientation(page),
        no_data=str(page.tags[_NO_DATA].value).strip("\0 ") if _NO_DATA in page.tags else "",
        tags=tuple(_tag(page.tags[code], file) for code in _DECODING if code in page.tags),
    )


def _dtype(page: Any) -> np.dtype[Any] | None:
    """Type of the values, if all values of a pixel have one type that NumPy knows."""
    bits, kind = page.bitspersample, page.sampleformat
    if not isinstance(bits, int) or bits not in (8, 16, 32, 64) or not isinstance(kind, int) or kind not in _KINDS:
        return None
    if kind == 3 and bits == 8:
        return None
    return np.dtype(f"{page.parent.byteorder}{_KINDS[kind]}{bits // 8}")


def _tag(tag: Any, file: Any) -> Tag:
    length = int(tag.valuebytecount)
    if length > _LONGEST_TAG:
        raise ValueError(f"tag {tag.code} is too long")
    file.seek(int(tag.valueoffset))
    return Tag(int(tag.code), int(tag.dtype), int(tag.count), file.read(length))
