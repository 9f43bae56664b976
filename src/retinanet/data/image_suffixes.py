"""Which files hold images, and which of these are read, by the suffix of their names."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator

HEIF_SUFFIXES = frozenset({".heic", ".heif"})

# Whether the extra that reads HEIC and HEIF files is installed.
READS_HEIF = importlib.util.find_spec("pillow_heif") is not None

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
    | (HEIF_SUFFIXES if READS_HEIF else set())
)

_HEIF_REMEDY = "install retinanet[heic] to read them"
_VIDEO_REMEDY = (
    "videos; give each to 'retinanet detect' by its path, or extract its frames, for example with "
    "ffmpeg -i FILE frames/%06d.jpg"
)
_RAW_REMEDY = "convert them to JPEG or PNG"

# Files that hold images but are not read, by suffix, with what to do about them.
UNREAD_SUFFIXES = (
    ({} if READS_HEIF else dict.fromkeys(HEIF_SUFFIXES, _HEIF_REMEDY))
    | dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"), _VIDEO_REMEDY)
    | dict.fromkeys((".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".psd", ".svg"), _RAW_REMEDY)
)


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
