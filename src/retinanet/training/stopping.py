"""Ctrl-C and SIGTERM end a training after the current step, with its state saved."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds in which several signals count as a single signal: a terminal and torchrun both pass Ctrl-C on, and torchrun
# then sends SIGTERM.
_VOLLEY_SECONDS = 0.5


class TrainingStopped(KeyboardInterrupt):
    """The training was asked to stop and saved its state first."""


class StopRequest:
    """Whether the process was asked to stop.

    Attributes:
        requested: set by the first signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first = math.inf

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. A Ctrl-C more than half a second after the first signal interrupts at once."""
        if number == signal.SIGINT and time.monotonic() > self._first + _VOLLEY_SECONDS:
            raise KeyboardInterrupt
        self._first = min(self._first, time.monotonic())
        self.requested = True


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request to stop while the block runs."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
