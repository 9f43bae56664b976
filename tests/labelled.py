"""A dataset that is labelled by a detector, so that the detector has a high AP on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import retinanet
from retinanet.data.formats.train_val import read_eval
from retinanet.data.images import read_image
from retinanet.data.synthetic import CLASSES


def labelled_by(weights: Path, sound: Path, folder: Path, images: int = 12) -> Path:
    """Write a dataset whose boxes are the ten best detections of each image; return its folder."""
    detector = retinanet.load(weights, "fp32")
    dataset, _ = read_eval(sound, "val")
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    for index in range(images):
        found = detector.detect([read_image(dataset.path(index))])[0]
        width, height = dataset.sizes[index].tolist()
        path = str(dataset.path(index))
        content["images"].append({"id": index + 1, "file_name": path, "width": width, "height": height})
        for box, label in zip(found.boxes[:10].tolist(), found.labels[:10].tolist(), strict=True):
            x1, y1, x2, y2 = box
            annotation = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotation |= {"id": len(content["annotations"]) + 1, "image_id": index + 1, "category_id": label + 1}
            content["annotations"].append(annotation)
    folder.mkdir()
    for split in ("train", "val"):
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
