"""The files that cover one image: YOLO text and Pascal VOC XML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import PurePath

from retinanet.data.formats.voc_xml import DETECTIONS
from retinanet.detection.record import Entry


def yolo_text(entry: Entry) -> str:
    """Return a line ``class x y width height score`` for each detection, with boxes in fractions of the image."""
    assert entry.size is not None
    height, width = entry.size
    lines = []
    for found in entry.found:
        x1, y1, x2, y2 = found.box
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{found.label} {' '.join(f'{v:.6f}' for v in values)} {found.score}\n")
    return "".join(lines)


def voc_text(entry: Entry, classes: Sequence[str]) -> str:
    """Return Pascal VOC XML with scores."""
    assert entry.size is not None
    objects = "".join(
        f"  <object>\n    <name>{_xml(classes[found.label])}</name>\n    <score>{found.score:.4f}</score>\n"
        + "    <bndbox>"
        + "".join(f"<{k}>{v:.2f}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), found.box, strict=True))
        + "</bndbox>\n  </object>\n"
        for found in entry.found
    )
    height, width = entry.size
    size = f"<width>{width}</width><height>{height}</height><depth>3</depth>"
    name, path = _xml(PurePath(entry.path).name), _xml(entry.path)
    source = f"<source><database>{DETECTIONS}</database></source>"
    head = f"  <filename>{name}</filename>\n  <path>{path}</path>\n  {source}\n  <size>{size}</size>\n"
    return f"<annotation>\n{head}{objects}</annotation>\n"


def _xml(text: str) -> str:
    return escape(text, quote=False)  # xml.sax.saxutils would import urllib, which takes 20 ms
