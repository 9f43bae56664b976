"""Writing files so that a crash, a full disk or a second process never leaves half of one; what is no file at all."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable
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
        raise RetinaNetError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    finally:
        # After a failure the half-written file must not stay; after the rename there is none. If its folder is a file,
        # this fails as well and must not hide the first error.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; what of a file name is no text is escaped, in the way JSON does it."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


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
