"""A list of paths in two NumPy arrays, cheap to share with worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class FileList(Sequence[str]):
    """Immutable list of paths, stored as one block of bytes and an array of offsets."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")
