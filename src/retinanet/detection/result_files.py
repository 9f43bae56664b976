"""Write the result files that cover all images, in one pass over the record."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from retinanet.detection.record import RECORD, Entry, Record
from retinanet.detection.write import Outputs
from retinanet.detection.written_files import FAILED
from retinanet.files import not_written, opened_atomically, replaced

# Error messages that are kept in memory; all are in the file.
_SHOWN = 10


@dataclass
class Totals:
    """Sums over all images of a record.

    Attributes:
        images: number of images in which objects were detected.
        largest: ``(height, width)`` of the image with the longest side of these.
        counts: detections of each class, by name.
        failed: number of images that could not be read.
        failures: error messages of the first of these.
        limited: number of images that reached a limit on detections.
        nonfinite: number of images with predictions that were NaN or infinite.
    """

    images: int = 0
    largest: tuple[int, int] = (0, 0)
    counts: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    limited: int = 0
    nonfinite: int = 0

    def add(self, entry: Entry, classes: Sequence[str]) -> None:
        """Count one image."""
        if entry.size is None:
            self.failed += 1
            if len(self.failures) < _SHOWN:
                self.failures.append(entry.error)
            return
        self.images += 1
        self.largest = max(self.largest, entry.size, key=max)
        self.counts.update(classes[found.label] for found in entry.found)
        self.limited += entry.limited
        self.nonfinite += entry.nonfinite


def write_result_files(outputs: Outputs, record: Record) -> tuple[Totals, list[str]]:
    """Write the files of the formats, and the list of images that could not be read.

    Returns:
        The sums over all images, and descriptions of all files under ``out``.

    Raises:
        RetinaNetError: a file cannot be written.
    """
    totals, out = Totals(), outputs.out
    try:
        with ExitStack() as stack:
            sinks = [_SINKS[name](outputs, stack) for name in dict.fromkeys(outputs.formats) if name in _SINKS]
            for entry in record.entries():
                totals.add(entry, outputs.classes)
                for sink in sinks:
                    sink.add(entry)
            for sink in sinks:
                sink.end()
        _write_failures(out / FAILED, record, totals.failed)
    except OSError as error:
        raise not_written(out, error) from error
    written = ["drawn images"] if outputs.draw and totals.images else []
    written += [name for sink in sinks for name in sink.written]
    written += ["annotations/*.xml"] if "voc" in outputs.formats else []
    written += ["geojson/*.geojson"] if "geojson" in outputs.formats else []
    return totals, [*written, RECORD, *([FAILED] if totals.failed else [])]


class _Coco:
    """``detections.json``: a list of all images, and then a list of all detections."""

    written = ("detections.json",)

    def __init__(self, outputs: Outputs, stack: ExitStack) -> None:
        self._classes = outputs.classes
        self._images = stack.enter_context(opened_atomically(outputs.out / "detections.json"))
        # The detections follow the images in the file, so they wait in a second file.
        boxes = TemporaryFile("w+", encoding="utf-8", errors="backslashreplace", dir=outputs.out)  # noqa: SIM115
        self._boxes: IO[str] = stack.enter_context(boxes)
        self._images.write('{"images": [')
        self._count = self._boxes_count = 0

    def add(self, entry: Entry) -> None:
        if entry.size is None:
            return
        self._count += 1
        height, width = entry.size
        image = {"id": self._count, "file_name": entry.path, "width": width, "height": height}
        _write_element(self._images, image, self._count)
        for found in entry.found:
            self._boxes_count += 1
            x1, y1, x2, y2 = found.box
            box = {
                "id": self._boxes_count,
                "image_id": self._count,
                "category_id": found.label + 1,
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": 0,
                "score": found.score,
            }
            _write_element(self._boxes, box, self._boxes_count)

    def end(self) -> None:
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self._classes)]
        self._images.write('], "annotations": [')
        self._boxes.seek(0)
        shutil.copyfileobj(self._boxes, self._images)
        self._images.write(f'], "categories": {json.dumps(categories, ensure_ascii=False)}}}\n')


class _Csv:
    """``detections.csv``: a row for each detection, and one for each image without any."""

    written = ("detections.csv",)

    def __init__(self, outputs: Outputs, stack: ExitStack) -> None:
        self._classes = outputs.classes
        self._rows = csv.writer(
            stack.enter_context(opened_atomically(outputs.out / "detections.csv")), lineterminator="\n"
        )
        self._rows.writerow(["path", "x1", "y1", "x2", "y2", "class", "score"])

    def add(self, entry: Entry) -> None:
        for found in entry.found:
            self._rows.writerow([entry.path, *found.box, self._classes[found.label], found.score])
        if entry.size is not None and not entry.found:
            self._rows.writerow([entry.path, "", "", "", "", "", ""])

    def end(self) -> None:
        pass


class _Yolo:
    """``classes.txt``, and ``labels.csv`` with the image of each file of labels."""

    written = ("labels/*.txt (labels.csv names their images)",)

    def __init__(self, outputs: Outputs, stack: ExitStack) -> None:
        self._rows = csv.writer(stack.enter_context(opened_atomically(outputs.out / "labels.csv")), lineterminator="\n")
        self._rows.writerow(["labels", "path"])
        names = stack.enter_context(opened_atomically(outputs.out / "classes.txt"))
        names.write("".join(f"{name}\n" for name in outputs.classes))

    def add(self, entry: Entry) -> None:
        if entry.size is not None:
            self._rows.writerow([f"labels/{entry.name}.txt", entry.path])

    def end(self) -> None:
        pass


class _Parquet:
    """``detections.parquet``: a row for each detection, and one for each image without any."""

    written = ("detections.parquet",)

    def __init__(self, outputs: Outputs, stack: ExitStack) -> None:
        from retinanet.detection.parquet import ParquetRows  # imports pyarrow

        path = outputs.out / "detections.parquet"
        self._rows = ParquetRows(stack.enter_context(replaced(path)), outputs.classes)

    def add(self, entry: Entry) -> None:
        if entry.size is not None:
            self._rows.add(entry)

    def end(self) -> None:
        self._rows.end()


_SINKS: dict[str, type[_Coco] | type[_Csv] | type[_Yolo] | type[_Parquet]] = {
    "coco": _Coco,
    "csv": _Csv,
    "yolo": _Yolo,
    "parquet": _Parquet,
}


def _write_element(file: IO[str], value: Any, number: int) -> None:
    """Write an element of a JSON list, counted from 1."""
    file.write((", " if number > 1 else "") + json.dumps(value, ensure_ascii=False))


def _write_failures(path: Path, record: Record, failed: int) -> None:
    """Write the messages of all images that could not be read; without any, remove the list of an earlier run."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    with opened_atomically(path) as file:
        for entry in record.entries():
            if entry.size is None:
                file.write(f"{entry.error}\n")
