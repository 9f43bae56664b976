"""Duplicate images: the same file, the same pixels, or nearly the same image.

Nearly equal images are found in two steps. A difference hash (64 comparisons of neighboring pixels) finds candidates
quickly. The correlation of thumbnails then rejects images that only share their layout.
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
from retinanet.data.image_memory import Decoded, ImageMemory, Stamp
from retinanet.data.images import read_image
from retinanet.data.thumbnails import read_thumbnail
from retinanet.errors import DataError

# Side of the thumbnails in pixels.
_SIDE = 32

# Bytes of the hash of a file.
_DIGEST = 16

# Number of the 64 bits in which the hashes of nearly equal images may differ.
_BITS = 6

# Smallest correlation of the thumbnails of nearly equal images.
_SIMILAR = 0.98

# Images with a lower contrast (standard deviation of the thumbnail, values 0–255) are not compared.
_FLAT = 4.0

# Sizes of batches: ``_ROWS`` hashes are compared with all hashes in one operation, and ``_PAIRS`` pairs of thumbnails.
# These numbers bound the memory.
_ROWS, _PAIRS = 256, 20_000


@dataclass(frozen=True)
class Scan:
    """Result of decoding an image once.

    Attributes:
        error: the reason why the image cannot be read, or ``None``.
        size: ``(width, height)`` of the image as training reads it.
        digest: hash of the file's bytes.
        thumbnail: uint8 ``(32, 32)``, gray.
        contrast: difference between the brightest and the darkest pixel, 0 to 255.
    """

    error: str | None
    size: tuple[int, int]
    digest: bytes
    thumbnail: npt.NDArray[np.uint8]
    contrast: int = 255


class Pair(NamedTuple):
    """Numbers of two images that are equal (``exact``) or nearly equal; ``first < second``."""

    first: int
    second: int
    exact: bool


def scan(
    datasets: Sequence[Dataset],
    progress: Callable[[int], object] = lambda images: None,
    memory: ImageMemory | None = None,
) -> list[Scan]:
    """Decode every image once.

    Args:
        datasets: the images.
        progress: called with the number of images just decoded.
        memory: images that it knows are not decoded again. It stores the others.

    Returns:
        The scans in the order of the datasets.
    """
    items = [(dataset, index) for dataset in datasets for index in dataset]
    paths = [dataset.path(index) for dataset, index in items]
    known = {i: each for i, each in memory.recall(paths).items() if _usable(each, *items[i])} if memory else {}
    found, new = [], []
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow releases the GIL while it decodes
        tasks = ((known.get(i), *item) for i, item in enumerate(items))
        for path, (each, decoded) in zip(paths, pool.map(lambda task: _scan(*task), tasks), strict=True):
            found.append(each)
            if decoded:
                new.append((path, decoded))
            progress(1)
    if memory:
        memory.used += len(known)
        memory.store(new)
    return found


def _usable(decoded: Decoded, dataset: Dataset, index: int) -> bool:
    """Whether a remembered result has everything that a scan needs, in the size of the annotations."""
    if dataset.pixel_range is not None:  # it changes the thumbnails
        return False
    size = tuple(dataset.sizes[index].tolist())
    return len(decoded.digest) == _DIGEST and len(decoded.thumbnail) == _SIDE**2 + 1 and decoded.size == size


def _scan(known: Decoded | None, dataset: Dataset, index: int) -> tuple[Scan, Decoded | None]:
    """Return the scan of an image, and what can be remembered if the image was decoded now."""
    if known is not None:
        *pixels, contrast = known.thumbnail
        thumbnail = np.array(pixels, dtype=np.uint8).reshape(_SIDE, _SIDE)
        return Scan(None, known.size, known.digest, thumbnail, contrast), None
    path = dataset.path(index)
    stamp, empty = Stamp.of(path), np.zeros((_SIDE, _SIDE), np.uint8)
    try:
        small = read_thumbnail(path, _SIDE, dataset.pixel_range)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()[:_DIGEST]
    except DataError as error:
        return Scan(str(error), (0, 0), b"", empty), None
    except OSError as error:
        return Scan(f"{path}: cannot be read ({error.strerror})", (0, 0), b"", empty), None
    found = Scan(None, small.size, digest, small.pixels, small.contrast)
    if stamp is None or dataset.pixel_range is not None:
        return found, None
    return found, Decoded(stamp, small.size, digest, small.pixels.tobytes() + bytes([small.contrast]))


def find_pairs(datasets: Sequence[Dataset], scans: Sequence[Scan]) -> list[Pair]:
    """Pair each image with its most similar earlier image in its own dataset and in each earlier dataset.

    Args:
        datasets: the datasets.
        scans: results of :func:`scan` for all images of the datasets.
    """
    owner = np.repeat(np.arange(len(datasets)), [len(d) for d in datasets])
    links: dict[tuple[int, int], tuple[float, Pair]] = {}  # (second image, dataset of the first): similarity
    for first, second, similarity in (*_same_files(owner, scans), *_similar(scans)):
        key = (second, int(owner[first]))
        if key not in links or similarity > links[key][0]:
            links[key] = (similarity, Pair(first, second, similarity > 1))
    starts = np.cumsum([0, *(len(d) for d in datasets)])

    def same_pixels(pair: Pair) -> bool:
        if scans[pair.first].size != scans[pair.second].size:
            return False
        first, second = (
            read_image(datasets[owner[i]].path(int(i - starts[owner[i]])), datasets[owner[i]].pixel_range)
            for i in (pair.first, pair.second)
        )
        return bool(np.array_equal(first, second))

    pairs = [pair for _, pair in links.values()]
    return sorted(pair._replace(exact=pair.exact or same_pixels(pair)) for pair in pairs)


def _same_files(owner: npt.NDArray[np.int64], scans: Sequence[Scan]) -> Iterator[tuple[int, int, float]]:
    seen: dict[tuple[bytes, int], int] = {}  # (content, dataset): first image with that content
    for number, each in enumerate(scans):
        if each.error is None:
            for dataset in range(int(owner[number]) + 1):
                if (each.digest, dataset) in seen:
                    yield seen[each.digest, dataset], number, 2.0
            seen.setdefault((each.digest, int(owner[number])), number)


def _similar(scans: Sequence[Scan]) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of images with highly correlated thumbnails, and the correlation."""
    known = np.array([i for i, s in enumerate(scans) if s.error is None and s.thumbnail.std() >= _FLAT], dtype=np.int64)
    thumbnails = np.array([scans[i].thumbnail for i in known]).reshape(len(known), _SIDE * _SIDE)
    hashes = np.array([difference_hash(scans[i].thumbnail) for i in known], dtype=np.uint64)
    for start in range(0, len(known), _ROWS):
        rows = hashes[start : start + _ROWS]
        near = np.bitwise_count(rows[:, None] ^ hashes[None, : start + len(rows)]) <= _BITS
        second, first = np.nonzero(near)
        second += start
        first, second = first[first < second], second[first < second]
        for begin in range(0, len(first), _PAIRS):
            a, b = first[begin : begin + _PAIRS], second[begin : begin + _PAIRS]
            similarity = _correlation(thumbnails[a], thumbnails[b])
            for i in np.flatnonzero(similarity >= _SIMILAR).tolist():
                yield int(known[a[i]]), int(known[b[i]]), float(similarity[i])


def difference_hash(thumbnail: npt.NDArray[np.uint8]) -> int:
    """Hash of 64 bits: for each pixel of a 9 × 8 version, whether it is darker than its right neighbor."""
    small = np.asarray(Image.fromarray(thumbnail).resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(small[:, :-1] < small[:, 1:]).tobytes(), "big")


def _correlation(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Correlation of each row of ``a`` with the same row of ``b``."""
    x, y = (v.astype(np.float32) - v.mean(axis=1, keepdims=True, dtype=np.float32) for v in (a, b))
    result: npt.NDArray[np.float32] = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.minimum(result, 1)
