"""The answers to a request for detections: JSON, COCO, or the image with its boxes drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from retinanet.detection.draw import draw
from retinanet.detections import Detections
from retinanet.serve.batcher import Found
from retinanet.serve.refusals import Refusal

JSON, COCO, JPEG, PNG = "application/json", "application/vnd.coco+json", "image/jpeg", "image/png"

# In the order of preference, if a client accepts several equally.
MEDIA_TYPES = (JSON, COCO, JPEG, PNG)

# Longest side of a JPEG file.
_JPEG_LONGEST = 65_500


def media_type(accept: str) -> str:
    """Choose the media type of the answer from the header ``Accept``.

    Raises:
        Refusal: the client accepts none.
    """
    best, best_quality = "", 0.0
    wanted = [_accepted(each) for each in (accept[:2000] or "*/*").split(",")]
    for kind in MEDIA_TYPES:
        major = kind.split("/")[0]
        qualities = {pattern: quality for pattern, quality in wanted if pattern in (kind, f"{major}/*", "*/*")}
        quality = next((qualities[each] for each in (kind, f"{major}/*", "*/*") if each in qualities), 0.0)
        if quality > best_quality:
            best, best_quality = kind, quality
    if not best:
        raise Refusal("not_acceptable", f"the header Accept allows none of {', '.join(MEDIA_TYPES)}")
    return best


def _accepted(text: str) -> tuple[str, float]:
    """A media type of ``Accept`` and its quality from 0 to 1."""
    kind, *parameters = (each.strip().lower() for each in text.split(";"))
    quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
    try:
        return kind, min(1.0, max(0.0, float(quality)))
    except ValueError:
        return kind, 0.0


def answer_body(kind: str, found: Found, model: str, classes: Sequence[str], name: str) -> bytes:
    """Return the body of an answer in a media type of :data:`MEDIA_TYPES`.

    Args:
        kind: the media type.
        found: the detections; with the image if it is to be drawn.
        model: name of the model.
        classes: names of its classes.
        name: name of the image, for COCO.
    """
    if kind == JSON:
        return _json(_content(found, model, classes))
    if kind == COCO:
        return _json(_coco(found, classes, name))
    assert found.image is not None
    drawn = Image.fromarray(draw(found.image, found.detections, classes))
    file = io.BytesIO()
    if kind == JPEG:
        drawn.thumbnail((_JPEG_LONGEST, _JPEG_LONGEST))  # smaller images stay as they are
        drawn.save(file, "JPEG", quality=92)
    else:
        drawn.save(file, "PNG", compress_level=3)
    return file.getvalue()


def rounded_rows(found: Detections) -> list[tuple[list[float], float, int]]:
    """Box in pixels, score and label of each detection, rounded as ``retinanet detect`` writes them."""
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [([round(side, 2) for side in box], round(score, 4), label) for box, score, label in rows]


def _content(found: Found, model: str, classes: Sequence[str]) -> dict[str, Any]:
    detections = [
        {"box": box, "score": score, "class_id": label, "class_name": classes[label]}
        for box, score, label in rounded_rows(found.detections)
    ]
    return {"model": model, "width": found.size[1], "height": found.size[0], "detections": detections}


def _coco(found: Found, classes: Sequence[str], name: str) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for (x1, y1, x2, y2), score, label in rounded_rows(found.detections):
        width, height = round(x2 - x1, 2), round(y2 - y1, 2)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": label + 1,
                "bbox": [x1, y1, width, height],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": 0,
                "score": score,
            }
        )
    return {
        "images": [{"id": 1, "file_name": name, "width": found.size[1], "height": found.size[0]}],
        "annotations": annotations,
        "categories": [{"id": number, "name": each} for number, each in enumerate(classes, start=1)],
    }


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
