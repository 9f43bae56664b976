"""Write detections in georeferenced images as GeoJSON, which map programs such as QGIS open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.georeference import Georeference, Points
from retinanet.detections import Detections
from retinanet.files import write_json

# Decimals of degrees (a millimeter) and of other units.
_DEGREES, _OTHERS = 8, 3


def geojson(found: Detections, classes: Sequence[str], reference: Georeference, image: str = "") -> dict[str, Any]:
    """Convert the detections of one image to a GeoJSON feature collection.

    Coordinates are longitude and latitude (WGS 84), as RFC 7946 wants it. If the coordinate system of the image is not
    known, or has no known relation to WGS 84, they are those of the image, and the member ``crs`` names its system.

    Args:
        found: detections with boxes in pixels of the upright image.
        classes: names of the classes.
        reference: where the pixels lie, from :func:`retinanet.data.georeference.georeference`.
        image: name of the image; each feature has it as the property ``image`` unless it is empty.

    Returns:
        A ``FeatureCollection`` with a polygon for each detection and the properties ``class``, ``score`` and ``box``
        (``xyxy`` pixels).
    """
    corners = reference.corners(found.boxes)
    converted = reference.to_longitude_latitude(corners)
    rings = _rings(corners if converted is None else converted, _OTHERS if converted is None else _DEGREES)
    rows = zip(rings, found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                **({"image": image} if image else {}),
                "class": classes[label],
                "score": round(score, 4),
                "box": [round(v, 2) for v in box],
            },
        }
        for ring, box, score, label in rows
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if converted is None:
        collection["crs"] = {"type": "name", "properties": {"name": reference.crs or "unknown"}}
    return collection


def write_geojson(
    path: Path, found: Detections, classes: Sequence[str], reference: Georeference, image: str = ""
) -> None:
    """Write :func:`geojson` to a file.

    Raises:
        RetinaNetError: the file cannot be written.
    """
    write_json(path, geojson(found, classes, reference, image))


def _rings(corners: Points, decimals: int) -> list[list[list[float]]]:
    """Closed, counterclockwise rings of boxes with the corners ``(D, 4, 2)``."""
    x, y = corners[:, :, 0], corners[:, :, 1]
    area = (x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1)
    around = np.where((area < 0)[:, None, None], corners[:, ::-1], corners)
    rings: list[list[list[float]]] = np.round(np.concatenate((around, around[:, :1]), axis=1), decimals).tolist()
    return rings
