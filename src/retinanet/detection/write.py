"""Write detections to files: drawn images, COCO JSON, CSV, YOLO text and Pascal VOC XML."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.formats.voc_xml import DETECTIONS
from retinanet.detection.sources import ImageFile, ImageResult
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.files import write_atomically, write_json, write_text

OutputFormat = Literal["coco", "csv", "yolo", "voc"]

# Longest side of a JPEG file that the library can write.
_JPEG_LONGEST = 65_500


class Writer:
    """Collects the detections of one run of ``retinanet detect`` and writes them under ``out``.

    Args:
        out: the folder.
        classes: names of the detector's classes.
        formats: any of ``coco``, ``csv``, ``yolo``, ``voc``.
        draw: also write a copy of each image with its boxes drawn.
        files: all images that will be added; the names of the output files follow from these.

    Raises:
        DataError: a drawn image would overwrite its source.
    """

    def __init__(
        self, out: Path, classes: Sequence[str], formats: Sequence[OutputFormat], draw: bool, files: Sequence[ImageFile]
    ) -> None:
        self.out, self.classes, self.formats, self.draw = out, tuple(classes), tuple(formats), draw
        self.counts: Counter[str] = Counter()
        self._names = _unique_names(files)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._rows: list[list[Any]] = []
        self._labels: list[list[str]] = []
        if draw:
            originals = {file.path.resolve() for file in files}
            clash = next((f for f in files if self._drawn(f).resolve() in originals), None)
            if clash is not None:
                raise DataError(
                    f"--out {out}: the drawn {self._drawn(clash)} would replace an input image; choose another --out"
                )

    def add(self, result: ImageResult) -> None:
        """Draw and record the detections of one image."""
        assert result.image is not None
        assert result.found is not None
        found, file = result.found, result.file
        height, width = result.image.shape[:2]
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": str(file.path), "width": width, "height": height})
        lines = []
        for box, score, label in rows_of(found):
            x1, y1, x2, y2 = (round(v, 2) for v in box)
            name, score = self.classes[label], round(score, 4)
            self.counts[name] += 1
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )
            self._rows.append([str(file.path), x1, y1, x2, y2, name, score])
            center = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label} {' '.join(f'{v:.6f}' for v in center)} {score}\n")
        if not len(found):
            self._rows.append([str(file.path), "", "", "", "", "", ""])
        if "yolo" in self.formats:
            path = Path("labels") / self._names[file].with_suffix(".txt")
            self._labels.append([path.as_posix(), str(file.path)])
            write_text(self.out / path, "".join(lines))
        if "voc" in self.formats:
            xml = self._voc(file, width, height, found)
            write_text(self.out / "annotations" / self._names[file].with_suffix(".xml"), xml)
        if self.draw:
            _save_jpeg(self._drawn(file), self._drawing(result.image, found))

    def finish(self) -> list[str]:
        """Write the files that cover all images; return descriptions of the files under ``out``."""
        written = ["drawn images"] if self.draw and self._images else []
        if "coco" in self.formats:
            categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.classes)]
            content = {"images": self._images, "annotations": self._annotations, "categories": categories}
            write_json(self.out / "detections.json", content)
            written.append("detections.json")
        if "csv" in self.formats:
            header = ["path", "x1", "y1", "x2", "y2", "class", "score"]
            write_text(self.out / "detections.csv", _csv([header, *self._rows]))
            written.append("detections.csv")
        if "yolo" in self.formats:
            write_text(self.out / "classes.txt", "".join(f"{name}\n" for name in self.classes))
            write_text(self.out / "labels.csv", _csv([["labels", "path"], *self._labels]))
            written.append("labels/*.txt (labels.csv names their images)")
        if "voc" in self.formats:
            written.append("annotations/*.xml")
        return written

    def _drawn(self, file: ImageFile) -> Path:
        return self.out / self._names[file].with_suffix(".jpg")

    def _drawing(self, image: npt.NDArray[np.uint8], found: Detections) -> npt.NDArray[np.uint8]:
        from retinanet.detection.draw import draw

        return draw(image, found, self.classes)

    def _voc(self, file: ImageFile, width: int, height: int, found: Detections) -> str:
        objects = "".join(
            f"  <object>\n    <name>{_xml(self.classes[label])}</name>\n    <score>{score:.4f}</score>\n"
            + "    <bndbox>"
            + "".join(f"<{k}>{v:.2f}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            + "</bndbox>\n  </object>\n"
            for box, score, label in rows_of(found)
        )
        size = f"<width>{width}</width><height>{height}</height><depth>3</depth>"
        name, path = _xml(file.path.name), _xml(str(file.path))
        source = f"<source><database>{DETECTIONS}</database></source>"
        head = f"  <filename>{name}</filename>\n  <path>{path}</path>\n  {source}\n  <size>{size}</size>\n"
        return f"<annotation>\n{head}{objects}</annotation>\n"


def _xml(text: str) -> str:
    return escape(text, quote=False)  # xml.sax.saxutils would import urllib, which takes 20 ms


def rows_of(found: Detections) -> Iterator[tuple[list[float], float, int]]:
    """Box, score and label of each detection, as plain numbers."""
    return zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _unique_names(files: Sequence[ImageFile]) -> dict[ImageFile, Path]:
    """Return each image's output path, relative to the output folder; equal names get numbers."""
    names: dict[ImageFile, Path] = {}
    taken: set[Path] = set()
    for file in files:
        name, number = file.name, 1
        while name.with_suffix("") in taken:
            number += 1
            name = file.name.with_stem(f"{file.name.stem}-{number}")
        taken.add(name.with_suffix(""))
        names[file] = name
    return names


def _save_jpeg(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    image = Image.fromarray(pixels)
    image.thumbnail((_JPEG_LONGEST, _JPEG_LONGEST))  # smaller images stay as they are
    write_atomically(path, lambda temporary: image.save(temporary, quality=92))
