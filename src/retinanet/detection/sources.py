"""Find image files, and detect objects in them while the next files are decoded."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinanet.data.formats.reading import walk
from retinanet.data.images import IMAGE_SUFFIXES, is_image, read_image, unread_files
from retinanet.data.windows import Window, open_windows
from retinanet.detection.detector import Detector
from retinanet.detection.tile_plan import Tiling
from retinanet.detections import Detections
from retinanet.errors import DataError


@dataclass(frozen=True)
class ImageFile:
    """An image file: its ``path``, and its ``name`` relative to the folder through which it was found."""

    path: Path
    name: Path


@dataclass(frozen=True)
class ImageResult:
    """The result for one file: uint8 RGB ``image`` ``(H, W, 3)`` and ``found``, or the ``error`` of a broken file."""

    file: ImageFile
    image: npt.NDArray[np.uint8] | None = None
    found: Detections | None = None
    error: str | None = None


def find_images(sources: Sequence[str]) -> list[ImageFile]:
    """List the images of files, folders (searched recursively, through links too) and glob patterns, each image once.

    Raises:
        DataError: a source is empty, does not exist or contains no image.
    """
    found: dict[Path, ImageFile] = {}
    for source in sources:
        if not source.strip():  # an empty path would mean the current folder
            raise DataError("a source is empty (an unset shell variable?); give images or folders")
        if re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE):
            raise DataError(f"{source}: URLs are not supported; download the image and give its path")
        path = Path(source)
        if path.is_dir():
            names = list(walk(path))
            images = [ImageFile(p, p.relative_to(path)) for p in sorted(Path(n) for n in names if is_image(n))]
            missing = "contains no image"
        elif path.exists():
            names = []  # an error says what is wrong with the only file
            images = [ImageFile(path, Path(path.name))]
            missing = ""
        else:
            names = sorted(glob.glob(source, recursive=True))
            images = [ImageFile(Path(p), Path(Path(p).name)) for p in names if _is_image(Path(p))]
            is_pattern = any(c in source for c in "*?[")
            missing = "matches no image" if is_pattern else "no such file or folder"
        if not images:
            missing += "".join(f" ({left_out})" for left_out in unread_files(names))
            raise DataError(f"{source}: {missing}; give images ({', '.join(sorted(IMAGE_SUFFIXES)[:4])} …) or folders")
        for image in images:
            found.setdefault(image.path, image)
    return list(found.values())


def files_left_out(sources: Sequence[str]) -> list[str]:
    """Count the files in folders that hold images but cannot be read, such as HEIC files: a sentence for each kind."""
    folders = [Path(source) for source in sources if os.path.isdir(source)]
    return [f"{folder}: {sentence}" for folder in folders for sentence in unread_files(walk(folder))]


def detect_in_files(
    detector: Detector,
    files: Sequence[ImageFile],
    score: float,
    batch: int = 8,
    max_detections: int | None = None,
    tiling: Tiling | None = None,
) -> Iterator[ImageResult]:
    """Detect objects in every file, in order; threads decode the next files while the network works.

    With ``tiling``, each image is divided into tiles, and the next tiles are decoded while the network works.
    """
    if tiling is not None:
        yield from (_detect_tiled(detector, file, tiling, score, batch, max_detections) for file in files)
        return
    pixel_range = detector.info.config.data.pixel_range
    with ThreadPoolExecutor(max_workers=2) as pool:
        ahead = iter(files)
        queue = [(file, pool.submit(read_image, file.path, pixel_range)) for file in islice(ahead, 2 * batch)]
        while queue:
            chunk, queue = queue[:batch], queue[batch:]
            decoded = [(file, *_image_or_error(future)) for file, future in chunk]
            queue += [(file, pool.submit(read_image, file.path, pixel_range)) for file in islice(ahead, len(chunk))]
            images = [image for _, image, _ in decoded if image is not None]
            found = iter(detector.detect(images, score, batch, max_detections))
            for file, image, error in decoded:
                yield ImageResult(file, image, next(found) if image is not None else None, error)


def _detect_tiled(
    detector: Detector, file: ImageFile, tiling: Tiling, score: float, batch: int, max_detections: int | None
) -> ImageResult:
    try:
        with open_windows(file.path, detector.info.config.data.pixel_range) as reader:
            found = detector.detect_tiled(reader, tiling, score, batch, max_detections)
            return ImageResult(file, reader.read(Window(0, 0, *reader.size)), found)
    except DataError as error:
        return ImageResult(file, error=str(error))


def _image_or_error(future: Future[npt.NDArray[np.uint8]]) -> tuple[npt.NDArray[np.uint8] | None, str | None]:
    try:
        return future.result(), None
    except DataError as error:
        return None, str(error)


def _is_image(path: Path) -> bool:
    return is_image(path.name) and not path.name.startswith(".")
