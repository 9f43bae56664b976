"""Images that ``retinanet detect`` reads: files, members of zip archives, URLs, and an image piped into the command."""

from __future__ import annotations

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.data.array_windows import ArrayReader
from retinanet.data.deep_pixels import PixelRange
from retinanet.data.images import content_size, decode_image, image_size, read_image
from retinanet.data.open_images import MAX_PIXELS
from retinanet.data.windows import WindowReader, open_windows
from retinanet.detection.web_limits import WebLimits
from retinanet.errors import DataError

# Size of the largest encoded image that is taken from an archive or a pipe. The largest image that is decoded takes
# 534 MB without any compression, so a larger file is malicious or damaged.
LARGEST_FILE = 600_000_000

# Characters that some file systems refuse or that a terminal executes.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')

# Longest part of a path that all file systems accept, with room for a number, in characters of up to four bytes.
_LONGEST_NAME = 50


class InputImage(ABC):
    """An image that can be read.

    Attributes:
        name: path of its output files, relative to the output folder. Several images may have the same name.
        listed: place in the list that names the image, such as ``list.txt:3``; empty if there is none. It begins the
            messages of errors.
    """

    name: Path
    listed: str = ""

    @property
    @abstractmethod
    def address(self) -> str:
        """How output files and messages name the image, such as its path or its URL."""

    def read(self, pixel_range: PixelRange | None = None) -> npt.NDArray[np.uint8]:
        """Return uint8 RGB ``(H, W, 3)``; see :func:`retinanet.data.images.read_image`.

        Raises:
            DataError: the image cannot be read.
        """
        with self._located():
            return self._pixels(pixel_range, MAX_PIXELS)

    def header_size(self) -> tuple[int, int] | None:
        """Return ``(height, width)`` as :meth:`read` would give them, at little cost; ``None`` if they are unknown."""
        return None

    @contextmanager
    def windows(self, pixel_range: PixelRange | None = None, max_pixels: int = MAX_PIXELS) -> Iterator[WindowReader]:
        """Open the image to read windows of it; see :func:`retinanet.data.windows.open_windows`.

        Raises:
            DataError: the image, or a window that the block reads, cannot be read.
        """
        with self._located(), self._opened(pixel_range, max_pixels) as reader:
            yield reader

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Add the place in the list to errors."""
        try:
            yield
        except DataError as error:
            if not self.listed:
                raise
            raise DataError(f"{self.listed}: {error}") from error

    @abstractmethod
    def _pixels(self, pixel_range: PixelRange | None, max_pixels: int) -> npt.NDArray[np.uint8]: ...

    def _opened(self, pixel_range: PixelRange | None, max_pixels: int) -> WindowReader:
        return ArrayReader(self._pixels(pixel_range, max_pixels))


@dataclass(frozen=True)
class ImageFile(InputImage):
    """An image file.

    Attributes:
        path: the file.
        name: its path relative to the folder through which it was found.
        listed: see :class:`InputImage`.
    """

    path: Path
    name: Path
    listed: str = ""

    @property
    def address(self) -> str:
        """The path."""
        return str(self.path)

    def header_size(self) -> tuple[int, int] | None:
        """Return ``(height, width)`` from the header of the file."""
        try:
            return image_size(self.path)[::-1]
        except DataError:
            return None

    def _pixels(self, pixel_range: PixelRange | None, max_pixels: int) -> npt.NDArray[np.uint8]:
        return read_image(self.path, pixel_range, max_pixels)

    def _opened(self, pixel_range: PixelRange | None, max_pixels: int) -> WindowReader:
        return open_windows(self.path, pixel_range, max_pixels)  # does not decode the file whole where it need not


class PackedImage(InputImage):
    """An image that is a part of a file."""

    @abstractmethod
    def content(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            DataError: they cannot be read.
        """

    def header_size(self) -> tuple[int, int] | None:
        """Return ``(height, width)`` from the header of the image."""
        try:
            return content_size(self.content(), self.address)[::-1]
        except DataError:
            return None

    def _pixels(self, pixel_range: PixelRange | None, max_pixels: int) -> npt.NDArray[np.uint8]:
        return decode_image(self.content(), self.address, pixel_range, max_pixels)


