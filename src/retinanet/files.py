"""Write files and folders so that a crash leaves no half-written files; recognize pipes and devices."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from retinanet.errors import RetinaNetError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk and rename it over ``path``.

    Raises:
        RetinaNetError: the file cannot be written; an existing file at ``path`` is untouched.
    """
    with replaced(path) as temporary:
        write(temporary)


@contextlib.contextmanager
def opened_atomically(path: Path) -> Iterator[IO[str]]:
    """Open a text file for writing that replaces ``path`` if the block succeeds. Text is encoded as in
    :func:`write_text`, and line breaks stay as they are.

    Raises:
        RetinaNetError: the file cannot be written; an existing file at ``path`` is untouched.
    """
    with (
        replaced(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; if the block succeeds, its file replaces ``path``."""
    # The temporary name ends with the same suffix, because writers such as matplotlib choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        # After a failure, remove the half-written file. If its folder is a file, the removal fails, too, and
        # must not hide the first error.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def not_written(path: Path, error: OSError) -> RetinaNetError:
    """Return the error for a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another folder" if full else "choose another folder"
    return RetinaNetError(f"{path}: cannot be written ({error.strerror or error}); {remedy}")


def remove_leftovers(folder: Path, stem: str | None = None) -> None:
    """Remove temporary files that a killed process left in ``folder``; with ``stem``, only those of ``stem.*``."""
    name = ".+" if stem is None else re.escape(stem)
    for path in folder.glob(".*"):
        if re.fullmatch(rf"\.{name}\.\d+\.\w+", path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. File names may hold characters that UTF-8 cannot encode; they are escaped as in
    JSON."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write JSON atomically. With ``indent``, a list of numbers stays on one line."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if indent is not None:  # JSON escapes line breaks in strings, so all line breaks here are between values
        text = re.sub(r"\[\n([-+.\deE,\snul]+)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    write_text(path, text + "\n")


def make_folder(out: Path, flag: str = "--out ") -> None:
    """Make a folder for results and check that files can be written there. Call it before the work, not after.

    Args:
        out: the folder.
        flag: the flag that named it, for the message.

    Raises:
        RetinaNetError: the folder cannot be made, or writing there is not permitted.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RetinaNetError(f"{flag}{out}: no such folder can be made ({error.strerror}); choose another") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise RetinaNetError(f"{flag}{out}: writing there is not permitted; choose another folder")


def refuse_filled(out: Path) -> None:
    """Raise RetinaNetError if ``out`` exists and is not an empty folder."""
    try:
        filled = os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise RetinaNetError(f"{out}: cannot be listed ({error.strerror}); choose another folder") from error
    if filled:
        raise RetinaNetError(f"{out}: exists and is not an empty folder; give another folder or remove it first")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Let the block fill a temporary folder, which is renamed to ``out`` if the block succeeds.

    Raises:
        RetinaNetError: ``out`` exists and is not empty, or cannot be written; nothing is left behind.
    """
    refuse_filled(out)
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        refuse_filled(out)
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()  # some systems cannot rename over an empty folder
        temporary.rename(out)
    except OSError as error:
        raise not_written(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock ``folder`` (made if it does not exist) against other processes that claim it, while the block runs.

    The lock ends when this process ends, also if it is killed. The file ``.lock`` stays, but only a lock on that file
    has a meaning. Windows and some network drives have no such locks, so nothing is checked there.

    Raises:
        RetinaNetError: another process has claimed the folder, or the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise not_written(folder, error) from error
    with file:
        try:
            # Not flock: forked processes would share the lock, and keep it if they outlive this process.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read(20).strip()
                raise RetinaNetError(
                    f"{folder}: process {owner} is writing to it; wait until it has ended, or choose another folder"
                ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def special_file(path: Path | str) -> str | None:
    """Return the kind of ``path`` if it is not a regular file. Opening a pipe can block, and some devices never end.

    Returns:
        ``"a folder"``, ``"a named pipe"`` or ``"a device"``; ``None`` if it is a regular file or does not exist.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device"


def start_of(source: Path | bytes, count: int = 8) -> bytes:
    """First bytes of a file, given by its path or its content; empty if it cannot be read or is not a regular file."""
    if isinstance(source, bytes):
        return source[:count]
    if special_file(source):
        return b""
    try:
        with source.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError):
        return b""
