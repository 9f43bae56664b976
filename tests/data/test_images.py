from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, ImageOps

from retinanet.data.exif import turned_pixels
from retinanet.data.images import decode_image, image_size, read_image, to_rgb
from retinanet.data.thumbnails import read_thumbnail
from retinanet.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def save(folder: Path, image: Image.Image | npt.NDArray[np.generic], name: str, **options: Any) -> Path:
    file = folder / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, **options)
    return file


def turned(folder: Path, orientation: int, pixels: npt.NDArray[np.uint8] = RGB) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(folder, pixels, f"{orientation}.png", exif=exif)


@pytest.mark.parametrize(("name", "message"), [("a.mp4", "MP4 files are not read: videos; give each to")])
def test_files_of_other_kinds_are_refused_with_their_kind(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / name)


def test_heic_files_are_read_with_the_extra(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    smooth = np.broadcast_to(np.linspace(0, 255, 40)[None, :, None], (30, 40, 3)).astype(np.uint8)
    file = tmp_path / "IMG_1.HEIC"
    heif.from_pillow(Image.fromarray(smooth)).save(file, quality=95)
    assert image_size(file) == (40, 30)
    assert np.abs(read_image(file).astype(int) - smooth).mean() < 3


def test_heic_files_are_named_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"")
    program = """
import sys
sys.modules["pillow_heif"] = None  # as if it were not installed
from functools import partial
from pathlib import Path
from retinanet.data.image_suffixes import unread_files
from retinanet.data.images import read_image
print(*unread_files(["a.heic", "b.HEIF", "c.jpg"]))
try:
    read_image(Path(sys.argv[1]))
except Exception as error:
    print(error)
"""
    words = [sys.executable, "-c", program, str(tmp_path / "a.heic")]
    counted, refused = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert counted == "1 HEIC file and 1 HEIF file left out: install retinanet[heic] to read them"
    assert refused == f"{tmp_path / 'a.heic'}: HEIC files are not read: install retinanet[heic] to read them"


@pytest.mark.parametrize("suffix", ["avif", "mpo", "jpe"])
def test_further_formats_are_read(tmp_path: Path, suffix: str) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 40)[None, :, None], (30, 40, 3)).astype(np.uint8)
    file = save(tmp_path, smooth, f"a.{suffix}", format="avif" if suffix == "avif" else "jpeg")
    assert np.abs(read_image(file).astype(int) - smooth).mean() < 5


def check(file: Path, expected: npt.NDArray[np.uint8]) -> None:
    pixels = read_image(file)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)
    assert image_size(file) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    file = turned(tmp_path, orientation)
    with Image.open(file) as image:
        check(file, np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "jpg", "webp", "avif"])
def test_exif_orientation_is_applied_once_in_every_format(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Pillow turns TIFF images itself while it loads them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.asarray(Image.fromarray(RGB[:3, :4]).resize((40, 30), Image.Resampling.BICUBIC))
    plain = save(tmp_path, smooth, "plain.png", exif=exif)
    file = save(tmp_path, smooth, f"a.{suffix}", exif=exif, quality=95)  # for AVIF, this empties ``exif``
    pixels = read_image(file)
    assert pixels.shape == read_image(plain).shape
    assert np.abs(pixels.astype(int) - read_image(plain)).mean() < 6
    assert image_size(file) == (pixels.shape[1], pixels.shape[0])


def in_mode(mode: str) -> Image.Image:
    """A smooth image, wider than high, whose pixels all differ from their neighbors."""
    if mode.startswith("I;16"):
        values = (np.arange(30 * 40, dtype=np.uint16) * 53).reshape(30, 40)
        return Image.fromarray(values.astype(">u2") if mode.endswith("B") else values)
    return Image.fromarray(RGB).convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_pixels_of_a_tiff_do_not_depend_on_its_compression(tmp_path: Path, mode: str, orientation: int) -> None:
    """Pillow 13 maps uncompressed files into memory with the sides of the turned image."""
    image = in_mode(mode)
    upright = read_image(save(tmp_path, image, "upright.tif"))
    tags = {0x0112: orientation}
    expected = np.asarray(turned_pixels(upright.astype(np.float32), orientation)).astype(np.uint8)
    for compression in ("raw", "tiff_deflate", "tiff_lzw", "packbits"):
        file = save(tmp_path, image, f"{compression}.tif", compression=compression, tiffinfo=tags)
        pixels = read_image(file)
        assert image_size(file) == (expected.shape[1], expected.shape[0])
        # libtiff and Pillow round the conversion from YCbCr differently.
        np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=int(mode == "YCbCr"))
        with Image.open(file) as opened:
            np.testing.assert_array_equal(to_rgb(opened), pixels)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"],
)
def test_broken_exif_does_not_matter(tmp_path: Path, exif: bytes) -> None:
    file = save(tmp_path, RGB, "a.jpg", exif=exif)
    assert read_image(file).shape == (30, 40, 3)
    assert image_size(file) == (40, 30)


def test_a_rotated_image_with_another_broken_tag_is_rotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    data = bytearray(exif.tobytes())
    data[data.index(b"\x01\x1a\x00\x05") + 3] = 1  # the fraction is said to be a text
    check(save(tmp_path, RGB, "a.png", exif=bytes(data)), np.rot90(RGB, -1))


