"""CSV: a row ``path,x1,y1,x2,y2,class`` per box; an image without objects has a row with only its path."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.reading import (
    SizeReader,
    UnlistedClasses,
    by_split,
    class_list,
    clean_path,
    is_ignore,
    is_image,
    is_split_name,
    listing,
    read_text,
    short,
    split_of,
)
from retinanet.errors import DataError

_SUFFIXES = (".csv", ".tsv")
_ROBOFLOW_FILE = "_annotations.csv"
_EXPECTED = "expected path,x1,y1,x2,y2,class"

# Names that common tools give each column. If there is no header row, the columns have this order.
_HEADERS = (
    {"path", "image", "file", "filename", "file_name", "image_path", "img"},
    {"x1", "xmin", "x_min"},
    {"y1", "ymin", "y_min"},
    {"x2", "xmax", "x_max"},
    {"y2", "ymax", "y_max"},
    {"class", "class_name", "label", "name", "category"},
)
_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Tables:
    """Files of all splits, which share one class list, and the class names of ``classes.txt``."""

    files: tuple[Path, ...]
    listed: tuple[str, ...] = ()

    @cached_property
    def classes(self) -> list[str]:
        """The listed class names, then those of all files, sorted."""
        names = {row.name for file in self.files for row in _rows(file) if row.box}
        return [*self.listed, *sorted(name for name in names - {*self.listed} if not is_ignore(name))]


@dataclass(frozen=True)
class CsvSplit:
    """File of one split."""

    file: Path
    shared: Tables


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    path: str
    box: _Box | None = None
    name: str = ""
    problem: str = ""


def find(root: Path) -> dict[str, CsvSplit]:
    """Find the splits of a CSV dataset. Empty if ``root`` has another format.

    Args:
        root: the dataset's folder, or one CSV file.
    """
    if not root.is_dir():
        shared = Tables((root,), tuple(class_list(root.parent)))
        return {split_of(root): CsvSplit(root, shared)} if root.suffix.lower() in _SUFFIXES else {}
    folders, files = listing(root)
    files = [file for file in files if file.suffix.lower() in _SUFFIXES]
    tables = [file for file in files if _has_expected_columns(file)]
    # A val.csv beside a train.csv belongs to the dataset even if it is broken; reading it raises the error.
    found = by_split(file for file in files if tables and (file in tables or is_split_name(file.stem)))
    if not found:
        found = {folder.name: folder / _ROBOFLOW_FILE for folder in folders if (folder / _ROBOFLOW_FILE).is_file()}
    shared = Tables(tuple(found.values()), tuple(class_list(root)))
    return {split: CsvSplit(file, shared) for split, file in found.items()}


def read(source: CsvSplit, name: str, tolerant: bool = False) -> Dataset:
    """Read one split.

    Args:
        source: the split, from :func:`find`.
        name: name of the dataset in messages.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: no row of the file can be used, or images cannot be read.
    """
    builder = DatasetBuilder(name, source.file.parent, source.shared.classes, tolerant=tolerant)
    images: dict[str, list[_Row]] = {}  # the rows of an image need not be adjacent
    lines: dict[str, int] = {}  # first line of each image
    for row in _rows(source.file):
        if row.problem:
            image = f" (image {row.path})" if row.path else ""
            builder.report("malformed-line", f"{source.file}:{row.line}{image}", row.problem)
        else:
            rows = images.setdefault(row.path, [])
            lines.setdefault(row.path, row.line)
            if row.box:
                rows.append(row)
    if not images:
        problem = f"no row can be used ({builder.problems[0]})" if builder.problems else "no rows"
        raise DataError(f"{source.file}: {problem}; {_EXPECTED}")
    labels = {class_name: i for i, class_name in enumerate(builder.classes)}
    unlisted = UnlistedClasses(builder, source.shared.listed)
    sizes = SizeReader(builder)
    for path, rows in images.items():
        if (size := sizes.read(builder.root / path, f"{source.file}:{lines[path]}")) is None:
            continue
        builder.add_image(path, *size)
        for row in rows:
            assert row.box is not None
            where = f"{source.file}:{row.line} (image {path})"
            unlisted.check(row.name, where)
            builder.add_box(row.box, labels.get(row.name, NO_CLASS), where, ignore=is_ignore(row.name))
    sizes.check()
    return builder.build()


def _rows(file: Path) -> Iterator[_Row]:
    text = read_text(file)
    delimiter = _delimiter(text[: 1 << 16].splitlines())
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: Sequence[int] = range(len(_HEADERS))
    first = True
    try:
        for raw in reader:
            cells = [cell.strip() for cell in raw]
            if not any(cells):
                continue
            if first and (header := _header(cells)):
                columns = header
            else:
                picked = [cells[c] if c < len(cells) else "" for c in columns]
                yield _row(picked, reader.line_num, f"{file}:{reader.line_num}", decimal_comma=delimiter == ";")
            first = False
    except csv.Error as error:  # a cell of hundreds of kilobytes, or an unclosed quote
        raise DataError(f"{file}:{reader.line_num}: not a CSV row ({error}); correct its quotes and commas") from error


def _row(cells: list[str], line: int, where: str, decimal_comma: bool) -> _Row:
    path, *corners, name = cells
    if not path:
        return _Row(line, "", problem="row without a path")
    path = clean_path(path, where)
    if not any(corners) and not name:
        return _Row(line, path)
    try:
        x1, y1, x2, y2 = (float(c.replace(",", ".") if decimal_comma else c) for c in corners)
    except ValueError:
        return _Row(line, path, problem=f"corners are not four numbers: {short(', '.join(corners))}")
    if not name:
        return _Row(line, path, problem="box without a class")
    return _Row(line, path, (x1, y1, x2, y2), name)


def _header(cells: list[str]) -> list[int] | None:
    """Index of each column, if this is a header row."""
    names = [cell.lower() for cell in cells]
    columns = [next((i for i, name in enumerate(names) if name in options), -1) for options in _HEADERS]
    return columns if min(columns) >= 0 else None


def _delimiter(lines: list[str]) -> str:
    for delimiter in ",;\t":
        if lines and _header([cell.strip() for cell in lines[0].split(delimiter)]):
            return delimiter
    separators = len(_HEADERS) - 1
    return next((d for d in ";\t" if any(line.count(d) >= separators for line in lines[:50])), ",")


def _has_expected_columns(file: Path) -> bool:
    """Whether the first rows have the expected columns; a folder may also hold unrelated tables."""
    try:
        with file.open("rb") as handle:
            lines = handle.read(1 << 16).decode("utf-8-sig", "replace").splitlines()[:20]
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=_delimiter(lines))]
    except (OSError, csv.Error):
        return False
    return any(_header(row) for row in rows[:1]) or any(_is_row(row) for row in rows)


def _is_row(cells: list[str]) -> bool:
    if not cells or not is_image(os.path.basename(cells[0])):
        return False
    return len(cells) == 1 or (len(cells) == len(_HEADERS) and all(_is_number(c) for c in cells[1:5] if c))


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
