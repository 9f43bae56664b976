"""Uploaded images have the pixels of image files, and hostile ones end quickly and without decoding."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from time import monotonic
from typing import Literal

import numpy as np
import pytest
import tifffile
from PIL import Image

from retinanet.data.images import read_image
from retinanet.serve.refusals import Refusal
from retinanet.serve.uploads import decode_upload, read_upload_header
from serving import encoded


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def deep_png() -> bytes:
    values = np.random.default_rng(0).integers(0, 4095, (30, 40, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return png(40, 30, chunk(b"IDAT", zlib.compress(rows)), depth=16)


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(), "JPEG", exif=exif)


FILES = {
    "a.jpg": encoded(noise(), "JPEG"),
    "turned.jpg": turned_jpeg(),
    "cmyk.jpg": encoded(noise("CMYK"), "JPEG"),
    "rgba.png": encoded(noise("RGBA"), "PNG"),
    "palette.png": encoded(noise().quantize(16), "PNG"),
    "deep gray.png": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG"),
    "a.webp": encoded(noise(), "WEBP"),
    "a.gif": encoded(noise().quantize(16), "GIF"),
    "a.bmp": encoded(noise(), "BMP"),
    "a.tif": encoded(noise(), "TIFF"),
    "lzw.tif": encoded(noise(), "TIFF", compression="tiff_lzw"),
    "float.tif": encoded(Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)), "TIFF"),
    "a.ppm": encoded(noise(), "PPM"),
    "a.avif": encoded(noise(), "AVIF"),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f2", "f4", "f8"])
@pytest.mark.parametrize("planar", ["gray", "contig", "separate"])
def test_a_tiff_file_has_the_pixels_of_the_command_or_is_refused(
    tmp_path: Path, order: Literal["<", ">"], dtype: str, planar: str
) -> None:
    values = np.linspace(0, 120, 30 * 40 * 3).reshape(30, 40, 3).astype(dtype)
    file = tmp_path / "a.tif"
    if planar == "gray":
        tifffile.imwrite(file, values[:, :, 0], photometric="minisblack", byteorder=order)
    else:
        stored = values if planar == "contig" else values.transpose(2, 0, 1)
        tifffile.imwrite(file, stored, photometric="rgb", planarconfig=planar, byteorder=order)
    if dtype == "u1" or (planar == "gray" and (dtype == "u2" or (dtype == "f4" and order == "<"))):
        np.testing.assert_array_equal(decode_upload(file.read_bytes(), (0, 120)), read_image(file, (0, 120)))
    else:
        with pytest.raises(Refusal, match=r"not read|not an image"):
            decode_upload(file.read_bytes(), (0, 120))


@pytest.mark.parametrize("name", FILES)
def test_an_upload_has_the_pixels_of_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    expected = read_image(path)
    np.testing.assert_array_equal(decode_upload(FILES[name]), expected)
    header = read_upload_header(FILES[name], 50)
    assert (header.height, header.width) == expected.shape[:2]


def bomb() -> bytes:
    return png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(10_000_000))))


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encoded(noise(size=(640, 480)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 5000 + content[-2:]


def many_segments() -> bytes:
    content = FILES["a.jpg"]
    return content[:2] + b"\xff\xfe\x00\x02" * 3_000_000 + content[2:]


HOSTILE = {
    "nothing": (b"", "not_an_image"),
    "text": (b"GET / HTTP/1.1\r\n\r\n" * 50, "not_an_image"),
    "html": (b"<html><img src='file:///etc/passwd'></html>", "not_an_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    "pickle": (b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", "not_an_image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not_an_image"),
    "bomb": (bomb(), "too_many_pixels"),
    "long": (png(200_000, 2000), "too_many_pixels"),
    "huge sides": (png(2**31 - 1, 2**31 - 1), "too_many_pixels"),
    "no pixels": (png(0, 5), "not_an_image"),
    "many scans": (many_scans(), "broken_image"),
    "many segments": (many_segments(), "broken_image"),
    "many chunks": (png(40, 30, *[chunk(b"aaAa", b"")] * 500_000), "broken_image"),
    "text bomb": (png(40, 30, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))), "broken_image"),
    "deep colors": (deep_png(), "not_an_image"),
    "plain text": (b"P3\n3000 3000\n255\n" + b"1 " * 1000, "not_an_image"),
}


def code_of(content: bytes, megapixels: float = 50) -> str | None:
    """The code of the refusal of an image; ``None`` if it is decoded."""
    try:
        read_upload_header(content, megapixels)
        assert decode_upload(content).dtype == np.uint8
    except Refusal as refused:
        return refused.code
    return None


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_quickly(name: str) -> None:
    content, code = HOSTILE[name]
    begin = monotonic()
    assert code_of(content) == code
    assert monotonic() - begin < 3


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_cut_off_or_damaged_are_refused_or_decoded(name: str) -> None:
    content, random = FILES[name], np.random.default_rng(0)
    for part in range(20):
        damaged = bytearray(content[: len(content) * (part + 1) // 20] if part % 2 else content)
        for place in random.integers(0, len(damaged), part):
            damaged[place] = int(random.integers(0, 256))
        assert code_of(bytes(damaged), 1) in (None, "broken_image", "not_an_image", "too_many_pixels")


def test_a_long_image_is_decoded() -> None:
    content = encoded(Image.new("L", (50_000, 1), 9), "PNG")
    assert read_upload_header(content, 50).pixels == 50_000
    assert decode_upload(content).shape == (1, 50_000, 3)


def test_run_length_bmp_is_refused() -> None:
    content = bytearray(encoded(noise().quantize(16), "BMP"))
    content[30:34] = struct.pack("<I", 1)  # BI_RLE8
    with pytest.raises(Refusal) as refused:
        read_upload_header(bytes(content), 50)
    assert refused.value.code == "not_an_image"