@dataclass(frozen=True, eq=False)
class ZippedImage(PackedImage):
    """A member of a zip archive. Nothing is extracted to disk.

    Attributes:
        archive: the open archive; several threads may read from it.
        member: the entry of the image.
        name: its name in the archive, without parts that lead out of a folder.
    """

    archive: zipfile.ZipFile
    member: zipfile.ZipInfo
    name: Path

    @property
    def address(self) -> str:
        """The path of the archive and the name in the archive."""
        return f"{self.archive.filename}/{self.member.filename}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the archive themselves."""
        return _member_of, (str(self.archive.filename), self.member.filename, self.name)

    def content(self) -> bytes:
        """Return the unpacked bytes."""
        if self.member.file_size > LARGEST_FILE:
            size = f"{self.member.file_size / 1e6:,.0f} MB"
            raise DataError(f"{self.address}: {size} in the archive, more than {LARGEST_FILE // 10**6} MB; left out")
        try:
            return self.archive.read(self.member)  # never more than the declared size
        except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            reason = str(error).split("\n")[0][:120]  # RuntimeError: encrypted; NotImplementedError: compression
            raise DataError(f"{self.address}: cannot be unpacked ({reason}); unpack it yourself") from error


def _member_of(archive: str, member: str, name: Path) -> ZippedImage:
    opened = _opened_archive(archive)
    return ZippedImage(opened, opened.getinfo(member), name)


@lru_cache(maxsize=8)
def _opened_archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class WebImage(InputImage):
    """An image at an ``http`` or ``https`` URL, downloaded when it is read."""

    url: str
    name: Path
    limits: WebLimits
    listed: str = ""

    @property
    def address(self) -> str:
        """The URL."""
        return self.url

    def _pixels(self, pixel_range: PixelRange | None, max_pixels: int) -> npt.NDArray[np.uint8]:
        from retinanet.detection.web import fetch  # takes a tenth of a second

        return decode_image(fetch(self.url, self.limits), self.url, pixel_range, max_pixels)


@dataclass(frozen=True, eq=False)
class PipedImage(InputImage):
    """An image whose bytes were piped into the command."""

    content: bytes
    name: Path = Path("stdin")

    @property
    def address(self) -> str:
        """The word that stands for the standard input on the command line."""
        return "-"

    def _pixels(self, pixel_range: PixelRange | None, max_pixels: int) -> npt.NDArray[np.uint8]:
        if len(self.content) > LARGEST_FILE:
            raise DataError(f"standard input: more than {LARGEST_FILE // 10**6} MB; pipe one image or a list of paths")
        return decode_image(self.content, "standard input", pixel_range, max_pixels)


@dataclass(frozen=True)
class RefusedImage(InputImage):
    """A line of a list that cannot be read as an image, such as an address of another scheme."""

    text: str
    reason: str
    listed: str
    name: Path = Path("image")

    @property
    def address(self) -> str:
        """The line."""
        return self.text

    def _pixels(self, pixel_range: PixelRange | None, max_pixels: int) -> npt.NDArray[np.uint8]:
        raise DataError(self.reason)


def safe_name(text: str) -> Path:
    """Return a relative path without ``..``, drive letters and characters that file systems refuse."""
    parts = [_UNSAFE.sub("_", part) for part in re.split(r"[/\\]", re.sub(r"^[A-Za-z]:", "", text))]
    kept = [part for part in parts if part.strip(". ")]
    return Path(*(_shortened(part) for part in kept)) if kept else Path("image")


def _shortened(part: str) -> str:
    stem, dot, suffix = part.rpartition(".")
    if not stem or len(suffix) > 8:
        return part[:_LONGEST_NAME]
    return stem[:_LONGEST_NAME] + dot + suffix
