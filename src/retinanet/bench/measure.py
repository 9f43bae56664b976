"""Measure time and memory of the sides of a case, called in turn."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

# A side is not called again if one call takes longer than this many seconds.
_PATIENCE = 20.0

# To reduce noise, fast calls are repeated for at least this many seconds, but at most this many times.
_AT_LEAST, _ENOUGH = 1.0, 200


@dataclass
class Case:
    """A row of the table: a computation and the sides that compute it.

    Attributes:
        name: the computation.
        sides: a function for each side. The first two are ours and torchvision's.
        floor: a function that does only the minimum work of the computation, or None.
        floor_name: description of ``floor``.
        items: number of items (such as images) per call.
        note: a sentence for the reader.
    """

    name: str
    sides: dict[str, Callable[[], Any]]
    floor: Callable[[], Any] | None = None
    floor_name: str = ""
    items: int = 1
    note: str = ""


@dataclass
class Timing:
    """Medians of a case.

    Attributes:
        name: the name of the case.
        seconds: median of each side, and of ``floor``.
        memory: peak of additional bytes during a call of each side. Empty if the system does not report it.
        items: number of items per call.
        notes: see :class:`Case`.
    """

    name: str
    seconds: dict[str, float]
    memory: dict[str, int]
    items: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def peer(self) -> str:
        """The name of the side that our side is compared with."""
        return "pycocotools" if "pycocotools" in self.seconds else "torchvision"

    def times_faster(self, ours: str = "ours") -> float | None:
        """The peer's time divided by ours."""
        if ours not in self.seconds or self.peer not in self.seconds:
            return None
        return self.seconds[self.peer] / self.seconds[ours]

    def to_dict(self) -> dict[str, Any]:
        """The entry of the JSON file."""
        return {
            "what": self.name,
            "median_ms": {side: round(1000 * value, 3) for side, value in self.seconds.items()},
            "times_faster": {
                side: round(self.seconds[self.peer] / value, 2)
                for side, value in self.seconds.items()
                if self.peer in self.seconds and side not in (self.peer, "floor")
            },
            "extra_memory_mb": {side: round(value / 2**20, 1) for side, value in self.memory.items()},
            "items_per_call": self.items,
            "notes": self.notes,
        }


def measure(case: Case, repeats: int, memory: bool = True) -> Timing:
    """Call the sides in turn and take medians, after a warm-up round; measure memory if ``memory`` is set.

    Each side is called ``repeats`` times. Fast sides are called more often.
    """
    calls = dict(case.sides)
    if case.floor is not None:
        calls["floor"] = case.floor
    times: dict[str, list[float]] = {side: [] for side in calls}
    round_number, until = 0, time.perf_counter() + _AT_LEAST
    while round_number <= repeats or (round_number <= _ENOUGH and time.perf_counter() < until):
        for side, call in calls.items():
            if times[side] and times[side][0] > _PATIENCE:
                continue
            began = time.perf_counter()
            call()
            took = time.perf_counter() - began
            if round_number > 0 or took > _PATIENCE:
                times[side].append(took)
        round_number += 1
    taken: dict[str, int] = {}
    for side, call in case.sides.items() if memory else ():
        found = extra_memory(call)
        if found is not None:
            taken[side] = found
    notes = [text for text in (case.note, case.floor_name and f"floor: {case.floor_name}") if text]
    return Timing(case.name, {k: statistics.median(v) for k, v in times.items()}, taken, case.items, notes)


def extra_memory(call: Callable[[], Any]) -> int | None:
    """The peak of additional bytes in use during a call. None: the system does not report it."""
    gc.collect()
    try:
        # Return freed memory to the system first. Otherwise its reuse would not be counted.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")  # reset the peak to the memory in use
        before = _peak()
        call()
        return max(0, _peak() - before)
    except (OSError, AttributeError):
        return None


def _peak() -> int:
    return 1024 * int(_STATUS.read_text().split("VmHWM:")[1].split()[0])
