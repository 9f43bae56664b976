"""Frozen dataclasses as settings: read them from plain values, and check their values.

This module does not depend on the particular settings, which are in :mod:`retinanet.config`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any, Literal, TypeVar

from retinanet.errors import ConfigError

Settings = TypeVar("Settings")


def updated(settings: Settings, values: Mapping[str, Any], where: str) -> Settings:
    """Return ``settings`` with ``values`` replaced; a group of settings is a nested mapping.

    Args:
        settings: an instance of a dataclass.
        values: new values by name, as YAML or JSON hold them. Names and values that settings had in earlier versions
            (``formerly`` and ``former_values`` in the metadata of a field) are understood.
        where: the file or the recipe that the values come from, for messages.

    Raises:
        ConfigError: an unknown key (the message names the most similar key) or a value of an invalid type.
    """
    hints = typing.get_type_hints(type(settings))
    fields = dataclasses.fields(settings)  # type: ignore[arg-type]
    renamed = {field.metadata["formerly"]: field.name for field in fields if "formerly" in field.metadata}
    replaced = {field.name: field.metadata.get("former_values", {}) for field in fields}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        name = renamed.get(name, name)
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
        current = getattr(settings, name)
        if not dataclasses.is_dataclass(current):
            value = replaced[name].get(value, value) if isinstance(value, bool) else value
            changes[name] = _coerced(value, hints[name], f"{where}: {key}")
        elif isinstance(value, Mapping):
            changes[name] = updated(current, value, f"{where}: {key}")
        else:
            raise ConfigError(f"{where}: {key!r} is a group of settings, not {value!r}")
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """Convert ``value`` to the type ``hint``. JSON and YAML write tuples as lists, and may write 1.0 as 1 or 1e-4
    as text."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerced(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} is {value!r}; choose from {', '.join(map(str, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_coerced(v, arguments[0], where) for v in value)
        if len(value) == len(arguments):
            return tuple(_coerced(v, a, where) for v, a in zip(value, arguments, strict=True))
    elif hint is float and (number := _finite_number(value)) is not None:
        return number
    elif hint in (bool, int, str) and type(value) is hint:
        return value
    raise ConfigError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def _finite_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def only_with(setting: str, *values: Any) -> dict[str, Any]:
    """Return the metadata of a field that only has an effect if ``setting``, such as ``loss.box``, is in ``values``."""
    return {"only_with": (setting, values)}


def without_effect(settings: Any) -> Iterator[str]:
    """Yield a sentence for each setting that differs from its default, but has no effect with the other settings.

    ``settings`` is a dataclass whose fields are groups of settings; :func:`only_with` marks their fields.
    """
    for group in dataclasses.fields(settings):
        own = getattr(settings, group.name)
        for field in dataclasses.fields(own):
            needed, values = field.metadata.get("only_with", (None, ()))
            if needed is None or getattr(own, field.name) == field.default:
                continue
            if (chosen := operator.attrgetter(needed)(settings)) not in values:
                name = f"{group.name}.{field.name.replace('_', '-')}"
                yield f"{name} has no effect with {needed} {chosen}; it is for {needed} {' or '.join(values)}"


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def require_finite(settings: Any, group: str) -> None:
    """Raise ConfigError if a number is NaN or infinite, which files cannot hold, or if a count is no whole number."""
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if str(setting.type) in ("int", "int | None") and not (value is None and "None" in str(setting.type)):
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            require(whole, f"{group}.{setting.name.replace('_', '-')} is {value!r}; give a whole number")
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        or_none = ", or None" if "None" in str(setting.type) else ""
        require(finite, f"{group}.{setting.name.replace('_', '-')} is {value}; give a finite number{or_none}")


def require_positive(settings: Any, group: str, *names: str) -> None:
    """Raise ConfigError if one of the numbers ``names`` is not above 0."""
    for name in names:
        value = getattr(settings, name)
        require(value > 0, f"{group}.{name.replace('_', '-')} is {value}; it must be positive")


def require_at_least(least: int, settings: Any, group: str, *names: str) -> None:
    """Raise ConfigError if one of the numbers ``names`` is below ``least``. None (unset) is accepted."""
    bound = "it cannot be negative" if least == 0 else f"it must be at least {least}"
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= least, f"{group}.{name.replace('_', '-')} is {value}; {bound}")
