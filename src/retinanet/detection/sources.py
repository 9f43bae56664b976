"""List the images of the sources of ``retinanet detect``, one by one, so that a million images take no memory."""

from __future__ import annotations

import glob
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import unquote

from retinanet.data.image_suffixes import IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_image, unread_files
from retinanet.detection.input_images import (
    LARGEST_FILE,
    ImageFile,
    InputImage,
    PipedImage,
    RefusedImage,
    WebImage,
    ZippedImage,
    safe_name,
)
from retinanet.detection.path_set import PathSet
from retinanet.detection.web_limits import WebLimits
from retinanet.errors import DataError

SourceKind = Literal["stdin", "url", "folder", "zip", "parquet", "file", "list", "pattern"]

# Bytes from which the standard input is recognized as an image or a list.
_HEADER = 32

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def kind_of(source: str) -> SourceKind:
    """Return the kind of a source. A path that exists is never a pattern or a list."""
    if source == "-":
        return "stdin"
    if _URL.match(source):
        return "url"
    if os.path.isdir(source):
        return "folder"
    if os.path.exists(source):
        suffix = os.path.splitext(source)[1].lower()
        return "zip" if suffix == ".zip" else "parquet" if suffix == ".parquet" else "file"
    return "list" if source.startswith("@") else "pattern"


def find_images(sources: Sequence[str]) -> list[InputImage]:
    """List all images of some sources; see :class:`SourceList`."""
    listed = SourceList(sources)
    listed.count()
    return list(listed)


