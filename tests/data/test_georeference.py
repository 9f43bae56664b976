from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from retinanet.data.georeference import Georeference, georeference
from retinanet.errors import DataError

rasterio = pytest.importorskip("rasterio")

# Web Mercator is a formula: x and y in meters from longitude and latitude.
MERCATOR = "EPSG:3857"
RADIUS = 6_378_137.0


def degrees(x: float, y: float) -> tuple[float, float]:
    return np.degrees(x / RADIUS), np.degrees(2 * np.arctan(np.exp(y / RADIUS)) - np.pi / 2)


def geotiff(folder: Path, crs: str | None = MERCATOR, **options: Any) -> Path:
    """50×40 pixels of 0.5 m; the upper left corner is at (1,000,000, 6,000,000)."""
    file = folder / "a.tif"
    affine = rasterio.Affine(0.5, 0, 1_000_000, 0, -0.5, 6_000_000)
    sizes = {"width": 50, "height": 40, "count": 1, "dtype": "uint8"}
    with rasterio.open(file, "w", driver="GTiff", crs=crs, transform=affine, **sizes, **options) as opened:
        opened.write(np.zeros((1, 40, 50), np.uint8))
    return file


def test_pixels_have_the_coordinates_of_the_file(tmp_path: Path) -> None:
    found = georeference(geotiff(tmp_path))
    assert found is not None
    assert found.crs == MERCATOR
    assert found.size == (50, 40)
    corners = found.corners(np.array([[2, 4, 10, 8]]))
    expected = [(1_000_001, 5_999_998), (1_000_005, 5_999_998), (1_000_005, 5_999_996), (1_000_001, 5_999_996)]
    assert corners.tolist() == [[list(point) for point in expected]]
    converted = found.to_longitude_latitude(corners)
    assert converted is not None
    np.testing.assert_allclose(converted[0], [degrees(*point) for point in expected], rtol=0, atol=1e-9)


def test_pixels_may_be_points(tmp_path: Path) -> None:
    """With PixelIsPoint, the stored corner is the center of a pixel; GDAL moves it by half a pixel."""
    file = geotiff(tmp_path, tiled=False)
    with rasterio.open(file, "r+") as opened:
        opened.update_tags(AREA_OR_POINT="Point")
    found = georeference(file)
    assert found is not None
    assert found.corners(np.array([[0, 0, 1, 1]]))[0, 0].tolist() == [1_000_000, 6_000_000]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_of_a_turned_image_are_turned_back(orientation: int) -> None:
    size = (40, 50) if orientation > 4 else (50, 40)
    turned = Georeference((1, 0, 0, 0, 1, 0), "", size, orientation)
    whole = turned.corners(np.array([[0, 0, *size]]))
    assert (whole[0].min(axis=0).tolist(), whole[0].max(axis=0).tolist()) == ([0, 0], [50, 40])
    # The upper left pixel of the stored image, in the upright image.
    place = {1: (0, 0), 3: (49, 39), 6: (39, 0), 8: (0, 49)}[orientation]
    box = np.array([[*place, place[0] + 1, place[1] + 1]])
    assert turned.corners(box)[0].max(axis=0).tolist() == [1, 1]


def test_files_without_coordinates_have_no_georeference(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.uint8))
    assert georeference(tmp_path / "a.tif") is None


def test_a_world_file_is_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.uint8), metadata=None)
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-2\n101\n199\n")
    found = georeference(tmp_path / "a.tif")
    assert found is not None
    assert found.crs == ""
    assert found.corners(np.array([[0, 0, 1, 1]]))[0, 0].tolist() == [100, 200]
    assert found.to_longitude_latitude(found.corners(np.array([[0, 0, 1, 1]]))) is None


def test_a_system_without_relation_to_the_earth_is_not_converted(tmp_path: Path) -> None:
    local = 'LOCAL_CS["building site",UNIT["metre",1]]'
    found = Georeference((1, 0, 0, 0, 1, 0), local, (50, 40))
    assert found.to_longitude_latitude(found.corners(np.array([[0, 0, 1, 1]]))) is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("hello")
    (tmp_path / "a.vrt").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    for name, message in (
        ("a.tif", "not a readable"),
        ("a.vrt", "not a readable"),
        ("b.tif", "no such"),
        (".", "folder"),
    ):
        with pytest.raises(DataError, match=message):
            georeference(tmp_path / name)


def test_without_rasterio_the_extra_is_named(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["rasterio"] = None  # as if it were not installed
from retinanet.data.georeference import georeference
try:
    georeference("a.tif")
except Exception as error:
    print(type(error).__name__, error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("MissingPackageError reading the coordinates of a GeoTIFF file needs rasterio")
    assert "retinanet[geo]" in ended.stdout
