"""Draw boxes and detections on images, with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from retinanet.detections import Detections

# The colors of Okabe and Ito, which color-blind people can tell apart, then lighter variants of them.
COLORS = ["#56B4E9", "#E69F00", "#33C59A", "#F0E442", "#D98BB8", "#E8743B", "#8FA8FF", "#B7E07A", "#C9C9C9", "#FF9DA7"]

# With more detections than this, labels would hide each other, so scores are left out.
_CROWDED = 40

# Labels are left out if they would cover more than this fraction of the image.
_COVERED = 0.2

# The text is this fraction of the shorter side of the image high, and at least and at most this number of pixels.
_TEXT, _SMALLEST_TEXT, _LARGEST_TEXT = 1 / 45, 10, 36

# Lines are at most this fraction of the median of the boxes' shorter sides, and all lines together cover about this
# fraction of the image at most, unless they are one pixel wide.
_LINE, _LINES = 0.1, 0.15

Box = Sequence[float]


class _Label(NamedTuple):
    """A label: its text, its color, and the sides of its background in pixels."""

    text: str
    color: str
    width: int
    height: int


def draw(
    image: npt.NDArray[np.uint8],
    found: Detections,
    classes: Sequence[str],
    ids: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw boxes, class names and scores on a copy of ``image``, uint8 RGB ``(H, W, 3)``.

    Each class has a color. With the ids of tracked objects ``(D,)``, each id has a color, and labels show the ids.

    Line width and text size follow the image size, and lines are thinner on small boxes. With more than 40 detections
    the scores are left out. Labels are left out altogether if they would cover a fifth of the image.
    """
    height, width = image.shape[:2]
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    thickness = line_width(min(height, width) / 300, np.asarray(found.boxes, dtype=np.float64), height * width)
    colors = [COLORS[number % len(COLORS)] for number in (found.labels if ids is None else ids).tolist()]
    for box, color in reversed(list(zip(found.boxes.tolist(), colors, strict=True))):  # the best on top
        pen.rectangle(_corners(box), outline=color, width=thickness)
    crowded = len(found) > _CROWDED
    font = _font(round(min(max(_TEXT * min(height, width), _SMALLEST_TEXT), _LARGEST_TEXT)))
    padding = max(1, thickness)
    labels = [
        _Label(text, color, *_label_size(text, font, padding))
        for text, color in zip(_label_texts(found, classes, crowded, ids), colors, strict=True)
    ]
    if sum(label.width * label.height for label in labels) <= _COVERED * height * width:
        # To keep labels apart takes a time that grows with the square of their number.
        places = _places(labels, found.boxes.tolist(), (width, height), apart=not crowded)
        for label, (x, y) in reversed(list(zip(labels, places, strict=True))):
            pen.rectangle((x, y, x + label.width - 1, y + label.height - 1), fill=label.color)
            pen.text((x + padding, y + padding), label.text, fill="black", font=font, anchor="lt")
    return np.array(canvas)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _label_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, padding: int) -> tuple[int, int]:
    """Width and height of the background of a label. All labels of an image are equally high."""
    height = font.getbbox("Ag", anchor="lt")[3]
    return round(font.getlength(text)) + 2 * padding, round(height) + 2 * padding


def _places(
    labels: Sequence[_Label], boxes: Sequence[Box], size: tuple[int, int], apart: bool
) -> list[tuple[int, int]]:
    """Choose the top left corner of each label: above its box, or below or in it if other labels are in the way.

    Labels are moved into the image of ``size`` (width, height).
    """
    taken = np.zeros((0, 4))
    result = []
    for label, (x1, y1, x2, y2) in zip(labels, boxes, strict=True):
        left, right = round(x1), round(x2) - label.width
        above, inside, below = round(y1) - label.height, round(y1), round(y2)
        wanted = [(left, above), (left, inside), (left, below), (right, above), (right, below)]
        limits = (max(0, size[0] - label.width), max(0, size[1] - label.height))
        fitting = [(x, y) for x, y in wanted if 0 <= y <= limits[1]] or wanted[:1]
        places = [(min(max(0, x), limits[0]), min(max(0, y), limits[1])) for x, y in fitting]
        best = min(places, key=lambda place: _hidden(taken, place, label)) if apart else places[0]
        result.append(best)
        if apart:
            corner = (best[0], best[1], best[0] + label.width, best[1] + label.height)
            taken = np.concatenate([taken, np.array(corner, dtype=np.float64)[None]])
    return result


def _hidden(taken: npt.NDArray[np.float64], place: tuple[int, int], label: _Label) -> float:
    """The area that a label at ``place`` shares with the labels ``taken``, ``(n, 4)`` ``xyxy``."""
    high = (place[0] + label.width, place[1] + label.height)
    sides = np.minimum(taken[:, 2:], high) - np.maximum(taken[:, :2], place)
    return float(np.maximum(sides, 0).prod(axis=1).sum())


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
    for box in corners_of_all.tolist():
        pen.rectangle(_corners(box), outline=color, width=width)
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


def _corners(box: Box) -> Box:
    """The corners of the outline of a half-open box: the last row and column of pixels belong to the outline."""
    x1, y1, x2, y2 = map(float, box)
    return (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))


def _label_texts(
    found: Detections, classes: Sequence[str], crowded: bool, ids: npt.NDArray[np.int64] | None
) -> list[str]:
    names = [classes[label] for label in found.labels.tolist()]
    if ids is not None:
        names = [f"#{number} {name}" for number, name in zip(ids.tolist(), names, strict=True)]
    if crowded:
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)]
