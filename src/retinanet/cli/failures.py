"""One-line messages for failures of the machine, such as exhausted memory."""

from __future__ import annotations

import os


def machine_failure(error: BaseException, verb: str) -> str | None:
    """The message for an error of the machine, such as a full disk; None for errors of the program."""
    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    memory = (
        isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "DefaultCPUAllocator" in str(error)
    )
    if memory:
        remedy = "lower --train.batch or --data.size" if verb == "train" else "end other programs that use much memory"
        return f"out of memory ({text}); {remedy}"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno)}"
    return None
