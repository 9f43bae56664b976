"""Times and memory of calls on one device."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Number of rounds whose median is reported.
ROUNDS = 7

Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """The device, and how much is measured on it.

    Attributes:
        device: the GPU, or the CPU to try the script.
        quick: use small sizes.
        compiled: also measure each side under ``torch.compile``; compiling takes most of the script's time.
    """

    device: torch.device
    quick: bool
    compiled: bool

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return 128 if self.quick else 800

    def sizes(self, *values: int) -> tuple[int, ...]:
        """Batch sizes to measure: ``values``, or with ``quick`` one of at most 2."""
        return (min(2, values[0]),) if self.quick else values

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def times(self, sides: dict[str, Call], least: int = 1) -> dict[str, float]:
        """Median seconds of a call of each side; the sides are called in turn.

        Short calls are repeated between two waits. ``least`` is the smallest number of repetitions: in consecutive
        steps, the CPU's part of a step overlaps with the GPU's part of the step before.
        """
        repeats = {}
        for side, call in sides.items():
            for _ in range(3):  # warm up, and compile
                call()
            repeats[side] = max(least, min(100, round(0.02 / max(1e-6, self._seconds(call, 1)))))
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(2 if self.quick else ROUNDS):
            for side, call in sides.items():
                found[side].append(self._seconds(call, repeats[side]))
        return {side: statistics.median(values) for side, values in found.items()}

    def device_times(self, sides: dict[str, Call]) -> dict[str, float] | None:
        """Median seconds of GPU time of a call of each side while the CPU is ahead, as in a training; None on the CPU.

        The calls are queued behind a pause, so that the GPU never waits for a launch. A side that reads a result from
        the GPU cannot be measured this way.
        """
        if self.device.type != "cuda":
            return None
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(2 if self.quick else ROUNDS):
            for side, call in sides.items():
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # cycles: about 10 ms
                began.record()
                for _ in range(10):
                    call()
                ended.record()
                self.wait()
                found[side].append(began.elapsed_time(ended) / 10 / 1000)
        return {side: statistics.median(values) for side, values in found.items()}

    def _seconds(self, call: Call, repeats: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def memory(self, call: Call) -> float | None:
        """Peak memory of a call in megabytes, without the memory in use before it; None on the CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)

    def compare(
        self,
        what: str,
        sides: dict[str, Call],
        images: int = 1,
        least: int = 1,
        queued: Sequence[str] = (),
        **more: Any,
    ) -> Row:
        """Return a row with the milliseconds, images per second and peak memory of each side, and the sides that fail.

        ``queued`` are the sides whose GPU time is measured too; none of them may wait for the GPU.
        """
        failed = _errors(sides)
        sides = {side: call for side, call in sides.items() if side not in failed}
        seconds = self.times(sides, least)
        more |= {"error": failed} if failed else {}
        row: Row = {
            "what": what,
            "median_ms": {side: round(1000 * value, 4) for side, value in seconds.items()},
            "peak_memory_mb": {side: self.memory(call) for side, call in sides.items()},
            **more,
        }
        if "torchvision" in seconds:
            row["times_faster"] = {
                side: round(seconds["torchvision"] / value, 2) for side, value in seconds.items() if side != "floor"
            }
        alone = self.device_times({side: call for side, call in sides.items() if side in queued}) if queued else None
        if alone is not None:
            row["device_ms"] = {side: round(1000 * value, 4) for side, value in alone.items()}
        if "floor" in seconds:
            alone = alone or seconds
            row["share_of_floor"] = {side: round(alone["floor"] / value, 3) for side, value in alone.items()}
        if images > 1 or "images" in what:
            row["images_per_second"] = {side: round(images / value, 1) for side, value in seconds.items()}
        return row


def _errors(sides: dict[str, Call]) -> dict[str, str]:
    """Call each side once and return the errors of the sides that fail, so that the others can be measured."""
    errors = {}
    for side, call in sides.items():
        try:
            call()
        except Exception as error:
            traceback.print_exc()
            errors[side] = f"{type(error).__name__}: {error}"[:500]
    return errors
