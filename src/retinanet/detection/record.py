"""The record of a run of ``retinanet detect``: a line of JSON for each image, appended as soon as it is done.

The record is the file ``detections.jsonl``. All other result files are written from it at the end, and a run that was
interrupted goes on from it. A hidden file beside it holds the settings of the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO, Any, Self

from retinanet.detections import Detections
from retinanet.errors import CheckpointError, DataError
from retinanet.files import not_written, write_json

RECORD = "detections.jsonl"
SETTINGS = ".detections.settings.json"

# Seconds between two times at which the record is forced to the disk. A killed process loses nothing that it wrote;
# only a power failure does.
_SYNC = 5.0

# Beginning of every line.
_ENTRY = b'{"path": "'

# Bytes that are read at once while the end of the last complete line is searched.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Found:
    """A detection in an output file: ``box`` is ``x1, y1, x2, y2`` in pixels, rounded to 0.01."""

    box: tuple[float, float, float, float]
    score: float
    label: int


@dataclass(frozen=True)
class Entry:
    """An image in the record.

    Attributes:
        path: the address of the image.
        name: path of its output files without a suffix, relative to the output folder.
        size: ``(height, width)``; ``None`` if the image could not be read.
        found: the detections, best first.
        error: why the image could not be read; empty if it could.
        limited: whether the image reached a limit on detections.
        nonfinite: whether predictions were NaN or infinite.
    """

    path: str
    name: str
    size: tuple[int, int] | None
    found: tuple[Found, ...] = ()
    error: str = ""
    limited: bool = False
    nonfinite: bool = False

    @classmethod
    def of(cls, path: str, name: str, size: tuple[int, int], found: Detections) -> Self:
        """Return the entry of an image with its detections, rounded."""
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        rounded = tuple(
            Found((round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2)), round(score, 4), label)
            for (x1, y1, x2, y2), score, label in rows
        )
        return cls(path, name, size, rounded, "", len(found.limited) > 0, len(found.nonfinite) > 0)

    def to_line(self, classes: tuple[str, ...]) -> str:
        """Return the entry as a line of JSON."""
        values: dict[str, Any] = {"path": self.path, "name": self.name}
        if self.size is None:
            values["error"] = self.error
        else:
            values |= {"width": self.size[1], "height": self.size[0]}
            values["detections"] = [
                {"box": each.box, "score": each.score, "label": each.label, "class": classes[each.label]}
                for each in self.found
            ]
            values |= {mark: True for mark in ("limited", "nonfinite") if getattr(self, mark)}
        return json.dumps(values, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Return the entry of a line.

        Raises:
            ValueError, KeyError, TypeError: the line was not written by :meth:`to_line`.
        """
        values = json.loads(line)
        size = None if "error" in values else (int(values["height"]), int(values["width"]))
        found = tuple(Found(tuple(each["box"]), each["score"], each["label"]) for each in values.get("detections", ()))
        marks = (bool(values.get(mark)) for mark in ("limited", "nonfinite"))
        return cls(str(values["path"]), str(values["name"]), size, found, str(values.get("error", "")), *marks)


@dataclass(frozen=True)
class Entries:
    """The entries of a record, read from the file each time. Other processes can be sent it.

    Attributes:
        path: the file.
        end: number of bytes that are read; ``None``: all.
    """

    path: Path
    end: int | None = None

    def __iter__(self) -> Iterator[Entry]:
        """Read the entries.

        Raises:
            DataError: a line is damaged.
        """
        position = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                position += len(line)
                if self.end is not None and position > self.end:
                    return
                try:
                    yield Entry.from_line(line)
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{self.path}:{number}: damaged line; detect again without --resume") from error


