"""Draw synthetic aerial images: cells with small objects, and large images composed of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from retinanet.data.synthetic import CLASS_ODDS, CLASSES, LOOKALIKES, Box, Scene, render_part
from retinanet.data.workbench import workbench

# Side of a cell in pixels; objects and lookalikes in each cell. 25 × 25 cells make 12,000 × 12,000 pixels with 5,000
# objects.
CELL, OBJECTS, LOOKALIKES_IN_CELL = 480, 8, 4

# Sides of objects in pixels.
_LEAST, _MOST = 15.0, 28.0

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cell:
    """A cell: uint8 RGB ``pixels`` ``(CELL, CELL, 3)``, ``boxes`` ``xyxy`` and ``labels`` of its objects."""

    pixels: Array
    boxes: list[Box]
    labels: list[int]


def draw_cell(seed: int, index: int) -> Cell:
    """Draw cell ``index`` of the set ``seed``; all objects lie inside the cell."""
    rng = np.random.default_rng([seed, index])
    scene = Scene(workbench(rng, CELL), rng.uniform(0, 2 * math.pi))
    kinds = rng.choice(CLASSES, OBJECTS, p=CLASS_ODDS).tolist() + rng.choice(LOOKALIKES, LOOKALIKES_IN_CELL).tolist()
    boxes, labels = [], []
    for kind in kinds:
        box = None
        while box is None:  # hidden or too thin parts are drawn again, so that all cells have equally many objects
            side = rng.uniform(_LEAST, _MOST)
            part = render_part(kind, side, rng, scene.light)
            x, y = (int(v) for v in rng.uniform(side, CELL - side, 2))
            box = scene.place(part, x, y, scene.tint(rng, kind), min_visible=0.7)
        if kind in CLASSES:
            boxes.append(box)
            labels.append(CLASSES.index(kind))
    pixels = scene.colour + scene.through[..., None] * scene.background
    pixels += np.float32(rng.uniform(1, 5)) * rng.standard_normal((CELL, CELL, 1), np.float32)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.4)))
    return Cell(np.asarray(image), boxes, labels)


def write_cells(folder: Path, split: str, count: int, seed: int) -> None:
    """Write ``count`` cells as the split ``split`` of a COCO dataset."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        cell = draw_cell(seed, index)
        name = f"{split}_{index:05d}.png"
        Image.fromarray(cell.pixels).save(folder / "images" / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": CELL, "height": CELL})
        for (x0, y0, x1, y1), label in zip(cell.boxes, cell.labels, strict=True):
            row = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1, "iscrowd": 0}
            annotations.append({**row, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
