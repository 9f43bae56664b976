"""Stages of a pipeline that work at the same time: reading ahead in a thread, and the time that each stage takes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class StageTimes:
    """Adds up the seconds that each stage works. Each stage may run in its own thread."""

    def __init__(self, stages: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return max(time.perf_counter() - self._start, 1e-9)

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def measure_each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``; the time that it takes to get each one is added to ``stage``."""
        iterator = iter(items)
        while True:
            with self.measured(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def shares(self) -> str:
        """Share of the time in which each stage works, such as ``decode 12 %, network 80 %``."""
        elapsed = self.elapsed
        return ", ".join(f"{stage} {seconds / elapsed:.0%}" for stage, seconds in self.seconds.items())


class ReadAhead(Generic[T]):
    """Reads from an iterable in a thread, up to ``size`` items ahead. Use it as a context manager.

    Args:
        items: what is read.
        size: largest number of items that wait.
        latest: if ``size`` items wait, drop the oldest instead of pausing the thread.
    """

    def __init__(self, items: Iterable[T], size: int, latest: bool = False) -> None:
        self.dropped = 0
        self._items, self._size, self._latest = items, size, latest
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        # A thread that waits for a camera ends at its next frame or time-out; nothing has to wait for that.
        self._thread.join(timeout=1.0)

    def take(self, count: int) -> list[T]:
        """Return the next items, empty at the end: ``count`` of them, or with ``latest`` those that are there."""
        with self._changed:
            wanted = 1 if self._latest else min(count, self._size)
            self._changed.wait_for(lambda: len(self._waiting) >= wanted or self._ended)
            taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
            self._changed.notify_all()
            if not taken and self._error is not None:
                raise self._error
            return taken

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as error:  # raised again where the items are taken
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            close = getattr(self._items, "close", None)
            if close is not None:
                close()

    def _put(self, item: T) -> bool:
        with self._changed:
            if self._latest and len(self._waiting) >= self._size:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: len(self._waiting) < self._size or self._stopped)
            self._waiting.append(item)
            self._changed.notify_all()
            return not self._stopped