class SourceList:
    """The images of all sources in a fixed order, each image once.

    Iterating lists the sources anew. Files come in the order of their paths. A source is an image file, a folder
    (searched recursively, through links too), a glob pattern, a zip archive, a Parquet file, an ``http(s)`` URL, ``@``
    and the name of a text file with a path or URL per line, or ``-``: such lines, or an image, from the standard input.

    Args:
        sources: the sources.
        web: limits of downloads; unset: URLs are refused.
        out: output folder; images in it are results of an earlier run and left out, unless a source lies in it.

    Attributes:
        notes: sentences about files in folders that are not read; filled in by :meth:`count`.
    """

    def __init__(self, sources: Sequence[str], web: WebLimits | None = None, out: Path | None = None) -> None:
        self.notes: list[str] = []
        self._sources, self._web = tuple(sources), web
        self._out = None if out is None else os.path.realpath(out)
        self._archives: dict[str, zipfile.ZipFile] = {}
        for source in self._sources:
            if not source.strip():  # an empty path would mean the current folder
                raise DataError("a source is empty (an unset shell variable?); give images or folders")
        if self._sources.count("-") > 1:
            raise DataError("the standard input is given twice; leave one - out")

    def __getstate__(self) -> dict[str, Any]:
        """Other processes open archives themselves."""
        return {**self.__dict__, "_archives": {}}

    def __iter__(self) -> Iterator[InputImage]:
        """List the images.

        Raises:
            DataError: a source does not exist or contains no image.
        """
        kinds = [kind_of(source) for source in self._sources]
        # The images of one folder differ. Only other sources can name an image twice.
        seen = None if kinds == ["folder"] or kinds == ["zip"] else PathSet()
        for source, kind in zip(self._sources, kinds, strict=True):
            for image in self._images_of(source, kind):
                if seen is None or seen.add(_identity(image)):
                    yield image

    def count(self, visit: Callable[[InputImage], object] = lambda image: None) -> int | None:
        """Check that every source can be listed and contains an image.

        Args:
            visit: called with every image, except those of the standard input.

        Returns:
            The number of images; ``None`` if the standard input is a source, which can be read once only.

        Raises:
            DataError: a source does not exist or contains no image.
        """
        self.notes = []
        if "-" in self._sources and _stdin() is None:
            raise DataError("standard input is a terminal; pipe paths or an image into the command, or give files")
        total = 0
        for image in self.without_stdin():
            visit(image)
            total += 1
        return None if "-" in self._sources else total

    def without_stdin(self) -> SourceList:
        """Return the images of all sources but the standard input, which can be read once only."""
        others = SourceList([source for source in self._sources if source != "-"], self._web)
        others._out, others._archives, others.notes = self._out, self._archives, self.notes
        return others

    def _images_of(self, source: str, kind: SourceKind) -> Iterator[InputImage]:
        match kind:
            case "stdin":
                return self._of_stdin()
            case "url":
                return iter([self._of_url(source)])
            case "folder":
                return self._of_folder(source)
            case "zip":
                return self._of_zip(source)
            case "parquet":
                from retinanet.detection.parquet import images_in  # imports pyarrow

                return images_in(source)
            case "file":
                return iter([ImageFile(Path(source), Path(Path(source).name))])
            case "list":
                return self._of_list(source.removeprefix("@"))
            case "pattern":
                return self._of_pattern(source)

    def _of_folder(self, folder: str) -> Iterator[InputImage]:
        walk = _Walk(folder, self._out)
        others: list[str] = []
        empty = True
        for path in walk:
            if is_image(path):
                empty = False
                yield ImageFile(Path(path), Path(os.path.relpath(path, folder)))
            elif os.path.splitext(path)[1].lower() in UNREAD_SUFFIXES:
                others.append(os.path.basename(path))
        left_out = list(unread_files(others)) + walk.problems
        if empty:
            raise _no_images(folder, "contains no image", left_out)
        self._note(f"{folder}: {sentence}" for sentence in left_out)

    def _of_pattern(self, pattern: str) -> Iterator[InputImage]:
        fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        leave_out = self._out if self._out and not _lies_in(os.path.dirname(fixed) or ".", self._out) else None
        names = sorted(glob.glob(pattern, recursive=True))
        empty = True
        for name in names:
            hidden = os.path.basename(name).startswith(".")
            if is_image(name) and not hidden and not (leave_out and _lies_in(os.path.dirname(name) or ".", leave_out)):
                empty = False
                yield ImageFile(Path(name), Path(Path(name).name))
        if empty:
            missing = "matches no image" if fixed != pattern else "no such file or folder"
            raise _no_images(pattern, missing, unread_files(names))

    def _of_zip(self, source: str) -> Iterator[InputImage]:
        try:
            archive = self._archives.get(source) or zipfile.ZipFile(source)
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise DataError(f"{source}: not a readable zip archive ({error}); replace it") from error
        self._archives[source] = archive
        names = sorted({info.filename for info in archive.infolist() if not info.is_dir()})
        shown = [name for name in names if is_image(name) and not safe_name(name).name.startswith(".")]
        if not shown:
            raise _no_images(source, "contains no image", unread_files(names))
        for name in shown:
            yield ZippedImage(archive, archive.getinfo(name), safe_name(name))
        self._note(f"{source}: {sentence}" for sentence in unread_files(names))

    def _of_list(self, path: str) -> Iterator[InputImage]:
        try:
            with open(path, "rb") as file:
                start = file.read(1024)
                file.seek(0)
                if b"\0" in start:
                    raise DataError(f"{path}: not a list in UTF-8; give a text file with a path or URL per line")
                yield from self._of_lines(file, path, os.path.dirname(path))
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); give a text file with a path per line"
            ) from error

    def _of_stdin(self) -> Iterator[InputImage]:
        stream = _stdin()
        if stream is None:
            return
        start = stream.readline(4096)
        # The first line can end within the header of an image. More is read only if it names no image, because the next
        # path may take long to come.
        while len(start) < _HEADER and not _is_binary(start) and not _names_image(start):
            if not (more := stream.readline(4096)):
                break
            start += more
        if _is_binary(start):
            yield PipedImage(start + stream.read(LARGEST_FILE))
            return
        start += b"" if start.endswith(b"\n") else stream.readline()
        yield from self._of_lines(chain(io.BytesIO(start), stream), "standard input", "")

    def _of_lines(self, lines: Iterable[bytes], where: str, folder: str) -> Iterator[InputImage]:
        """List the paths (relative to ``folder``) and URLs of a list. A missing file is an error when it is read."""
        empty = True
        for number, line in enumerate(lines, 1):
            text = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf")).strip()
            if not text:
                continue
            empty, place = False, f"{where}:{number}"
            if _URL.match(text):
                try:
                    yield self._of_url(text, place)
                except DataError as error:
                    yield RefusedImage(text, str(error), place)
            else:
                name = Path(text).name if os.path.isabs(text) else text
                yield ImageFile(Path(os.path.join(folder, text)), safe_name(name), place)
        if empty:
            raise DataError(f"{where}: names no image; give a path or URL per line")

    def _of_url(self, url: str, listed: str = "") -> InputImage:
        match = _URL.match(url)
        if match and match[1].lower() not in ("http", "https"):
            raise DataError(f"{url}: {match[1]} addresses are not supported; download the image and give its path")
        if self._web is None:
            raise DataError(f"{url}: URLs are read only if they are allowed; pass web=WebLimits(), or give a path")
        name = unquote(re.split(r"[?#]", url)[0].rsplit("/", 1)[-1])
        return WebImage(url, safe_name(name), self._web, listed)

    def _note(self, sentences: Iterator[str]) -> None:
        self.notes += [sentence for sentence in sentences if sentence not in self.notes]


