"""CSV: a row ``path,x1,y1,x2,y2,class`` per box; an image without objects has a row with only its path.

Columns of other tools are recognized by :mod:`retinanet.data.formats.csv_columns`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from retinanet.data.class_names import all_classes
from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.class_files import class_list
from retinanet.data.formats.csv_columns import DEFAULT, Columns, columns_of_content, columns_of_header
from retinanet.data.formats.image_finder import ANNOTATION_FOLDERS, ImageFinder, image_folders
from retinanet.data.formats.reading import (
    UnlistedClasses,
    by_split,
    clean_path,
    is_ignore,
    is_split_name,
    listing,
    read_text,
    short,
    split_of,
)
from retinanet.data.formats.shapes import Box, to_number
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions

DETECTIONS = "detections.csv"  # the output of retinanet detect
_SUFFIXES = (".csv", ".tsv")
_ROBOFLOW_FILE = "_annotations.csv"
_EXPECTED = "expected path,x1,y1,x2,y2,class"
_PROBED_ROWS = 50
_DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class Tables:
    """Files of all splits, which share one class list, and the class names of ``classes.txt``."""

    files: tuple[Path, ...]
    listed: tuple[str, ...] = ()

    @cached_property
    def classes(self) -> list[str]:
        """The listed class names, then those of all files, sorted."""
        names = Counter(row.name for file in self.files for row in table_rows(file) if row.box)
        return all_classes(self.listed, {name: count for name, count in names.items() if not is_ignore(name)})


@dataclass(frozen=True)
class CsvSplit:
    """File of one split."""

    file: Path
    shared: Tables
    part: str = ""  # value of the rows in the column of splits; empty: all rows


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: an image, and a box or a problem."""

    line: int
    path: str
    box: Box | None = None
    name: str = ""
    problem: str = ""
    score: float | None = None
    shape: str = ""  # how the box is described, if not by corners or sides
    shares: bool = False  # of the image's sides, not pixels
    classless: bool = False  # no column holds the class
    split: str = ""  # text in the column of splits


def find(root: Path) -> dict[str, CsvSplit]:
    """Find the splits of a CSV dataset. Empty if ``root`` has another format.

    Args:
        root: the dataset's folder, or one CSV file.
    """
    if not root.is_dir():
        if root.suffix.lower() not in _SUFFIXES:
            return {}
        shared = Tables((root,), _listed([root.parent, root.absolute().parent.parent]))
        return _parts(root, shared) or {split_of(root): CsvSplit(root, shared)}
    folders, files = listing(root)
    inner = [folder for folder in folders if folder.name.lower() in ANNOTATION_FOLDERS]
    files = [file for file in files if file.suffix.lower() in _SUFFIXES]
    files = files or [file for folder in inner for file in listing(folder)[1] if file.suffix.lower() in _SUFFIXES]
    tables = [file for file in files if _has_expected_columns(file)]
    # A val.csv beside a train.csv belongs to the dataset even if it is broken; reading it raises the error.
    found = by_split(file for file in files if tables and (file in tables or is_split_name(file.stem)))
    for folder in folders if not found else []:
        own = [file for file in listing(folder)[1] if file.suffix.lower() in _SUFFIXES]
        own = [file for file in own if file.name == _ROBOFLOW_FILE] or own
        sure = len(own) == 1 and own[0].name == _ROBOFLOW_FILE
        if sure or (len(own) == 1 and is_split_name(folder.name) and _has_expected_columns(own[0])):
            found[folder.name] = own[0]
    shared = Tables(tuple(found.values()), _listed([root, *inner]))
    parts = _parts(shared.files[0], shared) if len(found) == 1 else {}
    return parts or {split: CsvSplit(file, shared) for split, file in found.items()}


