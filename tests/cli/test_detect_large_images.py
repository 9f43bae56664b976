"""``retinanet detect`` in large images: tiles, reduced drawings, GeoJSON, limits and interrupted runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Command
from retinanet.detection import overview

TILES = ("--tile", "96", "--overlap", "24", "--score", "0.2")


@pytest.fixture
def field(parts: Path, tmp_path: Path) -> Path:
    """A folder with two GeoTIFF files, each of four images of the dataset, and a PNG file."""
    rasterio = pytest.importorskip("rasterio")
    folder = tmp_path / "field"
    folder.mkdir()
    for number in range(3):
        images = [np.asarray(Image.open(parts / "images" / f"{number + i:06}.jpg").convert("RGB")) for i in range(4)]
        pixels = np.concatenate([np.concatenate(images[:2], axis=1), np.concatenate(images[2:], axis=1)])
        if number == 2:
            Image.fromarray(pixels).save(folder / "plain.png")
            continue
        place = rasterio.Affine(0.5, 0, 500_000 + 100 * number, 0, -0.5, 5_000_000)
        size = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 3, "dtype": "uint8"}
        with rasterio.open(folder / f"{number}.tif", "w", crs="EPSG:32632", transform=place, **size) as file:
            file.write(pixels.transpose(2, 0, 1))
    return folder


def test_tiles_of_georeferenced_files_become_geojson(run: Command, weights: Path, field: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run("detect", weights, field, "--out", out, "--format", "geojson", *TILES)
    assert said.code == 0
    assert "no GeoJSON for 1 images that are not GeoTIFF files" in " ".join(said.out.split())
    assert sorted(path.name for path in (out / "geojson").iterdir()) == ["0.geojson", "1.geojson"]
    entries = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    for entry, name in zip(entries[:2], ("0.geojson", "1.geojson"), strict=True):
        features = json.loads((out / "geojson" / name).read_text())["features"]
        assert [each["properties"]["score"] for each in features] == [each["score"] for each in entry["detections"]]
        assert features
        for feature in features:
            longitude, latitude = feature["geometry"]["coordinates"][0][0]
            assert longitude == pytest.approx(9.0, abs=0.01)  # the central meridian of UTM zone 32
            assert latitude == pytest.approx(45.15, abs=0.01)


def test_an_interrupted_run_with_tiles_goes_on(run: Command, weights: Path, field: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run("detect", weights, field, "--out", whole, *TILES).code == 0
    assert run("detect", weights, field, "--out", halves, *TILES).code == 0
    record = halves / "detections.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(lines[0] + lines[1][:20])
    said = run("detect", weights, field, "--out", halves, *TILES, "--resume")
    assert (said.code, "1 of them recorded before" in said.out) == (0, True)
    for name in ("detections.json", "detections.csv", "detections.jsonl"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    refused = run.fails("detect", weights, field, "--out", halves, "--tile", "128", "--score", "0.2", "--resume")
    assert "tile" in refused


def test_drawings_of_very_large_images_are_reduced(
    run: Command, weights: Path, field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview.overview, "__defaults__", (5_000,))
    out = tmp_path / "out"
    assert run("detect", weights, field / "plain.png", "--out", out, *TILES).code == 0
    with Image.open(field / "plain.png") as image, Image.open(out / "plain.jpg") as drawn:
        assert drawn.width * drawn.height <= 5_000
        assert drawn.width == -(-image.width // round(image.width / drawn.width))


def test_larger_files_need_a_flag(run: Command, weights: Path, field: Path, tmp_path: Path) -> None:
    refused = run.fails("detect", weights, field / "0.tif", "--out", tmp_path / "a", *TILES, "--max-pixels", "100")
    assert "is too large (limit 100 pixels)" in refused
    assert "--max-pixels is 0" in run.fails(
        "detect", weights, field, "--out", tmp_path / "b", "--max-pixels", "0", code=2
    )
    assert "add --tile, or leave it out" in run.fails(
        "detect", weights, field, "--out", tmp_path / "c", "--max-pixels", "9", code=2
    )
    assert "are for images; leave them out" in run.fails("detect", weights, "a.mp4", "--max-pixels", "9", code=2)


def test_a_damaged_part_of_a_large_image_is_an_unreadable_image(
    run: Command, weights: Path, field: Path, tmp_path: Path
) -> None:
    content = (field / "plain.png").read_bytes()
    (field / "torn.png").write_bytes(content[: len(content) // 2])
    said = run("detect", weights, field, "--out", tmp_path / "out", *TILES)
    assert said.code == 1
    assert "1 of 4 images could not be read" in said.err
    assert "torn.png" in (tmp_path / "out" / "failed.txt").read_text()
