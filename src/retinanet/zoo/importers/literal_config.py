"""Read a configuration of mmdetection, which is Python text, as data: nothing in it is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

# Longest text that is parsed, in characters; configurations have some thousands.
_LONGEST = 1_000_000


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
    try:
        tree = ast.parse(text)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python ({error})") from error
    names: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value = _value(statement.value, names)
            if value is not _UNKNOWN:
                names[statement.targets[0].id] = value
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


def steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a pipeline, those inside other steps after them."""
    for step in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from steps(step.get("transforms"))


def numbers(value: Any, count: int | None = None) -> tuple[float, ...] | None:
    """Return a list of numbers as a tuple; None if it is something else or of another length."""
    valid = isinstance(value, list | tuple) and len(value) > 0 and count in (None, len(value))
    if not valid or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        return None
    return tuple(float(each) for each in value)