def test_grey(tmp_path: Path) -> None:
    check(save(tmp_path, RGB[:, :, 0], "a.png"), np.repeat(RGB[:, :, :1], 3, axis=2))


def test_one_bit(tmp_path: Path) -> None:
    bits = RGB[:, :, 0] > 127
    check(save(tmp_path, bits, "a.png"), np.repeat(bits[:, :, None] * np.uint8(255), 3, axis=2).astype(np.uint8))


@pytest.mark.parametrize("transparency", [None, 0, bytes(range(16))])
def test_palette(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.fromarray(RGB).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    check(save(tmp_path, image, "a.png", **options), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(Image.fromarray(RGB[:, :, 1]))
    colour = RGB if mode == "RGBA" else np.asarray(Image.fromarray(RGB).convert("L").convert("RGB"))
    check(save(tmp_path, image, "a.png"), colour)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red = np.zeros((30, 40, 3), np.uint8)
    red[:, :, 0] = 255
    pixels = read_image(save(tmp_path, Image.fromarray(red).convert("CMYK"), "a.jpg", quality=95))
    assert np.abs(pixels.astype(int) - red).max() < 8


@pytest.mark.parametrize(("name", "order"), [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2")])
def test_sixteen_bits(tmp_path: Path, name: str, order: str) -> None:
    values = np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(order)
    expected = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    check(save(tmp_path, values, name), np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_float_tiff(tmp_path: Path, scale: float) -> None:
    values = RGB[:, :, 0].astype(np.float32) / 255
    check(save(tmp_path, values * np.float32(scale), "a.tif"), np.repeat(RGB[:, :, :1], 3, axis=2))


def test_float_tiff_with_nan(tmp_path: Path) -> None:
    values = np.full((30, 40), 0.5, np.float32)
    values[0, 0] = np.nan
    assert read_image(save(tmp_path, values, "a.tif"))[0, 0].tolist() == [0, 0, 0]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")
    file = save(tmp_path, first, "a.gif", save_all=True, append_images=[second])
    assert read_image(file)[5, 5].tolist() == [255, 0, 0]


def test_suffix_does_not_matter(tmp_path: Path) -> None:
    check(save(tmp_path, RGB, "a.png").rename(tmp_path / "a.jpg"), RGB)


def test_result_can_be_written_to() -> None:
    pixels = to_rgb(Image.fromarray(RGB))
    pixels[:] = 0


def test_truncated(tmp_path: Path) -> None:
    file = save(tmp_path, RGB, "a.jpg", quality=95)
    file.write_bytes(file.read_bytes()[:-400])
    assert image_size(file) == (40, 30)
    with pytest.raises(DataError, match=r"a\.jpg: cannot be decoded"):
        read_image(file)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_png_file_with_damaged_pixels_is_refused_everywhere(tmp_path: Path, mode: str) -> None:
    """Its EXIF data may follow the pixels, so Pillow decodes the pixels to find them."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(noise).convert(mode).save(file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    file.write_bytes(data)
    for read in (
        read_image,
        lambda path: decode_image(path.read_bytes(), "a.png"),
        lambda path: read_thumbnail(path, 8),
    ):
        with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
            read(file)


def test_big_endian_bigtiff(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, RGB, bigtiff=True, byteorder=">", photometric="rgb")  # Pillow does not read it
    check(file, RGB)
    np.testing.assert_array_equal(decode_image(file.read_bytes(), "a.tif"), RGB)


@pytest.mark.parametrize(("content", "message"), [(b"", "not a readable image"), (b"hello", "not a readable image")])
def test_not_an_image(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=message):
            read(file)


def test_missing_and_folder(tmp_path: Path) -> None:
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"gone\.jpg: no such image file"):
            read(tmp_path / "gone.jpg")
        with pytest.raises(DataError, match="not an image but a folder; remove it"):
            read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of Unix")
def test_what_could_be_read_for_ever_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"a\.jpg: not an image but a named pipe"):
            read(tmp_path / "a.jpg")
        with pytest.raises(DataError, match=r"b\.jpg: not an image but a device"):
            read(tmp_path / "b.jpg")


def test_messages_name_the_file_once_and_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("gone.jpg", "loop.jpg", "text.jpg", "n" * 300 + ".jpg", "a\0.jpg"):
        with pytest.raises(DataError, match=r"; (correct|replace)") as caught:
            read_image(tmp_path / name)
        assert str(caught.value).count(name) == 1


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (13_400, 13_400), (2**31 - 1, 2**31 - 1)])
def test_huge_images_are_refused_before_memory_is_taken(tmp_path: Path, width: int, height: int) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(png_header(width, height))
    tracemalloc.start()
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="too large"):
            read(file)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp", "bmp"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    random = np.random.default_rng(1)
    for _ in range(40):
        data = bytearray(buffer.getvalue())
        for place in random.integers(0, min(len(data), 400), 4):
            data[place] = random.integers(0, 256)
        (tmp_path / "a").write_bytes(data[: random.integers(1, len(data))])
        for read in (read_image, image_size):
            with contextlib.suppress(DataError):
                read(tmp_path / "a")
