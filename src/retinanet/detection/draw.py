"""Draw boxes and detections on images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from retinanet.detections import Detections

if TYPE_CHECKING:  # supervision takes a second to import; drawing boxes alone does not need it
    import supervision

# The colors of Okabe and Ito, which color-blind people can tell apart, then lighter variants of them.
COLORS = ["#56B4E9", "#E69F00", "#33C59A", "#F0E442", "#D98BB8", "#E8743B", "#8FA8FF", "#B7E07A", "#C9C9C9", "#FF9DA7"]

# With more detections than this, labels would hide each other, so scores are left out.
_CROWDED = 40

# Labels are left out if they would cover more than this fraction of the image. A character of a label is about 12
# pixels wide and 22 pixels high at a text scale of 1.
_COVERED, _CHARACTER = 0.2, (12, 22)

# Lines are at most this fraction of the median of the boxes' shorter sides, and all lines together cover about this
# fraction of the image at most, unless they are one pixel wide.
_LINE, _LINES = 0.1, 0.15

Box = Sequence[float]


def import_supervision() -> Any:
    """Import supervision (takes a second), and suppress its warning that OpenCV would be faster."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OpenCV .* is not installed", category=UserWarning)
        return import_module("supervision")


def to_supervision(found: Detections, classes: Sequence[str]) -> supervision.Detections:
    """Convert to ``supervision.Detections``, with class names in ``data["class_name"]``."""
    supervision_package = import_supervision()
    labels = found.labels
    names = np.array([classes[int(k)] for k in labels], dtype=np.str_)
    converted: supervision.Detections = supervision_package.Detections(
        xyxy=found.boxes, confidence=found.scores, class_id=labels, data={"class_name": names}
    )
    return converted


def draw(
    image: npt.NDArray[np.uint8], detections: supervision.Detections, classes: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Draw boxes, class names and scores on a copy of ``image``, uint8 RGB ``(H, W, 3)``.

    Line width and text size follow the image size, and lines are thinner on small boxes. With more than 40 detections
    the scores are left out. Labels are left out altogether if they would cover a fifth of the image.
    """
    supervision = import_supervision()
    height, width = image.shape[:2]
    palette = supervision.ColorPalette.from_hex(COLORS)
    thickness = line_width(min(height, width) / 300, np.asarray(detections.xyxy, dtype=np.float64), height * width)
    scene = np.ascontiguousarray(image[:, :, ::-1]).copy()  # supervision draws on BGR images
    scene = supervision.BoxAnnotator(color=palette, thickness=thickness).annotate(scene, detections)
    crowded = len(detections) > _CROWDED
    labels = _label_texts(detections, classes, crowded)
    scale = float(np.clip(min(height, width) / 1400, 0.3, 1.2))
    covered = scale**2 * _CHARACTER[0] * _CHARACTER[1] * sum(map(len, labels))
    if labels and covered <= _COVERED * height * width:
        text = supervision.LabelAnnotator(
            color=palette,
            text_color=supervision.Color.BLACK,
            text_scale=scale,
            text_padding=max(1, thickness),
            smart_position=not crowded,  # moves labels into the image and apart; too slow for hundreds
        )
        scene = text.annotate(scene, detections, labels=labels)
    return np.ascontiguousarray(scene[:, :, ::-1])


def draw_boxes(
    image: npt.NDArray[np.uint8],
    boxes: Sequence[Box] | npt.NDArray[np.floating],
    color: str = "white",
    width: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw outlines of ``boxes`` (``xyxy`` pixels) on a copy of ``image``.

    ``width`` is the line width in pixels; by default it follows the image size, and lines are thinner on small boxes.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    corners_of_all = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    width = width or line_width(min(canvas.size) // 250, corners_of_all, canvas.width * canvas.height)
    for x1, y1, x2, y2 in boxes:
        corners = (float(x1), float(y1), float(max(x1, x2 - 1)), float(max(y1, y2 - 1)))
        pen.rectangle(corners, outline=color, width=width)
    return np.array(canvas)


def line_width(usual: float, boxes: npt.NDArray[np.floating], area: int) -> int:
    """Line width in pixels for ``boxes`` ``(n, 4)``: ``usual``, or less if most boxes are small or there are many.

    Args:
        usual: width for few large boxes.
        boxes: ``xyxy`` pixels.
        area: number of pixels of the image.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    if not sides.sum() > 0:
        return max(1, round(usual))
    shorter = np.sort(sides.min(axis=1))[len(sides) // 2]
    return max(1, round(min(usual, _LINE * float(shorter), _LINES * area / (2 * float(sides.sum())))))


def closeup(
    image: npt.NDArray[np.uint8],
    boxes: Sequence[Box] | npt.NDArray[np.float32],
    colors: Sequence[str],
    longest: int,
    closely: bool = True,
) -> npt.NDArray[np.uint8]:
    """Crop ``image`` to the boxes with a margin, draw them, and scale the longer side to ``longest``.

    With ``closely=False`` the whole image is shown.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    height, width = image.shape[:2]
    region = np.array([0, 0, width, height])
    if closely:
        low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
        margin = max(16.0, float((high - low).max()) / 2)
        around = np.concatenate([np.maximum(low - margin, 0), np.minimum(high + margin + 1, (width, height))])
        if (around[2:] - around[:2] >= 1).all():  # otherwise the boxes belong to a larger image
            region = around.astype(np.int64)
    left, top, right, bottom = region.tolist()
    factor = longest / max(right - left, bottom - top)
    size = (max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor)))
    result = np.array(Image.fromarray(image[top:bottom, left:right]).resize(size, Image.Resampling.BICUBIC))
    for box, color in zip(corners, colors, strict=True):
        result = draw_boxes(result, [(box - (left, top, left, top)) * factor], color, width=2)
    return result


def _label_texts(detections: supervision.Detections, classes: Sequence[str], crowded: bool) -> list[str]:
    ids = detections.class_id if detections.class_id is not None else np.zeros(len(detections), dtype=np.int64)
    if detections.confidence is None or crowded:
        return [classes[int(k)] for k in ids]
    return [f"{classes[int(k)]} {score:.2f}" for k, score in zip(ids, detections.confidence, strict=True)]
