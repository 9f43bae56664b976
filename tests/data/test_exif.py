from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from retinanet.data.exif import Header, header_of_image, quick_header, turned_boxes, turned_pixels
from retinanet.data.images import image_header

WIDTH, HEIGHT = 7, 4
BOX = (1, 0, 5, 2)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_pixels_turn_as_pillow_turns_images(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    x1, y1, x2, y2 = BOX
    pixels[y1:y2, x1:x2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif(orientation))
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(turned_pixels(pixels.astype(np.float32), orientation), expected)
    rows, columns = np.nonzero(expected)
    [box] = turned_boxes(np.array([BOX], dtype=np.float64), orientation, (WIDTH, HEIGHT))
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "mpo"])
def test_header_is_that_of_the_stored_pixels(tmp_path: Path, suffix: str, orientation: int) -> None:
    tags: dict[str, Any] = {} if suffix == "bmp" else {"exif": exif(orientation)}
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"a.{suffix}", **tags)
    header = image_header(tmp_path / f"a.{suffix}")
    assert header == Header((WIDTH, HEIGHT), 1 if suffix == "bmp" else orientation)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        image.load()
        assert header.upright == ImageOps.exif_transpose(image).size


@pytest.mark.parametrize("kind", ["baseline", "progressive", "with a profile", "gray"])
def test_jpeg_headers_are_read_without_pillow(tmp_path: Path, kind: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "progressive": {"progressive": True},
        "with a profile": {"icc_profile": os.urandom(150_000)},
    }
    options = kinds.get(kind, {})
    Image.new("L" if kind == "gray" else "RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", **options)
    assert quick_header(tmp_path / "a.jpg") == Header((WIDTH, HEIGHT), 1)


def test_png_headers_are_read_without_pillow_unless_they_hold_exif(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "hello", zip=True)
    Image.fromarray(noise).save(tmp_path / "a.png", pnginfo=text)
    assert quick_header(tmp_path / "a.png") == Header((300, 400), 1)
    Image.fromarray(noise).save(tmp_path / "b.png", exif=exif(6))
    assert quick_header(tmp_path / "b.png") is None
    assert image_header(tmp_path / "b.png").upright == (400, 300)


def test_exif_after_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    """ExifTool writes it there."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png", exif=exif(6))
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    end = rest.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(rest[:end] + chunk + rest[end:])
    assert image_header(tmp_path / "a.png") == Header((WIDTH, HEIGHT), 6)


def test_xmp_orientation_is_that_of_pillow(tmp_path: Path) -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", xmp=packet)
    assert image_header(tmp_path / "a.jpg").orientation == 8


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_invalid_orientation_is_upright(tmp_path: Path, value: int) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", exif=exif(value))
    with Image.open(tmp_path / "a.jpg") as image:
        assert header_of_image(image) == Header((WIDTH, HEIGHT), 1)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_headers_are_left_to_pillow(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    for length in range(len(data)):
        (tmp_path / "b").write_bytes(data[:length])
        assert quick_header(tmp_path / "b") in (None, Header((WIDTH, HEIGHT), 1))
    assert quick_header(tmp_path / "missing") is None


def test_headers_are_read_faster_than_pillow_reads_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")

    def seconds(read: object) -> float:
        began = time.perf_counter()
        read()  # type: ignore[operator]
        return time.perf_counter() - began

    def pillow() -> None:
        with Image.open(tmp_path / "a.png") as image:
            header_of_image(image)

    assert min(seconds(lambda: quick_header(tmp_path / "a.png")) for _ in range(5)) < seconds(pillow) / 3
