"""Count the requests, bytes and pixels that are in the server, and refuse more than the limits."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import Limits

_KINDS = ("requests", "bytes", "pixels")


class Budget:
    """What all requests together may take up. It may be used from any thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = {
            "requests": limits.requests,
            "bytes": round(limits.queue_megabytes * 1e6),
            "pixels": round(limits.queue_megapixels * 1e6),
        }
        self._used = dict.fromkeys(_KINDS, 0)
        self._lock = threading.Lock()

    def charge(self) -> Charge:
        """Return the account of a new request, on which nothing is charged yet."""
        return Charge(self)

    def used(self, kind: str) -> int:
        """Return how many ``requests``, ``bytes`` or ``pixels`` are in the server."""
        return self._used[kind]

    def take(self, kind: str, amount: int) -> None:
        """Count ``amount`` more.

        Raises:
            Refusal: the limit would be exceeded; nothing is counted.
        """
        with self._lock:
            if self._used[kind] + amount > self._limits[kind]:
                raise Refusal("overloaded", f"too many {kind} are waiting; try again later", retry_after=1)
            self._used[kind] += amount

    def give_back(self, amounts: dict[str, int]) -> None:
        """Count less."""
        with self._lock:
            for kind, amount in amounts.items():
                self._used[kind] -= amount


class Charge:
    """The account of one request. As a context manager, it gives everything back at the end."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = dict.fromkeys(_KINDS, 0)

    def add(self, kind: str, amount: int) -> None:
        """Charge ``amount`` of ``requests``, ``bytes`` or ``pixels``.

        Raises:
            Refusal: the limit of all requests would be exceeded.
        """
        self._budget.take(kind, amount)
        self._taken[kind] += amount

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.give_back(self._taken)
        self._taken = dict.fromkeys(_KINDS, 0)