class _Walk:
    """The files below a folder in the order of their paths; hidden ones are left out. Each folder is visited once.

    Args:
        folder: where to start.
        leave_out: real path of a folder that is left out if it lies below ``folder``.

    Attributes:
        problems: sentences about folders that cannot be listed.
    """

    def __init__(self, folder: str, leave_out: str | None) -> None:
        self.problems: list[str] = []
        self._start, self._leave_out = folder, leave_out
        self._visited: set[tuple[int, int]] = set()

    def __iter__(self) -> Iterator[str]:
        self._visited.clear()
        yield from self._below(self._start)

    def _below(self, parent: str) -> Iterator[str]:
        try:
            status = os.stat(parent)
            if (place := (status.st_dev, status.st_ino)) in self._visited:
                return
            self._visited.add(place)
            with os.scandir(parent) as entries:
                kinds = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
        except OSError as error:
            self.problems.append(f"{parent} cannot be listed ({error.strerror}) and is left out")
            return
        for name in sorted(kinds):
            path = os.path.join(parent, name)
            if not kinds[name]:
                yield path
            elif self._wanted(path):
                yield from self._below(path)

    def _wanted(self, folder: str) -> bool:
        """Whether a folder is neither the one to leave out nor a link to the start or to a folder above it."""
        real = os.path.realpath(folder)
        above = os.path.islink(folder) and _lies_in(self._start, real)
        return not above and real != self._leave_out


def _lies_in(folder: str, parent: str) -> bool:
    """Whether ``folder`` is the folder with the real path ``parent`` or lies below it."""
    return f"{os.path.realpath(folder)}{os.sep}".startswith(os.path.join(parent, ""))


def _identity(image: InputImage) -> str:
    return os.path.abspath(image.path) if isinstance(image, ImageFile) else image.address


def _stdin() -> IO[bytes] | None:
    """The standard input; ``None`` if it is a terminal or closed."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    return sys.stdin.buffer


def _is_binary(start: bytes) -> bool:
    """Whether the standard input starts with the header of an image and not with a list of paths.

    The headers of all formats contain a zero byte, except for those that begin with one of these signatures.
    """
    return b"\0" in start or re.match(rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|P[1-7]\s", start) is not None


def _names_image(line: bytes) -> bool:
    """Whether the first line of the standard input is a URL or the path of a file."""
    text = os.fsdecode(line).strip()
    return bool(_URL.match(text)) or os.path.exists(text)


def _no_images(source: str, missing: str, left_out: Sequence[str] | Iterator[str]) -> DataError:
    missing += "".join(f" ({sentence})" for sentence in left_out)
    return DataError(f"{source}: {missing}; give images ({', '.join(sorted(IMAGE_SUFFIXES)[:4])} …) or folders")
