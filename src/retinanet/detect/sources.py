"""What ``retinanet detect`` runs on: images, folders and patterns, decoded in the background."""

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
import torch

from retinanet.data.images import IMAGE_SUFFIXES, read_image
from retinanet.detect.detector import Detector
from retinanet.detections import Detections
from retinanet.errors import DataError


@dataclass(frozen=True)
class Source:
    """A picture to run on: its ``path``, and its ``name`` relative to the folder it was found through."""

    path: Path
    name: Path


@dataclass(frozen=True)
class Picture:
    """A source after detection: uint8 RGB ``image`` ``(H, W, 3)`` and what was ``found``, or a bad file's ``error``."""

    source: Source
    image: npt.NDArray[np.uint8] | None = None
    found: Detections | None = None
    error: str | None = None


def find_pictures(sources: Sequence[str]) -> list[Source]:
    """The pictures that files, folders (with all below them) and patterns stand for, without repetition.

    Raises:
        DataError: a source is empty, does not exist or holds no picture.
    """
    found: dict[Path, Source] = {}
    for source in sources:
        if not source.strip():  # a path of nothing would be the current folder
            raise DataError("a source is empty (a shell variable that is not set?); give images or folders")
        if re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE):
            raise DataError(f"{source}: addresses are not opened; download the picture and give its path")
        path = Path(source)
        if path.is_dir():
            pictures = [Source(p, p.relative_to(path)) for p in _pictures_below(path)]
            missing = "holds no picture"
        elif path.exists():
            pictures = [Source(path, Path(path.name))]
            missing = ""
        else:
            matches = sorted(glob.glob(source, recursive=True))
            pictures = [Source(Path(p), Path(Path(p).name)) for p in matches if _is_picture(Path(p))]
            is_pattern = any(c in source for c in "*?[")
            missing = "matches no picture" if is_pattern else "no such file or folder"
        if not pictures:
            raise DataError(f"{source}: {missing}; give images ({', '.join(sorted(IMAGE_SUFFIXES)[:4])} …) or folders")
        for picture in pictures:
            found.setdefault(picture.path, picture)
    return list(found.values())


def pictures_with_detections(
    detector: Detector, sources: Sequence[Source], score: float, batch: int = 8
) -> Iterator[Picture]:
    """Detect in every source, in order; files are decoded in threads while the network works on earlier ones."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        ahead = iter(sources)
        queue = [(source, pool.submit(read_image, source.path)) for source in islice(ahead, 2 * batch)]
        while queue:
            chunk, queue = queue[:batch], queue[batch:]
            decoded = [(source, *_result(future)) for source, future in chunk]
            queue += [(source, pool.submit(read_image, source.path)) for source in islice(ahead, len(chunk))]
            images = [torch.from_numpy(image).permute(2, 0, 1) for _, image, _ in decoded if image is not None]
            found = iter(detector.detect(images, score, batch))
            for source, image, error in decoded:
                yield Picture(source, image, next(found) if image is not None else None, error)


def _result(future: Future[npt.NDArray[np.uint8]]) -> tuple[npt.NDArray[np.uint8] | None, str | None]:
    try:
        return future.result(), None
    except DataError as error:
        return None, str(error)


def _pictures_below(folder: Path) -> list[Path]:
    # os.walk does not follow links to folders, so a loop of links cannot trap it
    return sorted(Path(base) / name for base, _, names in os.walk(folder) for name in names if _is_picture(Path(name)))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
