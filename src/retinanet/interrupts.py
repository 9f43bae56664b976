"""Ctrl-C and SIGTERM while files have to be completed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at the first Ctrl-C or SIGTERM, and ignore the others until it has ended.

    So the block has time to complete its files. A signal that the program handles in its own way is left alone.
    """
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        usual = {}
    replaced = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    try:
        for number in replaced:
            signal.signal(number, handle)
        yield
    finally:
        for number in replaced:
            signal.signal(number, usual[number])
