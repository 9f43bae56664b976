"""Upright boxes of objects that annotations describe otherwise: polygons, masks, rotated boxes, numbers as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|[-+]?inf", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,;:(){}\[\]'\"]*")

# Keys of a box that is written as a mapping.
_CORNER_KEYS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
_SIDE_KEYS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))

# Most pixels of a mask. A larger mask comes from a broken file.
_LARGEST_MASK = 2**40


def to_number(value: Any) -> float | None:
    """A number, or a number written as text, as float; ``None`` for anything else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    if type(value) not in (int, float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer with hundreds of digits
        return math.inf


def to_integer(value: Any) -> int | None:
    """A whole number, also as ``1.0`` or as text, as int; ``None`` for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,30}\s*", value):
        return int(value)
    number = to_number(value)
    return int(number) if number is not None and math.isfinite(number) and number.is_integer() else None


def to_numbers(value: Any) -> list[float] | None:
    """A list of numbers, or such a list written as text (``"[1, 2, 3, 4]"``); ``None`` for anything else."""
    if isinstance(value, str):
        words = _NUMBER.findall(value)
        return [float(word) for word in words] if words and _SEPARATORS.fullmatch(_NUMBER.sub("", value)) else None
    if not isinstance(value, list | tuple):
        return None
    numbers = [to_number(item) for item in value]
    return None if None in numbers else [number for number in numbers if number is not None]


def box_of_mapping(value: Any) -> Box | None:
    """Corners of a box with keys, such as ``{"x": 1, "y": 2, "width": 3, "height": 4}``; ``None`` for other values."""
    if not isinstance(value, dict):
        return None
    numbers = {re.sub(r"[\W_]", "", str(key).lower()): to_number(number) for key, number in value.items()}
    for keys in _CORNER_KEYS:
        corners = [number for key in keys if (number := numbers.get(key)) is not None]
        if len(corners) == 4:
            return corners[0], corners[1], corners[2], corners[3]
    for keys in _SIDE_KEYS:
        sides = [number for key in keys if (number := numbers.get(key)) is not None]
        if len(sides) == 4:
            return sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3]
    return None


def box_around(points: Sequence[float]) -> Box | None:
    """Smallest upright box around points ``x1, y1, x2, y2, …``; ``None`` for fewer than two points."""
    xs, ys = points[::2], points[1::2]
    return (min(xs), min(ys), max(xs), max(ys)) if len(ys) >= 2 and len(xs) == len(ys) else None


def box_of_rotated(cx: float, cy: float, width: float, height: float, angle: float) -> Box:
    """Smallest upright box around a box that is rotated about its center by ``angle`` in radians."""
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    half_width = (width * cosine + height * sine) / 2
    half_height = (width * sine + height * cosine) / 2
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def box_of_segmentation(segmentation: Any) -> Box | None:
    """Box around a COCO segmentation: polygons, or a mask as run lengths; ``None`` if it is empty or invalid."""
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    if isinstance(segmentation[0], list) and segmentation[0] and isinstance(segmentation[0][0], list):
        # Points as pairs [[x, y], …], in one polygon or in several.
        flat = [[v for p in polygon for v in (p if isinstance(p, list) else [p])] for polygon in segmentation]
        return box_of_segmentation(flat)
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    points: list[float] = []
    for polygon in polygons:
        numbers = to_numbers(polygon)
        if numbers is None or len(numbers) % 2:
            return None
        points += numbers
    return box_around(points)


def _box_of_mask(mask: dict[str, Any]) -> Box | None:
    """Box of a mask in COCO's run-length encoding, whose pixels are numbered down the columns."""
    size, counts = to_numbers(mask.get("size")), mask.get("counts")
    runs = _decoded_runs(counts) if isinstance(counts, str) else to_numbers(counts)
    if size is None or len(size) != 2 or not runs or not 0 < size[0] * size[1] < _LARGEST_MASK:
        return None
    height, position, spans = int(size[0]), 0, []
    for number, run in enumerate(runs):
        if not (math.isfinite(run) and run >= 0):
            return None
        if number % 2 and run:
            spans.append((position, position + int(run) - 1))
        position += int(run)
    if not spans or position > size[0] * size[1]:
        return None
    columns = [(first // height, last // height) for first, last in spans]
    whole = any(first != last for first, last in columns)  # a run over the end of a column fills both borders
    rows = (0, height) if whole else (min(f % height for f, _ in spans), max(z % height for _, z in spans) + 1)
    return float(columns[0][0]), float(rows[0]), float(columns[-1][1] + 1), float(rows[1])


def _decoded_runs(text: str) -> list[float]:
    """Decode pycocotools' compressed run lengths: numbers in groups of 5 bits, each from the third on a difference."""
    runs: list[float] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs
