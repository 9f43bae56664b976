from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from retinanet.data.windows import Window, WindowReader, open_windows, read_ahead
from retinanet.errors import DataError


def threads() -> int:
    return sum(thread.name == "read_ahead" for thread in threading.enumerate())


class Numbers(WindowReader):
    """Windows that are filled with the number of their first row; counts the reads, and fails at one."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.path, self.size, self.by_window = Path("numbers.tif"), (1000, 8), True
        self.fails_at, self.reads = fails_at, 0

    def _read(self, window: Window) -> np.typing.NDArray[np.uint8]:
        self.reads += 1
        if window.top == self.fails_at:
            raise DataError("row is damaged")
        return np.full((window.height, window.width, 3), window.top, np.uint8)

    def close(self) -> None:
        pass


WINDOWS = [Window(top, 0, 1, 8) for top in range(100)]


def test_windows_arrive_in_order() -> None:
    assert [pixels[0, 0, 0] for pixels in read_ahead(Numbers(), WINDOWS)] == list(range(100))
    assert threads() == 0
    assert list(read_ahead(Numbers(), [])) == []


def test_few_windows_are_read_before_they_are_asked_for() -> None:
    reader = Numbers()
    found = read_ahead(reader, iter(WINDOWS), ahead=3)
    next(found)
    time.sleep(0.3)
    assert reader.reads <= 1 + 3 + 1
    found.close()  # type: ignore[attr-defined]


def test_the_thread_ends_with_its_iterator() -> None:
    for pixels in read_ahead(Numbers(), WINDOWS):
        if pixels[0, 0, 0] == 5:
            assert threads() == 1
            break
    del pixels
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == 0


def test_an_error_arrives_after_the_windows_before_it() -> None:
    found = read_ahead(Numbers(fails_at=7), WINDOWS)
    assert [int(next(found)[0, 0, 0]) for _ in range(7)] == list(range(7))
    with pytest.raises(DataError, match="row is damaged"):
        next(found)
    assert threads() == 0


def test_it_reads_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 40, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(16, 16), photometric="rgb")
    with open_windows(tmp_path / "a.tif") as reader:
        parts = list(read_ahead(reader, [Window(top, 0, 30, 40) for top in (0, 30, 60)]))
    np.testing.assert_array_equal(np.concatenate(parts), pixels)
