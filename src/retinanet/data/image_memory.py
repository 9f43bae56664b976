"""Remember between runs which image files could be decoded, so that unchanged files need not be decoded again.

The memory is a SQLite file in the user's cache folder. It only saves time: if it is missing, damaged, locked or not
writable, every image is decoded. Images that cannot be decoded are never stored, so they are checked in every run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# The name holds the version of the table.
_FILE = "images-1.sqlite"

_TABLE = (
    "CREATE TABLE IF NOT EXISTS images (path TEXT PRIMARY KEY, bytes INTEGER, changed INTEGER, width INTEGER, "
    "height INTEGER, digest BLOB, thumbnail BLOB, used INTEGER)"
)
_INDEX = "CREATE INDEX IF NOT EXISTS by_use ON images (used)"
_COLUMNS = "path, bytes, changed, width, height, digest, thumbnail"

# Codes of SQLite after which the file is removed: it is damaged, no database, or has other columns.
_DAMAGED = {1, 11, 20, 26}

# Largest number of images in the file, about 350 MB with thumbnails. Those that were not used for longest are removed.
_IMAGES = 300_000

# Seconds that a write of another process is waited for.
_PATIENCE = 5.0

# A file that changed this recently (seconds) is not stored: a second change could leave its time and size as they are.
_SETTLED = 2.0

# The time of use of a row is updated if it is older than this, in seconds.
_DAY = 86_400

# Number of paths in a query.
_ROWS = 500


class Stamp(NamedTuple):
    """Size of a file in bytes, and time of its last change in nanoseconds."""

    bytes: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """Return the stamp of a file, or ``None`` if there is no such file."""
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Decoded:
    """Result of decoding an image file.

    Attributes:
        stamp: of the file before it was decoded.
        size: ``(width, height)`` of the image.
        digest: hash of the file's bytes; empty if unknown.
        thumbnail: bytes of a small version, see :mod:`retinanet.inspection.duplicates`; empty if unknown.
    """

    stamp: Stamp
    size: tuple[int, int]
    digest: bytes = b""
    thumbnail: bytes = b""


def cache_folder() -> Path:
    """Return the user's cache folder: ``$XDG_CACHE_HOME/retinanet``, or the usual place of the system.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "retinanet"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "retinanet" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "retinanet"
    return Path.home() / ".cache" / "retinanet"


class ImageMemory:
    """The images that earlier runs decoded.

    Attributes:
        used: number of images that :meth:`recall` found unchanged.
        failure: why the memory cannot be used; empty if it can.
    """

    def __init__(self, trusted: bool = True, folder: Path | None = None) -> None:
        """Choose the file; nothing is opened yet.

        Args:
            trusted: whether :meth:`recall` answers. If not, all images are decoded and stored anew.
            folder: folder of the file; unset: the user's cache folder.
        """
        self.used, self.failure = 0, ""
        self._trusted, self._folder = trusted, folder

    def recall(self, paths: Sequence[Path]) -> dict[int, Decoded]:
        """Return the stored result for the position of each path whose file has not changed since."""
        if not self._trusted or not paths:
            return {}
        names = [os.path.abspath(path) for path in paths]
        rows: dict[str, Sequence[Any]] = {}

        def read(connection: Any) -> None:
            for start in range(0, len(names), _ROWS):
                some = [name for name in names[start : start + _ROWS] if _is_text(name)]
                chosen = f"WHERE path IN ({', '.join('?' * len(some))})"
                rows.update(
                    (row[0], row[1:]) for row in connection.execute(f"SELECT {_COLUMNS} FROM images {chosen}", some)
                )
                now = int(time.time())
                connection.execute(f"UPDATE images SET used = ? {chosen} AND used < ?", [now, *some, now - _DAY])

        self._with_connection(read)
        known = {}
        for position, name in enumerate(names):
            if name in rows and (found := _decoded(rows[name])) and found.stamp == Stamp.of(paths[position]):
                known[position] = found
        return known

    def store(self, decoded: Sequence[tuple[Path, Decoded]]) -> None:
        """Store new results, and remove old ones if there are too many."""
        now = time.time()
        rows = [
            (name, *each.stamp, *each.size, each.digest, each.thumbnail, int(now))
            for path, each in decoded
            if _is_text(name := os.path.abspath(path)) and each.stamp.changed < (now - _SETTLED) * 1e9
        ]

        def write(connection: Any) -> None:
            connection.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            (count,) = connection.execute("SELECT COUNT(*) FROM images").fetchone()
            if count > _IMAGES:
                oldest = "SELECT path FROM images ORDER BY used LIMIT ?"
                connection.execute(f"DELETE FROM images WHERE path IN ({oldest})", [count - _IMAGES])

        if rows:
            self._with_connection(write)

    def notes(self, total: int) -> list[str]:
        """Return notes for the user about ``total`` checked images."""
        notes = []
        if self.used:
            notes.append(
                f"{self.used} of {total} images are unchanged since an earlier check and were not decoded again; "
                "--data.verify decodes them, too"
            )
        if self.failure:
            notes.append(f"checked images cannot be remembered for the next run ({self.failure})")
        return notes

    def _with_connection(self, action: Callable[[Any], None], again: bool = True) -> None:
        """Call ``action`` with an open database, in one transaction. A failure is noted, and never raised."""
        if self.failure:
            return
        try:
            import sqlite3

            path = (self._folder or cache_folder()) / _FILE
        except (ImportError, RuntimeError) as error:  # Python without SQLite; a user without a home folder
            self.failure = str(error)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(path, timeout=_PATIENCE)) as connection, connection:
                connection.execute("PRAGMA synchronous = OFF")  # faster; after a power failure the file may be damaged
                connection.execute(_TABLE)
                connection.execute(_INDEX)
                action(connection)
        except (sqlite3.Error, OSError, OverflowError) as error:
            self.failure = f"{path}: {error}"
            if again and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                with contextlib.suppress(OSError):
                    path.unlink()
                    self.failure = ""
                    self._with_connection(action, again=False)


def _decoded(row: Sequence[Any]) -> Decoded | None:
    """Return the result in a row; ``None`` if its values are not of the right types."""
    numbers, (digest, thumbnail) = row[:4], row[4:]
    if not all(isinstance(number, int) for number in numbers) or min(numbers[2:]) < 1:
        return None
    if not isinstance(digest, bytes) or not isinstance(thumbnail, bytes):
        return None
    return Decoded(Stamp(numbers[0], numbers[1]), (numbers[2], numbers[3]), digest, thumbnail)


def _is_text(name: str) -> bool:
    """Whether a path can be stored. File names may hold bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
