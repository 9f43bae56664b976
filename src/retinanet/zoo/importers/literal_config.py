"""Read a configuration of mmdetection, which is Python text, as data: nothing in it is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

# Longest text that is parsed, in characters; configurations have some thousands.
_LONGEST = 1_000_000

# Steps of a pipeline; real ones have about ten. A name that is used in several lists can make very many.
MOST_STEPS = 1000


class _Unknown:
    """The value of an expression that is no literal."""


_UNKNOWN = _Unknown()


def read_literals(text: str) -> dict[str, Any]:
    """Return the top-level assignments of literals, by name.

    Literals are numbers, texts, lists, tuples, dictionaries (also as ``dict(…)``) and names that were assigned before.
    Items of dictionaries that are no literals are left out.

    Raises:
        ValueError: the text is not Python.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters")
    names: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                value = _value(statement.value, names)
                if value is not _UNKNOWN:
                    names[statement.targets[0].id] = value
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python ({error})") from error
    return names


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names.get(name, _UNKNOWN)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            values = [_value(item, names) for item in items]
            return values if isinstance(node, ast.List) else tuple(values)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _value(operand, names)
            return -number if isinstance(number, int | float) else _UNKNOWN
        case ast.Dict(keys=keys, values=items):
            pairs = [
                (_value(key, names), _value(item, names))
                for key, item in zip(keys, items, strict=True)
                if key is not None
            ]
            return {key: value for key, value in pairs if isinstance(key, str) and value is not _UNKNOWN}
        case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
            named = [(keyword.arg, _value(keyword.value, names)) for keyword in keywords]
            return {key: value for key, value in named if key is not None and value is not _UNKNOWN}
    return _UNKNOWN


def at(values: Any, *keys: str) -> Any:
    """Return the value under nested ``keys``; None if one is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def steps(pipeline: Any) -> list[Mapping[str, Any]]:
    """Return the steps of a pipeline, those inside other steps after them.

    Raises:
        ValueError: there are more than :data:`MOST_STEPS`.
    """
    found = list(islice(_steps(pipeline), MOST_STEPS + 1))
    if len(found) > MOST_STEPS:
        raise ValueError(f"its test pipeline has more than {MOST_STEPS} steps")
    return found


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    for step in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from _steps(step.get("transforms"))
