"""Parse the XML files of Pascal VOC."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from retinanet.data.formats.shapes import Box, box_around, box_of_rotated, to_number
from retinanet.errors import DataError
from retinanet.files import special_file

# Words in <database> that mark an output of retinanet detect.
DETECTIONS = "detections of retinanet"

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROTATED = ("cx", "cy", "w", "h", "angle")
_DEEPEST = 5  # <annotation><object><polygon><pt><x>; deeper elements are not read


@dataclass
class Object:
    """One ``<object>``: texts of the elements that describe its box, and the line where it begins."""

    line: int
    name: str = ""
    ignore: bool = False
    odd: str = ""
    doubled: str = ""
    score: float | None = None
    box: dict[str, str] = field(default_factory=dict)
    polygon: list[str] = field(default_factory=list)
    attribute: str = ""  # name of the attribute whose value follows
    rotation: float = 0.0  # in degrees, of the bndbox about its center

    def corners(self) -> tuple[Box | None, str]:
        """Return the corners (``None``: there are none), and how the box is described if not by corners."""
        numbers = {key: number for key, text in self.box.items() if (number := to_number(text)) is not None}
        if all(corner in numbers for corner in _CORNERS):
            x1, y1, x2, y2 = (numbers[corner] for corner in _CORNERS)
            if not self.rotation:
                return (x1, y1, x2, y2), ""
            center = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            return box_of_rotated(*center, math.radians(self.rotation)), "a bndbox with a rotation"
        if all(key in numbers for key in _ROTATED):
            cx, cy, width, height, angle = (numbers[key] for key in _ROTATED)
            return box_of_rotated(cx, cy, width, height, angle), "a rotated box (robndbox)"
        points = [number for text in self.polygon if (number := to_number(text)) is not None]
        box = box_around(points) if len(points) == len(self.polygon) else None
        return box, "a polygon without a bndbox" if box else ""


@dataclass
class Content:
    """What is read of a file. ``recoded``: it is not UTF-8 and names no encoding."""

    filename: str = ""
    path: str = ""
    database: str = ""
    width: int = 0
    height: int = 0
    recoded: bool = False
    objects: list[Object] = field(default_factory=list)


def parse(xml: Path) -> Content:
    """Parse one XML file. Expat is used directly because it gives line numbers and can refuse entity declarations."""
    content = Content()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    path: list[str] = []
    text: list[str] = []

    def start(tag: str, _: dict[str, str]) -> None:
        path.append(tag)
        if path[1:2] == ["object"] and len(path) > 2 and "".join(text).strip():
            raise DataError(
                f"{xml}:{parser.CurrentLineNumber}: <{tag}> inside a text element; repair or remove the file"
            )
        text.clear()
        if len(path) == 1 and tag != "annotation":
            raise DataError(
                f"{xml}:{parser.CurrentLineNumber}: <{tag}> is not a Pascal VOC annotation; repair or remove the file"
            )
        if path == ["annotation", "object"]:
            content.objects.append(Object(parser.CurrentLineNumber))

    def end(_: str) -> None:
        if len(path) <= _DEEPEST:
            _take(content, path[1:], "".join(text).strip())
        text.clear()
        path.pop()

    def refuse(*_: object) -> None:
        raise DataError(f"{xml}:{parser.CurrentLineNumber}: entity declarations are refused; remove them from the file")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.EntityDeclHandler = refuse
    raw = read_bytes(xml)
    if not raw.startswith((b"\xfe\xff", b"\xff\xfe")) and b"encoding" not in raw[:200].partition(b"?>")[0]:
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            content.recoded = True
            raw = raw.decode("cp1252", "replace").encode("utf-8")
    _feed(parser.Parse, raw, xml)
    return content


def object_names(xml: Path) -> set[str]:
    """Names of the objects in a file; none if it is broken."""
    try:
        return {found.name for found in parse(xml).objects}
    except DataError:  # reading the split that contains this file raises the error again
        return set()


def _feed(parse: Callable[[bytes, bool], int], raw: bytes, xml: Path) -> None:
    try:
        parse(raw, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise DataError(f"{xml}:{error.lineno}: broken XML ({reason}); repair or remove the file") from error
    except (ValueError, LookupError) as error:  # an encoding unknown to Python
        raise DataError(f"{xml}: its encoding cannot be read; save it again with UTF-8 encoding") from error


def read_bytes(xml: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: it cannot be read.
    """
    if special := special_file(xml):
        raise DataError(f"{xml}: not an XML file but {special}; remove it or put the file there")
    try:
        return xml.read_bytes()
    except OSError as error:
        raise DataError(f"{xml}: cannot be read ({error.strerror}); restore it or permit reading") from error


def _take(content: Content, path: list[str], text: str) -> None:
    # Match whole paths, so that <object><part><name> is not taken for the name of the object.
    match path:
        case ["filename"]:
            content.filename = text
        case ["path"]:
            content.path = text
        case ["source", "database"]:
            content.database = text
        case ["size", ("width" | "height") as side]:
            setattr(content, side, int(text) if text.isdecimal() and len(text) < 10 else 0)
        case ["object", "name"]:
            if content.objects[-1].name:
                content.objects[-1].doubled = "name"
            content.objects[-1].name = text
        case ["object", ("difficult" | "ignore")]:
            content.objects[-1].ignore |= text in ("1", "true", "True")
            if text not in ("", "0", "1", "false", "true", "False", "True"):
                content.objects[-1].odd = text
        case ["object", ("score" | "confidence")]:
            content.objects[-1].score = to_number(text)
        case ["object", ("bndbox" | "robndbox"), corner]:
            if corner in content.objects[-1].box:
                content.objects[-1].doubled = corner
            content.objects[-1].box[corner] = text
        case ["object", "polygon", coordinate] | ["object", "polygon", "pt", coordinate]:
            if coordinate[:1] in ("x", "y") and coordinate != "pt":
                content.objects[-1].polygon.append(text)
        case ["object", "attributes", "attribute", "name"]:
            content.objects[-1].attribute = text
        case ["object", "attributes", "attribute", "value"]:
            if content.objects[-1].attribute == "rotation":
                content.objects[-1].rotation = to_number(text) or 0.0
