"""Small COCO datasets with blank images."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image


def write_coco(root: Path, splits: dict[str, list[str]], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write a dataset with a box of the last class in each image; return its folder."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        for name in names:
            Image.new("RGB", (20, 20)).save(root / "images" / name)
        content = {
            "images": [{"id": i, "file_name": n, "width": 20, "height": 20} for i, n in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": len(classes) - 1, "bbox": [0, 0, 5, 5]}
                for i in range(len(names))
            ],
            "categories": [{"id": i, "name": c} for i, c in enumerate(classes)],
        }
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def names(prefix: str, count: int) -> list[str]:
    """Different names of image files."""
    return [f"{prefix}{i}.png" for i in range(count)]