def _parts(file: Path, shared: Tables) -> dict[str, CsvSplit]:
    """The splits that a column of the table names; empty if it has no such column."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as handle:
            head = [handle.readline()]
        rows = _cells(head, _delimiter(head))
    except OSError:
        return {}
    header = columns_of_header(rows[0]) if rows else None
    if header is None or "split" not in header.at:
        return {}
    names = dict.fromkeys(row.split for row in table_rows(file))
    return {name: CsvSplit(file, shared, name) for name in names} if all(map(is_split_name, names)) else {}


def _listed(folders: list[Path]) -> tuple[str, ...]:
    """Class names that a file in the first of these folders lists."""
    return tuple(next((names for folder in folders if (names := class_list(folder))), ()))


def read(source: CsvSplit, name: str, options: ReadOptions = _DEFAULT_OPTIONS, tolerant: bool = False) -> Dataset:
    """Read one split.

    Args:
        source: the split, from :func:`find`.
        name: name of the dataset in messages.
        options: where the images are, and which boxes and images are left out.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: no row of the file can be used, or images cannot be read.
    """
    file = source.file
    builder = DatasetBuilder(name, file.parent, source.shared.classes, None, tolerant, options)
    images: dict[str, list[Row]] = {}  # the rows of an image need not be adjacent
    lines: dict[str, int] = {}  # first line of each image
    for row in table_rows(file):
        if source.part and row.split != source.part:
            continue
        if row.problem:
            image = f" (image {row.path})" if row.path else ""
            builder.report("malformed-line", f"{file}:{row.line}{image}", row.problem)
        else:
            rows = images.setdefault(row.path, [])
            lines.setdefault(row.path, row.line)
            if row.box:
                rows.append(row)
    if not images:
        problem = f"no row can be used ({builder.problems[0]})" if builder.problems else "no rows"
        raise DataError(f"{file}: {problem}; {_EXPECTED}")
    unlisted = UnlistedClasses(builder, source.shared.listed)
    folders = [file.parent, *image_folders(file, split_of(file))]
    finder = ImageFinder(builder, file, folders)
    for path, rows in images.items():
        where = f"{file}:{lines[path]}"
        if (found := finder.find(path, where, file.name == DETECTIONS)) is None or (
            size := finder.size(found, where)
        ) is None:
            continue
        builder.add_image(found, *size)
        for row in rows:
            _add(builder, row, size, f"{file}:{row.line} (image {path})", unlisted)
    finder.check()
    return builder.build()


def _add(builder: DatasetBuilder, row: Row, size: tuple[int, int], where: str, unlisted: UnlistedClasses) -> None:
    assert row.box is not None
    unlisted.check(row.name, where)
    if row.classless:
        builder.report("single-class", where, "no column holds classes")
    if row.shape:
        builder.report("shape-box", where, row.shape)
    (x1, y1, x2, y2), (width, height) = row.box, size if row.shares else (1, 1)
    label = builder.labels.get(row.name, NO_CLASS)
    box = (x1 * width, y1 * height, x2 * width, y2 * height)
    derived = bool(row.shape)
    builder.add_box(box, label, where, ignore=is_ignore(row.name), score=row.score, derived=derived)


def table_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a table, without empty lines and the header.

    Raises:
        DataError: the file cannot be read.
    """
    text = read_text(file)
    head = text[: 1 << 16].splitlines()[:_PROBED_ROWS]
    delimiter = _delimiter(head)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns = columns_of_content(_cells(head, delimiter)) or DEFAULT
    first = True
    try:
        for raw in reader:
            cells = [cell.strip() for cell in raw]
            if not any(cells):
                continue
            if first and (header := columns_of_header(cells)):
                columns = header
            else:
                yield _row(cells, columns, file, reader.line_num, decimal_comma=delimiter == ";")
            first = False
    except csv.Error as error:  # a cell of hundreds of kilobytes, or an unclosed quote
        raise DataError(f"{file}:{reader.line_num}: not a CSV row ({error}); correct its quotes and commas") from error


def _row(cells: list[str], columns: Columns, file: Path, line: int, decimal_comma: bool) -> Row:
    row = _described(cells, columns, file, line, decimal_comma)
    return replace(row, split=columns.cell(cells, "split")) if "split" in columns.at else row


def _described(cells: list[str], columns: Columns, file: Path, line: int, decimal_comma: bool) -> Row:
    path, texts = columns.cell(cells, "path"), columns.texts(cells)
    if not path:
        return Row(line, "", problem="row without a path")
    path = clean_path(path, f"{file}:{line}")
    if not any(text not in ("", "{}", "[]") for text in texts):
        named = "class" in columns.at and columns.name(cells)
        return Row(line, path, problem=f"class {short(named)} without a box") if named else Row(line, path)
    if decimal_comma:
        texts = [text.replace(",", ".") for text in texts]
    box, shape = columns.box(texts, columns.cell(cells, "angle"))
    if box is None:
        problem = "corners are not four numbers" if len(texts) == 4 else f"no box in the column {columns.form[0]!r}"
        return Row(line, path, problem=f"{problem}: {short(', '.join(texts))}")
    name = columns.name(cells)
    if not name:
        return Row(line, path, problem="box without a class")
    score = to_number(columns.cell(cells, "score"))
    return Row(line, path, box, name, "", score, shape, columns.shares, columns.classless)


def _cells(lines: list[str], delimiter: str) -> list[list[str]]:
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    except csv.Error:
        return []


def _delimiter(lines: list[str]) -> str:
    for recognize in (lambda rows: columns_of_header(rows[0]), columns_of_content):
        for delimiter in ",;\t":
            rows = [row for row in _cells(lines, delimiter) if any(row)]
            if rows and recognize(rows) and (len(rows[0]) > 1 or delimiter == "\t"):
                return delimiter
    return next((d for d in ";\t" if any(line.count(d) >= 5 for line in lines)), ",")


def _has_expected_columns(file: Path) -> bool:
    """Whether the first rows have columns of a table of boxes; a folder may also hold unrelated tables."""
    try:
        with file.open("rb") as handle:
            lines = handle.read(1 << 16).decode("utf-8-sig", "replace").splitlines()[:_PROBED_ROWS]
    except OSError:
        return False
    rows = _cells(lines, _delimiter(lines))
    return bool(rows) and (columns_of_header(rows[0]) is not None or columns_of_content(rows) is not None)
