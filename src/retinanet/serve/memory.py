"""Return unused memory to the system. The C library keeps much of what large images took."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """The function of the C library; ``None`` where it has none, as on macOS and Windows."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None


def give_memory_back() -> None:
    """Return memory that was freed but kept. It takes milliseconds, so call it while nothing else is to be done."""
    if (trim := _trim()) is not None:
        trim(0)