@dataclass
class Record:
    """The record of a run, open for appending.

    Attributes:
        path: the file.
        classes: names of the detector's classes.
        done: number of bytes that earlier runs wrote.
    """

    path: Path
    classes: tuple[str, ...]
    done: int
    _file: IO[bytes] = field(repr=False)
    _synced: float = field(default_factory=monotonic, repr=False)

    @classmethod
    def start(cls, out: Path, classes: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        """Begin a record in the folder ``out``. It replaces the record of an earlier run.

        Raises:
            RetinaNetError: it cannot be written.
        """
        path = out / RECORD
        try:
            path.unlink(missing_ok=True)  # before the settings, so that those never belong to another record
            write_json(out / SETTINGS, dict(settings))
            return cls(path, classes, 0, path.open("wb"))
        except OSError as error:
            raise not_written(path, error) from error

    @classmethod
    def resume(cls, out: Path, classes: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        """Open the record of an interrupted run in the folder ``out``. A last line that is torn is removed.

        Raises:
            CheckpointError: there is no record, its last line is damaged and not torn, or it is of a run with other
                settings.
            RetinaNetError: it cannot be written.
        """
        path = out / RECORD
        _require_same(out, json.loads(json.dumps(dict(settings))))
        try:
            with path.open("rb") as existing:
                end = _end_of_last_entry(existing)
            if end is None:
                raise CheckpointError(
                    f"--resume: {path} ends with a line that no run of 'retinanet detect' has written; restore the "
                    "file, or detect again without --resume"
                )
            file = path.open("r+b")
            file.truncate(end)
            file.seek(end)
            return cls(path, classes, end, file)
        except OSError as error:
            raise not_written(path, error) from error

    def append(self, entry: Entry) -> None:
        """Write an entry. It survives the end of this process, however that ends.

        Raises:
            RetinaNetError: it cannot be written, for example because the disk is full.
        """
        try:
            # File names may hold bytes that are not UTF-8. They are escaped as in JSON.
            self._file.write(entry.to_line(self.classes).encode("utf-8", "backslashreplace"))
            self._file.flush()
            if monotonic() - self._synced > _SYNC:
                self.sync()
        except OSError as error:
            raise not_written(self.path, error) from error

    def sync(self) -> None:
        """Force all entries to the disk."""
        os.fsync(self._file.fileno())
        self._synced = monotonic()

    def close(self) -> None:
        """Force all entries to the disk, and close the file.

        Raises:
            RetinaNetError: they cannot be written.
        """
        try:
            with self._file:
                self.sync()
        except OSError as error:
            raise not_written(self.path, error) from error

    def entries(self) -> Entries:
        """Return all entries."""
        return Entries(self.path)

    def earlier(self) -> Entries:
        """Return the entries that earlier runs wrote."""
        return Entries(self.path, self.done)


def _require_same(out: Path, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the run in ``out`` has these settings."""
    try:
        stored = json.loads((out / SETTINGS).read_bytes())
        missing = not (out / RECORD).is_file()
    except FileNotFoundError:
        missing, stored = True, {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{out / SETTINGS}: cannot be read ({error}); detect again without --resume") from error
    if missing:
        raise CheckpointError(f"--resume: {out} holds no record of an earlier run; leave --resume out")
    names = sorted(name for name in settings.keys() | stored.keys() if settings.get(name) != stored.get(name))
    if names:
        both = ", ".join(f"{name} {_shown(stored.get(name))} (now {_shown(settings.get(name))})" for name in names)
        raise CheckpointError(f"--resume: the run in {out} has {both}; repeat its settings or choose another --out")


def _shown(value: Any) -> str:
    text = "unset" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _end_of_last_entry(file: IO[bytes]) -> int | None:
    """Return the position after the last entry, without a torn last line; ``None`` if there is no entry before it."""
    end = file.seek(0, os.SEEK_END)
    start, line = _last_line(file, end)
    if _is_torn(line):
        end = start
        _, line = _last_line(file, end)
    if end == 0:
        return 0
    try:
        Entry.from_line(line)
    except (ValueError, KeyError, TypeError):
        return None
    return end


def _is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of an entry. A killed process may leave it, and a power failure also zeros."""
    written = line.rstrip(b"\0")
    return not written.endswith(b"\n") and (written.startswith(_ENTRY) or _ENTRY.startswith(written))


def _last_line(file: IO[bytes], end: int) -> tuple[int, bytes]:
    """Return the position and the content of the last line of the first ``end`` bytes."""
    start = _start_of_line(file, end)
    file.seek(start)
    return start, file.read(end - start)


def _start_of_line(file: IO[bytes], end: int) -> int:
    """Return the position at which the line begins whose last byte is before ``end``."""
    stop = end - 1  # the line break of this line
    while stop > 0:
        begin = max(0, stop - _BLOCK)
        file.seek(begin)
        found = file.read(stop - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        stop = begin
    return 0
