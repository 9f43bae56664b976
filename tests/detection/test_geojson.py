from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from retinanet.data.georeference import Georeference
from retinanet.detection.geojson import geojson, write_geojson
from retinanet.detections import Detections

pytest.importorskip("rasterio")

RADIUS = 6_378_137.0
PIXELS = (0.5, 0.0, 1_000_000.0, 0.0, -0.5, 6_000_000.0)

FOUND = Detections.of_one_image(
    np.array([[2, 4, 10, 8], [0, 0, 50, 40]], np.float32), np.array([0.9, 0.30004], np.float32), np.array([1, 0])
)


def area(ring: list[list[float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2


def test_boxes_become_polygons_in_longitude_and_latitude(tmp_path: Path) -> None:
    reference = Georeference(PIXELS, "EPSG:3857", (50, 40))
    write_geojson(tmp_path / "a.geojson", FOUND, ("car", "tree"), reference, "a.tif")
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert "crs" not in content  # RFC 7946 has no other system
    first, second = content["features"]
    assert first["properties"] == {"image": "a.tif", "class": "tree", "score": 0.9, "box": [2, 4, 10, 8]}
    assert second["properties"]["class"] == "car"
    [ring] = first["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert len(ring) == 5
    assert area(ring) > 0  # counterclockwise
    west, north = min(point[0] for point in ring), max(point[1] for point in ring)
    assert west == pytest.approx(np.degrees(1_000_001 / RADIUS), abs=1e-8)
    assert north == pytest.approx(np.degrees(2 * np.arctan(np.exp(5_999_998 / RADIUS)) - np.pi / 2), abs=1e-8)


@pytest.mark.parametrize(("crs", "name"), [("", "unknown"), ('LOCAL_CS["site",UNIT["metre",1]]', "LOCAL_CS")])
def test_other_systems_are_kept_and_named(crs: str, name: str) -> None:
    content = geojson(FOUND, ("car", "tree"), Georeference(PIXELS, crs, (50, 40)))
    assert content["crs"]["properties"]["name"].startswith(name)
    [ring] = content["features"][0]["geometry"]["coordinates"]
    assert [1_000_001.0, 5_999_998.0] in ring
    assert area(ring) == pytest.approx(4 * 2)
    assert "image" not in content["features"][0]["properties"]


def test_no_detections_make_an_empty_collection() -> None:
    content = geojson(Detections.empty(), (), Georeference(PIXELS, "EPSG:3857", (50, 40)))
    assert content["features"] == []
