"""Windows of an image, and the interface of their readers (:func:`retinanet.data.windows.open_windows`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from retinanet.errors import DataError


class Window(NamedTuple):
    """A rectangle of an image: pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


class WindowReader(ABC):
    """Reads windows of one image file; a context manager. One thread at a time may use it.

    Attributes:
        path: the file.
        size: ``(height, width)`` of the upright image.
        by_window: whether the image is decoded in pieces. If not, the first read decodes it whole.
    """

    path: Path
    size: tuple[int, int]
    by_window: bool

    def read(self, window: Window) -> npt.NDArray[np.uint8]:
        """Read a window as uint8 RGB ``(height, width, 3)``.

        Raises:
            DataError: the window is empty or not inside the image, or a part of the file that it needs is damaged.
        """
        top, left, height, width = window
        inside = top >= 0 and left >= 0 and top + height <= self.size[0] and left + width <= self.size[1]
        if height < 1 or width < 1 or not inside:
            raise DataError(
                f"{self.path}: the window of rows {top} to {top + height} and columns {left} to {left + width} is "
                f"empty or outside the image of {self.size[1]}×{self.size[0]} pixels; choose one inside"
            )
        return self._read(window)

    @abstractmethod
    def _read(self, window: Window) -> npt.NDArray[np.uint8]:
        """Read a window that is inside the image."""

    @abstractmethod
    def close(self) -> None:
        """Close the file and free the memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
