"""Lists of class names in the files where labelling tools put them."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

from retinanet.data.formats.reading import CLASS_LIST, is_ignore, listing, read_text
from retinanet.errors import DataError

# Text files with one class name per line.
_LISTS = (CLASS_LIST, "labels.txt", "obj.names", "_darknet.labels", "class_names.txt", "label_list.txt")

# Tables of a class name and its number, as keras-retinanet has them.
_TABLES = ("classes.csv", "class_list.csv", "class_mapping.csv")

# Label Studio's list of categories, beside the classes.txt of its YOLO export.
_NOTES = "notes.json"

# CVAT's list of the classes of a Pascal VOC dataset: name:color:parts:actions, and a background without boxes.
LABEL_MAP = "labelmap.txt"


def class_file(folder: Path) -> Path | None:
    """The file in ``folder`` that lists the class names; ``None`` if there is none."""
    for name in (*_LISTS, *_TABLES, LABEL_MAP, _NOTES):
        if os.path.isfile(folder / name) and (name != _NOTES or _notes(folder / name)):
            return folder / name
    named = [file for file in listing(folder)[1] if file.suffix == ".names"] if os.path.isdir(folder) else []
    return named[0] if len(named) == 1 else None


def read_class_file(file: Path) -> dict[int, str]:
    """Read a list of classes: the name of each class number, empty for an empty line."""
    if file.name == _NOTES:
        return _notes(file)
    lines = [line.strip() for line in read_text(file).rstrip().splitlines()]
    if file.name == LABEL_MAP:
        names = [line.split(":")[0].strip() for line in lines if line and not line.startswith("#")]
        return dict(enumerate(name for name in names if name != "background"))
    if file.name in _TABLES:
        return _table(lines)
    return dict(enumerate(lines))


def _notes(file: Path) -> dict[int, str]:
    """Names of the categories in Label Studio's notes, by their ids; empty if the file holds something else."""
    try:
        content = json.loads(read_text(file))
    except (DataError, ValueError, RecursionError):
        return {}
    categories = content.get("categories") if isinstance(content, dict) else None
    entries = [entry for entry in categories if isinstance(entry, dict)] if isinstance(categories, list) else []
    pairs = [(entry.get("id"), entry.get("name")) for entry in entries]
    return {number: name.strip() for number, name in pairs if type(number) is int and isinstance(name, str)}


def class_list(folder: Path) -> list[str]:
    """Class names that a file in ``folder`` lists, in order, without ``ignore``; ``[]`` if there is no such file."""
    file = class_file(folder)
    names = read_class_file(file) if file else {}
    return list(
        dict.fromkeys(names[number] for number in sorted(names) if names[number] and not is_ignore(names[number]))
    )


def _table(lines: list[str]) -> dict[int, str]:
    """Names and numbers in either order, with or without a header; without numbers, the order of the lines."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if any(row)]
    pairs = {}
    for row in rows:
        numbers = [cell for cell in row[:2] if re.fullmatch(r"\d{1,5}", cell)]
        names = [cell for cell in row[:2] if cell not in numbers[:1]] or row[:1]
        if numbers and names:
            # Of two numbers, the second is the class number, as in "7,0".
            both = len(row) > 1 and row[0].isdecimal() and row[1].isdecimal()
            name, number = (row[0], row[1]) if both else (names[0], numbers[0])
            pairs[int(number)] = name
    return pairs or {i: row[0] for i, row in enumerate(rows)}
