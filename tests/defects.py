"""A dataset with one of every defect that ``retinanet data inspect`` reports."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Names of images.
TRUNCATED = "000000.jpg"
OTHER_SIZE = "000002.jpg"  # the annotations say 96 × 96
LEAKED, LEAK = "000003.jpg", "000006.jpg"  # the same bytes in train and val
NEARLY_LEAKED, NEAR_LEAK = "000004.jpg", "000011.jpg"
DUPLICATED, DUPLICATE = "000005.jpg", "000007.jpg"  # other bytes, the same pixels
NEARLY_DUPLICATED, NEAR_DUPLICATE = "000009.jpg", "000010.jpg"
UNLISTED = "zzz.jpg"

# Classes.
GEAR, BOLT, PIN, DASHED_GEAR, SPRING = 4, 5, 6, 7, 8

# Annotations. Those of the sample dataset have smaller numbers.
FIRST_PLANTED = 9000
ZERO_WIDTH, NOT_FINITE, NEGATIVE_WIDTH, OUTSIDE, WITHOUT_BOX, CLIPPED, TINY = range(9001, 9008)
TWICE, TWICE_AGAIN = 9008, 9009
ONE_CLASS, OTHER_CLASS = 9010, 9011
HUGE = 9012
GROUP, IN_GROUP = 9020, range(9021, 9026)
UNKNOWN_IMAGE, UNKNOWN_CLASS = 9030, 9031
BOLTS = range(9040, 9043)
DASHED_GEARS = range(9050, 9062)
UNTRAINED_PIN, UNTRAINED_SPRING = 9001, 9002  # in val

# Image and coordinates xyxy of TWICE.
TWICE_IMAGE = "000019.jpg"
TWICE_BOX = (5, 60, 27, 84)


def plant_defects(clean: Path, out: Path) -> Path:
    """Copy the clean sample dataset (60 images of 96 × 96 pixels) to ``out`` and plant one of every defect."""
    shutil.copytree(clean, out)
    _plant_images(out / "images")
    train, val = (json.loads((out / f"instances_{split}.json").read_text()) for split in ("train", "val"))
    _plant_annotations(train, val)
    for split, content in (("train", train), ("val", val)):
        (out / f"instances_{split}.json").write_text(json.dumps(content))
    return out


def _plant_images(images: Path) -> None:
    (images / TRUNCATED).write_bytes((images / TRUNCATED).read_bytes()[:1500])
    _noise(1, 50, 40).save(images / OTHER_SIZE)
    shutil.copy(images / LEAKED, images / LEAK)
    Image.open(images / NEARLY_LEAKED).point(lambda v: min(255, v + 9)).save(images / NEAR_LEAK, quality=70)
    pixels = io.BytesIO()
    Image.open(images / DUPLICATED).save(pixels, "PNG")
    (images / DUPLICATE).write_bytes(pixels.getvalue())
    Image.open(images / NEARLY_DUPLICATED).save(images / NEAR_DUPLICATE, quality=60)
    _noise(2, 96, 96).save(images / UNLISTED)


def _plant_annotations(train: dict[str, Any], val: dict[str, Any]) -> None:
    train["categories"] += [{"id": BOLT, "name": "bolt"}, {"id": PIN, "name": "pin"}]
    train["categories"] += [{"id": DASHED_GEAR, "name": "ge-ar"}]
    val["categories"] += [{"id": PIN, "name": "pin"}, {"id": SPRING, "name": "spring"}]
    boxes: dict[int, list[float] | None] = {
        ZERO_WIDTH: [9, 9, 0, 9],
        NOT_FINITE: [9, 9, float("nan"), 9],
        NEGATIVE_WIDTH: [40, 9, -9, 9],
        OUTSIDE: [200, 9, 9, 9],
        WITHOUT_BOX: None,
        CLIPPED: [90, 9, 20, 20],
        TINY: [9, 9, 0.5, 9],
    }
    for number, bbox in boxes.items():
        _add(train, number, 16, GEAR, bbox)
    x1, y1, x2, y2 = TWICE_BOX
    _add(train, TWICE, 20, GEAR, [x1, y1, x2 - x1, y2 - y1])
    _add(train, TWICE_AGAIN, 20, GEAR, [x1, y1, x2 - x1 + 0.5, y2 - y1])
    _add(train, ONE_CLASS, 18, GEAR, [5, 60, 22, 24])
    _add(train, OTHER_CLASS, 18, 1, [5, 60, 22, 24.5])
    _add(train, HUGE, 28, GEAR, [1, 1, 94.5, 94])  # image 28 is 000027.jpg, which has no objects
    for k, number in enumerate(IN_GROUP):
        _add(train, number, 19, GEAR, [12 + 14 * k, 70, 9, 9])
    _add(train, GROUP, 19, GEAR, [10, 66, 76, 18])
    _add(train, UNKNOWN_IMAGE, 777, GEAR, [9, 9, 9, 9])
    _add(train, UNKNOWN_CLASS, 20, 55, [9, 9, 9, 9])
    for k, number in enumerate(BOLTS):
        _add(train, number, 23, BOLT, [3 + 30 * k, 3, 20, 20])
    for k, number in enumerate(DASHED_GEARS):
        _add(train, number, 24 + k // 6 * 5, DASHED_GEAR, [3 + 15 * (k % 6), 80, 12, 12])
    _add(val, UNTRAINED_PIN, 27, PIN, [9, 9, 30, 30])
    _add(val, UNTRAINED_SPRING, 27, SPRING, [50, 9, 30, 30])


def _add(content: dict[str, Any], number: int, image: int, category: int, bbox: list[float] | None) -> None:
    row = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
    content["annotations"].append(row | ({"bbox": bbox} if bbox else {}))


def _noise(seed: int, width: int, height: int) -> Image.Image:
    """An image that resembles no other."""
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
