"""Read detections in the formats of ``retinanet detect`` other than COCO's: CSV, YOLO text and Pascal VOC XML.

Each detection becomes an object as in COCO's results format, with names in place of ids.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retinanet.data.formats.class_files import class_file, read_class_file
from retinanet.data.formats.csv import table_rows
from retinanet.data.formats.reading import read_text, short, walk
from retinanet.data.formats.voc_xml import parse
from retinanet.data.formats.yolo_layout import DETECTIONS, detected_labels
from retinanet.errors import DataError

# Key of a detection whose bbox is in fractions of the image.
SHARES = "shares"


def entries_of(path: Path) -> list[dict[str, Any]] | None:
    """Detections in a table, or in a folder of text or XML files; ``None`` if ``path`` is another file.

    Raises:
        DataError: a file cannot be read, or the folder holds no detections.
    """
    if not path.is_dir():
        return list(_of_table(path)) if path.suffix.lower() in (".csv", ".tsv") else None
    files = list(map(Path, walk(path)))
    if xmls := [file for file in files if file.suffix.lower() == ".xml"]:
        return [entry for xml in xmls for entry in _of_xml(xml)]
    labels = path / "labels" if (path / "labels").is_dir() else path
    texts = [file for file in map(Path, walk(labels)) if file.suffix.lower() == ".txt"]
    listed = next((file for folder in (path, labels, path.absolute().parent) if (file := class_file(folder))), None)
    texts = [file for file in texts if listed is None or file.name != listed.name]
    if not texts:
        raise DataError(f"{path}: no detections here; give detections.json or .csv, or a folder of .txt or .xml files")
    if listed is None:
        raise DataError(f"{path}: no list of the classes of these detections; add classes.txt with a name per line")
    names = read_class_file(listed)
    tables = [folder / DETECTIONS for folder in (path, path.absolute().parent) if (folder / DETECTIONS).is_file()]
    images = {os.path.abspath(label): image for image, label in detected_labels(tables[0]).items()} if tables else {}
    return [
        entry
        for file in texts
        for entry in _of_text(file, names, images.get(os.path.abspath(file), file.relative_to(labels).as_posix()))
    ]


def _of_table(file: Path) -> Iterator[dict[str, Any]]:
    for row in table_rows(file):
        if row.problem:
            raise DataError(f"{file}:{row.line}: {row.problem}; expected path,x1,y1,x2,y2,class,score")
        if row.box is not None:
            yield {**_entry(row.path, row.name, row.box, row.score), **({SHARES: True} if row.shares else {})}


def _of_xml(file: Path) -> Iterator[dict[str, Any]]:
    content = parse(file)
    for found in content.objects:
        corners, _ = found.corners()
        if corners is None:
            raise DataError(f"{file}:{found.line}: object without a box of four numbers; correct the file")
        yield _entry(content.path or content.filename or file.stem, found.name, corners, found.score)


def _of_text(file: Path, names: dict[int, str], image: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.split()
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if not words:
            continue
        if len(values) != 6 or not all(map(math.isfinite, values)) or not values[0].is_integer():
            raise DataError(f"{file}:{number}: {short(line.strip())}; expected 'class x y width height score'")
        label, x, y, width, height, score = values
        if (name := names.get(int(label))) is None:
            raise DataError(f"{file}:{number}: class number {int(label)} has no name; add it to the list of classes")
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        yield _entry(os.path.splitext(image)[0] if image.endswith(".txt") else image, name, box, score) | {SHARES: True}


def _entry(image: str, name: str, box: tuple[float, float, float, float], score: float | None) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"file_name": image, "category_name": name, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
