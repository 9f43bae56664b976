"""Columns of a table of boxes, recognized by its header or, without one, by the content of its rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from retinanet.data.formats.shapes import Box, box_around, box_of_mapping, box_of_rotated, to_number, to_numbers
from retinanet.data.image_suffixes import UNREAD_SUFFIXES, is_image

# Names that tools give to each column, in lower case and without punctuation.
_SPELLINGS = {
    "path": "path image file filename imagepath img imagename imageid imgname imgpath imgid filepath imagefile "
    "imagefilename imagefilepath externalid frame frameid",
    "x1": "x1 xmin left xtl minx bboxx1 bboxxmin boxx1 boxxmin bbox0 xminimum roix1",
    "y1": "y1 ymin top ytl miny bboxy1 bboxymin boxy1 boxymin bbox1 yminimum roiy1",
    "x2": "x2 xmax right xbr maxx bboxx2 bboxxmax boxx2 boxxmax xmaximum roix2",
    "y2": "y2 ymax bottom ybr maxy bboxy2 bboxymax boxy2 boxymax ymaximum roiy2",
    "x": "x bboxx boxx bbx bboxleft boxleft rectx",
    "y": "y bboxy boxy bby bboxtop boxtop recty",
    "cx": "cx xcenter xcentre centerx centrex xc bboxxcenter",
    "cy": "cy ycenter ycentre centery centrey yc bboxycenter",
    "w": "w width bboxwidth boxwidth bboxw boxw bbw rectwidth",
    "h": "h height bboxheight boxheight bboxh boxh bbh rectheight",
    "class": "class classname label labelname name category categoryname objectname object type species tag classid "
    "categoryid labelid",
    "score": "score confidence conf prob probability",
    "bbox": "bbox box boundingbox bboxes boundingboxes rect",
    "shape": "regionshapeattributes",
    "attributes": "regionattributes",
    "angle": "angle rotation",
    "split": "split subset dataset set phase partition mluse",
}
_COLUMN_OF = {spelling: column for column, spellings in _SPELLINGS.items() for spelling in spellings.split()}

_CORNERS, _SIDES, _CENTER = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h")

# Class of all boxes of a table without a column of classes.
ONLY_CLASS = "object"


@dataclass(frozen=True)
class Columns:
    """Positions of the columns of a table.

    Attributes:
        at: position of each column, by its name in ``_SPELLINGS``.
        form: the columns that hold the box.
        shares: coordinates are fractions of the image.
    """

    at: dict[str, int]
    form: tuple[str, ...]
    shares: bool = False

    def cell(self, cells: Sequence[str], column: str) -> str:
        """Text in a column; empty if the row or the table lacks it."""
        position = self.at.get(column, -1)
        return cells[position] if 0 <= position < len(cells) else ""

    def texts(self, cells: Sequence[str]) -> list[str]:
        """Texts that describe the box."""
        return [self.cell(cells, column) for column in self.form]

    def box(self, texts: Sequence[str], angle: str) -> tuple[Box | None, str]:
        """Return the corners that ``texts`` describe (``None``: they do not), and how if not by corners or sides."""
        if self.form == ("shape",):
            return _box_of_region(texts[0])
        if self.form == ("bbox",) and (box := box_of_mapping(_json_object(texts[0].replace("'", '"')))):
            return box, ""
        numbers = (
            to_numbers(texts[0]) if self.form == ("bbox",) else [n for t in texts if (n := to_number(t)) is not None]
        )
        if numbers is None or len(numbers) != 4:
            return (box_around(numbers), "four corners") if numbers and len(numbers) == 8 else (None, "")
        a, b, c, d = numbers
        if turn := to_number(angle):
            center: dict[tuple[str, ...], Box] = {
                _CORNERS: ((a + c) / 2, (b + d) / 2, c - a, d - b),
                _CENTER: (a, b, c, d),
            }
            return box_of_rotated(
                *center.get(self.form, (a + c / 2, b + d / 2, c, d)), math.radians(turn)
            ), "a rotation"
        if self.form == _CORNERS:
            return (a, b, c, d), ""
        if self.form == _CENTER:
            return (a - c / 2, b - d / 2, a + c / 2, b + d / 2), ""
        return (a, b, a + c, b + d), ""

    @property
    def classless(self) -> bool:
        """Whether no column holds classes."""
        return not {"class", "attributes"} & set(self.at)

    def name(self, cells: Sequence[str]) -> str:
        """Class of the row; empty if it has none."""
        if "attributes" in self.at:
            return _class_of_region(self.cell(cells, "attributes"))
        return self.cell(cells, "class") if "class" in self.at else ONLY_CLASS


DEFAULT = Columns(dict(zip(("path", *_CORNERS, "class"), range(6), strict=True)), _CORNERS)


def columns_of_header(cells: Sequence[str]) -> Columns | None:
    """Columns by the names in a header row; ``None`` if the row is not a header of a table of boxes."""
    at: dict[str, int] = {}
    spelled = [re.sub(r"[\W_]+", "", cell.lower()) for cell in cells]
    for position, name in enumerate(spelled):
        if column := _COLUMN_OF.get(name):
            at.setdefault(column, position)
    # A name is better than a number.
    for number, name in (("classid", "classname"), ("labelid", "labelname"), ("categoryid", "categoryname")):
        if number in spelled and (better := [i for i, s in enumerate(spelled) if s in (name, "class", "label")]):
            at["class"] = better[0]
    if "path" not in at:
        return None
    for form in (_CORNERS, ("shape",), ("bbox",), _SIDES, _CENTER):
        if all(column in at for column in form):
            return Columns(at, form, shares="imageid" in spelled and "labelname" in spelled)  # Open Images
    return None


def columns_of_content(rows: Sequence[Sequence[str]]) -> Columns | None:
    """Columns by what the first rows hold: one path of an image, four numbers, and a class."""
    rows = [row for row in rows if any(row)]
    paths = [
        i for i in range(max(map(len, rows), default=0)) if sum(_is_path(_at(row, i)) for row in rows) > len(rows) / 2
    ]
    if not paths:
        return None
    path = paths[0]
    boxed = [row for row in rows if any(cell for i, cell in enumerate(row) if i != path)]
    if not boxed:
        return DEFAULT if path == 0 else None
    width = max(map(len, boxed))
    numeric = [i for i in range(width) if i != path and _mostly_numbers([_at(row, i) for row in boxed])]
    fours = [numeric[i : i + 4] for i in range(len(numeric) - 3) if numeric[i + 3] - numeric[i] == 3]
    if not fours:
        return None
    box = fours[0]
    others = [i for i in range(width) if i not in (path, *box)]
    words = [i for i in others if i not in numeric]
    # A class number stands beside the box; other numbers are the sizes of the image.
    classes = words or [i for i in others if i == box[3] + 1 or i == box[0] - 1]
    at = {"path": path} | ({"class": classes[0]} if classes else {})
    form = _SIDES if _holds_sides([[_at(row, i) for i in box] for row in boxed], path > box[0]) else _CORNERS
    return Columns(at | dict(zip(form, box, strict=True)), form)


def _holds_sides(boxes: Sequence[Sequence[str]], path_last: bool) -> bool:
    """Whether four numbers are x, y, width and height: the second corner would often lie before the first."""
    numbers = [[n for text in box if (n := to_number(text.replace(",", "."))) is not None] for box in boxes]
    known = [box for box in numbers if len(box) == 4]
    swapped = sum(box[2] < box[0] or box[3] < box[1] for box in known)
    # make-sense writes the path after the box, and sides.
    return 2 * swapped > len(known) or (path_last and (swapped > 0 or len(known) < 10))


def _at(row: Sequence[str], position: int) -> str:
    return row[position] if position < len(row) else ""


def _is_path(cell: str) -> bool:
    return is_image(cell) or PurePosixPath(cell).suffix.lower() in UNREAD_SUFFIXES


def _mostly_numbers(cells: Sequence[str]) -> bool:
    given = [cell for cell in cells if cell]
    numbers = sum(to_number(cell.replace(",", ".")) is not None for cell in given)
    return bool(given) and 2 * numbers > len(given)


def _box_of_region(text: str) -> tuple[Box | None, str]:
    """Box of a region in the JSON of the VGG Image Annotator."""
    region = _json_object(text)
    kind = region.get("name")
    numbers = {key: to_number(value) for key, value in region.items()}
    found = [numbers.get(key) for key in ("x", "y", "width", "height")]
    if kind == "rect" and None not in found:
        x, y, width, height = (float(v or 0) for v in found)
        return (x, y, x + width, y + height), ""
    xs, ys = to_numbers(region.get("all_points_x")), to_numbers(region.get("all_points_y"))
    if xs and ys and len(xs) == len(ys):
        return box_around([v for point in zip(xs, ys, strict=True) for v in point]), "a polygon"
    cx, cy = numbers.get("cx"), numbers.get("cy")
    rx, ry = numbers.get("rx", numbers.get("r")), numbers.get("ry", numbers.get("r"))
    if cx is None or cy is None or rx is None or ry is None:
        return None, ""
    return box_of_rotated(cx, cy, 2 * rx, 2 * ry, numbers.get("theta") or 0.0), "an ellipse"


def _class_of_region(text: str) -> str:
    """Class in the attributes of a VIA region: the first value, or the first choice that is set."""
    for value in _json_object(text).values():
        if isinstance(value, dict):
            return next((str(choice) for choice, chosen in value.items() if chosen), "")
        if str(value).strip():
            return str(value).strip()
    return ""


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
