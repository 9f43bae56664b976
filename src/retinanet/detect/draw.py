"""Draw detections on pictures, with supervision's annotators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import supervision

from retinanet.detections import Detections

# Okabe and Ito's colours, which colour-blind people tell apart, then lighter companions
COLORS = ["#56B4E9", "#E69F00", "#33C59A", "#F0E442", "#D98BB8", "#E8743B", "#8FA8FF", "#B7E07A", "#C9C9C9", "#FF9DA7"]


def to_supervision(found: Detections, classes: Sequence[str]) -> supervision.Detections:
    """Detections as the dataclass of the supervision library, with class names in ``data["class_name"]``."""
    labels = found.labels
    names = np.array([classes[int(k)] for k in labels], dtype=np.str_)
    return supervision.Detections(
        xyxy=found.boxes, confidence=found.scores, class_id=labels, data={"class_name": names}
    )


def draw(
    image: npt.NDArray[np.uint8], detections: supervision.Detections, classes: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """A copy of ``image`` (uint8 RGB ``(H, W, 3)``) with boxes, class names and scores on it.

    Line width and text follow the picture's size. In a picture with many small boxes the scores are left out, so that
    the labels do not hide what they name.
    """
    height, width = image.shape[:2]
    palette = supervision.ColorPalette.from_hex(COLORS)
    thickness = max(1, round(min(height, width) / 300))
    # supervision's colours are written for BGR pictures; these are RGB
    scene = np.ascontiguousarray(image[:, :, ::-1]).copy()
    scene = supervision.BoxAnnotator(color=palette, thickness=thickness).annotate(scene, detections)
    if len(detections):
        crowded = len(detections) > 40
        text = supervision.LabelAnnotator(
            color=palette,
            text_color=supervision.Color.BLACK,
            text_scale=float(np.clip(min(height, width) / 1400, 0.3, 1.2)),
            text_padding=max(1, thickness),
            smart_position=not crowded,  # inside the picture and apart; too slow for hundreds
        )
        scene = text.annotate(scene, detections, labels=_labels(detections, classes, crowded))
    return np.ascontiguousarray(scene[:, :, ::-1])


def _labels(detections: supervision.Detections, classes: Sequence[str], crowded: bool) -> list[str]:
    ids = detections.class_id if detections.class_id is not None else np.zeros(len(detections), dtype=np.int64)
    if detections.confidence is None or crowded:
        return [classes[int(k)] for k in ids]
    return [f"{classes[int(k)]} {score:.2f}" for k, score in zip(ids, detections.confidence, strict=True)]
