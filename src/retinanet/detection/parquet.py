"""Parquet files: images that a column names or contains, and detections as rows. They need pyarrow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from retinanet.detection.input_images import ImageFile, InputImage, PackedImage, safe_name
from retinanet.detection.record import Entry
from retinanet.errors import DataError

# Columns with the path of an image, and with its bytes, in order of preference.
_PATHS, _BYTES = ("path", "file_name"), ("bytes", "image")

# Rows that are written together.
_ROWS = 50_000

_SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        *((side, pyarrow.float32()) for side in ("x1", "y1", "x2", "y2")),
        ("class", pyarrow.string()),
        ("score", pyarrow.float32()),
    ]
)


@dataclass(frozen=True)
class ParquetImage(PackedImage):
    """An image whose bytes are in a row of a Parquet file.

    Attributes:
        file: the file.
        column: the column; bytes, or a structure with a field ``bytes``.
        group: row group.
        row: row in the group.
        name: the file's name and the number of the row.
    """

    file: Path
    column: str
    group: int
    row: int
    name: Path

    @property
    def address(self) -> str:
        """The path of the file and the number of the row in it."""
        return f"{self.file}#{self.name.stem.rpartition('-')[2]}"

    def content(self) -> bytes:
        """Return the bytes in the row."""
        try:
            content = _column(str(self.file), self.group, self.column)[self.row].as_py()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.address}: cannot be read ({error}); replace the file") from error
        if isinstance(content, dict):
            content = content.get("bytes")
        if not isinstance(content, bytes) or not content:
            raise DataError(f"{self.address}: the row has no image; remove it")
        return content


def images_in(source: str) -> Iterator[InputImage]:
    """List the images of a Parquet file: a row each. Paths in a column are relative to the file.

    Raises:
        DataError: the file is damaged, has no rows, or has no column with paths or images.
    """
    try:
        file = pyarrow.parquet.ParquetFile(source)
        schema = file.schema_arrow
        paths = next((name for name in _PATHS if name in schema.names), None)
        images = next((name for name in _BYTES if name in schema.names), None)
        if paths is None and images is None:
            raise DataError(
                f"{source}: no column {', '.join((*_PATHS, *_BYTES))}; name the column with the paths 'path', or with "
                "the bytes of the images 'bytes'"
            )
        if not file.metadata.num_rows:
            raise DataError(f"{source}: has no rows; give a file with images")
        if images is not None:
            yield from _contained(file, source, images)
        else:
            yield from _named(file, source, str(paths))
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{source}: not a readable Parquet file ({str(error)[:120]}); replace it") from error


def _contained(file: Any, source: str, column: str) -> Iterator[InputImage]:
    number = 0
    for group in range(file.num_row_groups):
        for row in range(file.metadata.row_group(group).num_rows):
            yield ParquetImage(Path(source), column, group, row, Path(f"{Path(source).stem}-{number}.jpg"))
            number += 1


def _named(file: Any, source: str, column: str) -> Iterator[InputImage]:
    folder, number = os.path.dirname(source), 0
    for batch in file.iter_batches(columns=[column]):
        for value in batch.column(0).to_pylist():
            text = str(value)
            name = Path(text).name if os.path.isabs(text) else text
            yield ImageFile(Path(os.path.join(folder, text)), safe_name(name), f"{source}#{number}")
            number += 1


@lru_cache(maxsize=2)  # the images of a row group are read one after another
def _column(file: str, group: int, column: str) -> Any:
    return pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[column]).column(0)


class ParquetRows:
    """Writes detections as rows: one for each detection, and one without a box for an image without any.

    Args:
        path: the file.
        classes: names of the classes.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._classes = classes
        self._writer = pyarrow.parquet.ParquetWriter(path, _SCHEMA, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []

    def add(self, entry: Entry) -> None:
        """Add the rows of an image that could be read."""
        assert entry.size is not None
        start = (entry.path, entry.size[1], entry.size[0])
        self._rows += [(*start, *found.box, self._classes[found.label], found.score) for found in entry.found]
        if not entry.found:
            self._rows.append((*start, *[None] * 6))
        if len(self._rows) >= _ROWS:
            self._write()

    def end(self) -> None:
        """Write what is left, and close the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(_SCHEMA)
        arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        self._writer.write_table(pyarrow.table(arrays, schema=_SCHEMA))
        self._rows = []
