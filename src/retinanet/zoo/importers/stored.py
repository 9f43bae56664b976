"""Settings that another program stored, read as plain data and checked value by value."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retinanet.errors import ConfigError

# Limits of settings that all programs have: sides of images in pixels, and thresholds that cannot be 0 or 1.
SIDES = (32, 8192)
TINY, BELOW_ONE = 1e-6, 1 - 1e-6


@dataclass(frozen=True)
class Stored:
    """A group of settings, such as a ``config.yaml``. Every setting may be missing; a wrong value is refused.

    Attributes:
        values: the settings and further groups, by name.
        where: the file that they are in, for messages.
        group: names of the groups around this group, joined by dots and with a dot at the end; for messages.
    """

    values: Mapping[Any, Any]
    where: str
    group: str = ""

    @property
    def given(self) -> Stored:
        """This group without the settings that are None, for programs where None means the default."""
        return Stored({key: value for key, value in self.values.items() if value is not None}, self.where, self.group)

    def inner(self, *names: str) -> Stored:
        """Return a group inside this group; an empty group if it is missing or None.

        Raises:
            ConfigError: it is no group.
        """
        found = self
        for name in names:
            value = found.values.get(name)
            if value is not None and not isinstance(value, Mapping):
                raise found.refuse(name, "a group of settings")
            found = Stored(value or {}, self.where, f"{found.group}{name}.")
        return found

    def get(self, name: str) -> Any:
        """Return a value as it is; None if it is missing."""
        return self.values.get(name)

    def choice(self, name: str, *expected: Any) -> Any:
        """Return a value that is one of the ``expected`` values; None if it is missing or None.

        Raises:
            ConfigError: it is another value.
        """
        value = self.values.get(name)
        if value is not None and not any(type(value) is type(each) and value == each for each in expected):
            raise self.refuse(name, " or ".join(map(str, expected)))
        return value

    def flag(self, name: str) -> bool | None:
        """Return True or False; None if it is missing.

        Raises:
            ConfigError: it is another value.
        """
        if name in self.values and not isinstance(self.values[name], bool):
            raise self.refuse(name, "True or False")
        return self.values.get(name)

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number from ``low`` to ``high``; None if it is missing.

        Raises:
            ConfigError: it is something else.
        """
        if name not in self.values:
            return None
        value = self.values[name]
        if not _is_number(value) or not low <= value <= high:
            raise self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: int = 2**31 - 1) -> int | None:
        """Return a whole number from ``low`` to ``high``; None if it is missing.

        Raises:
            ConfigError: it is something else.
        """
        if name not in self.values:
            return None
        value = self.values[name]
        if not _is_number(value) or value != int(value) or not low <= value <= high:
            raise self.refuse(name, f"a whole number from {low} to {high}")
        return int(value)

    def numbers(self, name: Any, count: int | None = None, positive: bool = False) -> tuple[float, ...] | None:
        """Return a list of ``count`` finite numbers (any number of them if it is unset); None if it is missing.

        Raises:
            ConfigError: it is something else, or ``positive`` is set and a number is not above 0.
        """
        if name not in self.values:
            return None
        value = self.values[name]
        valid = isinstance(value, list | tuple) and len(value) > 0 and count in (None, len(value))
        if not valid or not all(_is_number(each) and (each > 0 or not positive) for each in value):
            raise self.refuse(name, f"{count or 'one or more'}{' positive' if positive else ''} numbers")
        return tuple(float(each) for each in value)

    def three(self, name: str, positive: bool = False) -> tuple[float, float, float] | None:
        """Return three finite numbers; None if they are missing. See :meth:`numbers`."""
        found = self.numbers(name, 3, positive)
        return (found[0], found[1], found[2]) if found else None

    def refuse(self, name: Any, expected: str) -> ConfigError:
        """Return the error that shows a setting and says what was ``expected``."""
        try:
            shown = " ".join(reprlib.repr(self.values.get(name)).split())[:80]
        except ValueError:  # a whole number with more digits than Python writes
            shown = "a number of thousands of digits"
        return ConfigError(f"{self.where}: {self.group}{name} is {shown}; expected {expected}")


def _is_number(value: Any) -> bool:
    # NaN compares as False. Larger numbers are no settings, and may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
