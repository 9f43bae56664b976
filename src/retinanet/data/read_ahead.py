"""Read the next windows of an image in a thread while the network works on the last one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from retinanet.data.window_reader import Window, WindowReader

# Windows that are read but not yet asked for.
_AHEAD = 2


def read_ahead(reader: WindowReader, windows: Iterable[Window], ahead: int = _AHEAD) -> Iterator[npt.NDArray[np.uint8]]:
    """Read windows in order; a thread reads the next ones meanwhile.

    The thread ends when all windows are read, when one cannot be read, and when the iterator is closed. Until then, use
    ``reader`` for nothing else.

    Args:
        reader: the reader.
        windows: the windows, in the order of the results.
        ahead: number of windows that may wait for the consumer. At most this many are in memory, besides the one
            that is being read and the one that the consumer has.

    Yields:
        uint8 RGB ``(height, width, 3)`` for each window.

    Raises:
        DataError: a window cannot be read; the windows before it have been yielded.
    """
    waiting: queue.Queue[npt.NDArray[np.uint8] | BaseException | None] = queue.Queue(max(1, ahead))
    stopped = threading.Event()

    def put(item: npt.NDArray[np.uint8] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):  # look again whether the consumer has stopped
                waiting.put(item, timeout=0.1)
                return

    def read_all() -> None:
        try:
            for window in windows:
                if stopped.is_set():
                    return
                put(reader.read(window))
            put(None)
        except BaseException as error:  # raised in the consumer's thread
            put(error)

    thread = threading.Thread(target=read_all, name="read_ahead", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
