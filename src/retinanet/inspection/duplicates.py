"""Pictures that are there twice: the same file, the same pixels, or nearly the same picture.

Nearly the same is decided twice: by a difference hash (which of two neighbours is brighter, 64 times), which finds
candidates quickly, and by the pixels of a thumbnail, which pictures that only have the layout in common do not share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.data.images import read_image, read_thumbnail
from retinanet.errors import DataError

# Side of the thumbnails that are compared.
_SIDE = 32

# Bits of 64 in which the hashes of nearly the same picture may differ.
_BITS = 6

# Correlation of the thumbnails from which two pictures are nearly the same.
_ALIKE = 0.98

# A thumbnail with less contrast (standard deviation, of 255) shows nothing that could be recognised.
_FLAT = 4.0

_ROWS, _PAIRS = 256, 20_000


@dataclass(frozen=True)
class Scan:
    """What is known of a picture after it was decoded once.

    Attributes:
        error: why it cannot be read, or ``None``.
        size: ``(width, height)`` as training sees it.
        digest: of the file's bytes.
        thumbnail: uint8 ``(32, 32)``, grey.
    """

    error: str | None
    size: tuple[int, int]
    digest: bytes
    thumbnail: npt.NDArray[np.uint8]


class Pair(NamedTuple):
    """Two pictures that are the same (``exact``) or nearly so; numbers of pictures, ``first < second``."""

    first: int
    second: int
    exact: bool


def scan(datasets: Sequence[Dataset], progress: Callable[[int], object] = lambda images: None) -> list[Scan]:
    """Decode every picture once, in the order of the datasets; ``progress`` is told the number just done."""
    found = []
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow decodes outside the interpreter's lock
        for each in pool.map(lambda item: _scan(*item), ((d, i) for d in datasets for i in d)):
            found.append(each)
            progress(1)
    return found


def _scan(dataset: Dataset, index: int) -> Scan:
    path, (width, height) = dataset.path(index), dataset.sizes[index].tolist()
    digest = b""
    try:
        thumbnail, size = read_thumbnail(path, (width, height), _SIDE)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()[:16]
    except DataError as error:
        return Scan(str(error), (0, 0), digest, np.zeros((_SIDE, _SIDE), np.uint8))
    except OSError as error:
        return Scan(f"{path}: cannot be read ({error.strerror})", (0, 0), digest, np.zeros((_SIDE, _SIDE), np.uint8))
    return Scan(None, size, digest, thumbnail)


def find_pairs(datasets: Sequence[Dataset], scans: Sequence[Scan]) -> list[Pair]:
    """Of each picture, the most similar earlier one of its own dataset and of each dataset before it, if any is alike.

    Args:
        datasets: what was scanned.
        scans: what :func:`scan` gave for all of their pictures.
    """
    owner = np.repeat(np.arange(len(datasets)), [len(d) for d in datasets])
    links: dict[tuple[int, int], tuple[float, Pair]] = {}  # (picture, dataset of the other): likeness
    for first, second, likeness in (*_same_files(owner, scans), *_alike(scans)):
        key = (second, int(owner[first]))
        if key not in links or likeness > links[key][0]:
            links[key] = (likeness, Pair(first, second, likeness > 1))
    starts = np.cumsum([0, *(len(d) for d in datasets)])

    def same_pixels(pair: Pair) -> bool:
        if scans[pair.first].size != scans[pair.second].size:
            return False
        first, second = (
            read_image(datasets[owner[i]].path(int(i - starts[owner[i]])), scans[i].size)
            for i in (pair.first, pair.second)
        )
        return bool(np.array_equal(first, second))

    pairs = [pair for _, pair in links.values()]
    return sorted(pair._replace(exact=pair.exact or same_pixels(pair)) for pair in pairs)


def _same_files(owner: npt.NDArray[np.int64], scans: Sequence[Scan]) -> Iterator[tuple[int, int, float]]:
    seen: dict[tuple[bytes, int], int] = {}  # the first picture of each dataset with that content
    for number, each in enumerate(scans):
        if each.error is None:
            for dataset in range(int(owner[number]) + 1):
                if (each.digest, dataset) in seen:
                    yield seen[each.digest, dataset], number, 2.0
            seen.setdefault((each.digest, int(owner[number])), number)


def _alike(scans: Sequence[Scan]) -> Iterator[tuple[int, int, float]]:
    """Pairs of pictures and the correlation of their thumbnails, where it is high."""
    known = np.array([i for i, s in enumerate(scans) if s.error is None and s.thumbnail.std() >= _FLAT], dtype=np.int64)
    thumbnails = np.array([scans[i].thumbnail for i in known]).reshape(len(known), _SIDE * _SIDE)
    hashes = np.array([difference_hash(scans[i].thumbnail) for i in known], dtype=np.uint64)
    for start in range(0, len(known), _ROWS):
        rows = hashes[start : start + _ROWS]
        near = np.bitwise_count(rows[:, None] ^ hashes[None, : start + len(rows)]) <= _BITS
        second, first = np.nonzero(near)
        second += start
        first, second = first[first < second], second[first < second]
        for part in range(0, len(first), _PAIRS):
            a, b = first[part : part + _PAIRS], second[part : part + _PAIRS]
            likeness = _correlation(thumbnails[a], thumbnails[b])
            for i in np.flatnonzero(likeness >= _ALIKE).tolist():
                yield int(known[a[i]]), int(known[b[i]]), float(likeness[i])


def difference_hash(thumbnail: npt.NDArray[np.uint8]) -> int:
    """Whether each pixel of a 9 × 8 version is darker than the next in its row, as 64 bits."""
    small = np.asarray(Image.fromarray(thumbnail).resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(small[:, :-1] < small[:, 1:]).tobytes(), "big")


def _correlation(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Of each row of ``a`` with the same row of ``b``."""
    x, y = (v.astype(np.float32) - v.mean(axis=1, keepdims=True, dtype=np.float32) for v in (a, b))
    result: npt.NDArray[np.float32] = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.minimum(result, 1)
