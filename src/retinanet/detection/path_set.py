"""A set of millions of texts in little memory."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

# Bytes of a digest. Two of a billion different texts have the same digest with a probability of 1e-21.
_DIGEST = 16

# Number of digests that are kept in a Python set before they are merged into the sorted array.
_RECENT = 1 << 15


class PathSet:
    """A set that only grows, and that takes 16 bytes for each text in place of about 200."""

    def __init__(self) -> None:
        self._sorted = np.zeros(0, dtype=f"S{_DIGEST}")
        self._recent: set[bytes] = set()

    def add(self, text: str) -> bool:
        """Add ``text``; return whether it is new."""
        digest = _digest(text)
        if digest in self._recent or self._holds(digest):
            return False
        self._recent.add(digest)
        if len(self._recent) == _RECENT:
            self._sorted = np.sort(np.concatenate([self._sorted, np.array(list(self._recent), self._sorted.dtype)]))
            self._recent.clear()
        return True

    def __contains__(self, text: str) -> bool:
        digest = _digest(text)
        return digest in self._recent or self._holds(digest)

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def _holds(self, digest: bytes) -> bool:
        place = int(np.searchsorted(self._sorted, np.array(digest, self._sorted.dtype)))
        # NumPy leaves out zero bytes at the end.
        return place < len(self._sorted) and bytes(self._sorted[place]) == digest.rstrip(b"\0")


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
