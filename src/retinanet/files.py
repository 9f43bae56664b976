"""Writing files and folders so that no crash leaves half of one; telling pipes and devices from files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retinanet.errors import RetinaNetError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk and rename it over ``path``.

    Raises:
        RetinaNetError: the file cannot be written; what was at ``path`` before is untouched.
    """
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        # After a failure the half-written file must not stay; after the rename there is none. If its folder is a file,
        # this fails as well and must not hide the first error.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> RetinaNetError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another folder" if full else "choose another folder"
    return RetinaNetError(f"{path}: cannot be written ({error.strerror or error}); {remedy}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a process left in ``folder`` when it was killed in the middle of a write."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+\.\w+", path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; what of a file name is no text is escaped, in the way JSON does it."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write JSON atomically; with ``indent``, a list of numbers is still one line."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if indent is not None:  # line breaks are escaped in strings, so these are between values
        text = re.sub(r"\[\n([-+.\deE,\snul]+)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    write_text(path, text + "\n")


def refuse_filled(out: Path) -> None:
    """Raise RetinaNetError if ``out`` is there and anything but an empty folder."""
    try:
        filled = os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise RetinaNetError(f"{out}: cannot be listed ({error.strerror}); choose another folder") from error
    if filled:
        raise RetinaNetError(f"{out}: exists and is not an empty folder; give another folder or remove it first")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Let the block fill a temporary folder beside ``out`` that is renamed to ``out`` if all went well.

    Raises:
        RetinaNetError: ``out`` is there and not empty, or cannot be written; nothing is left behind.
    """
    refuse_filled(out)
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        refuse_filled(out)
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()  # not every system renames over an empty folder
        temporary.rename(out)
    except OSError as error:
        raise _not_written(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes that ask the same out of ``folder`` while the block runs; made if it is not there.

    The claim ends with this process, however that ends; the file ``.lock`` stays and means nothing by itself. Windows
    has no such locks, nor have some network drives: nothing is checked there.

    Raises:
        RetinaNetError: another process has it, or it cannot be written.
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
        raise _not_written(folder, error) from error
    with file:
        try:
            # Not flock: processes that were forked would share it, and keep it if they outlive this one.
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
    """What is at ``path`` if it is no ordinary file: opening a pipe waits for ever, and some devices never end.

    Returns:
        ``"a folder"``, ``"a named pipe"`` or ``"a device"``; ``None`` for an ordinary file, and where there is nothing.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device"


def quoted(path: str | Path) -> str:
    """Return a path as it is written in a shell command."""
    return shlex.quote(str(path))
