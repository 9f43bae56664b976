from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet.data.exif import turned_pixels
from retinanet.data.images import read_image
from retinanet.data.windows import Window, open_windows

RANGE = (0.0, 60_000.0)

slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def smooth(height: int, width: int, bands: int = 3) -> npt.NDArray[np.uint8]:
    """Pixels that compress a little, and all differ from their neighbors."""
    y, x, c = np.ogrid[:height, :width, :bands]
    return np.asarray((x * 3 + y * 5 + c * 41 + (x * y) % 7) % 256, dtype=np.uint8)


def check_windows(file: Path, whole: npt.NDArray[np.uint8], data: st.DataObject, by_window: bool | None = True) -> None:
    """Some random windows, in any order, equal the same parts of ``whole``."""
    with open_windows(file, RANGE) as reader:
        assert reader.size == whole.shape[:2]
        assert by_window is None or reader.by_window == by_window
        for _ in range(3):
            top, left = (data.draw(st.integers(0, side - 1)) for side in reader.size)
            height, width = (
                data.draw(st.integers(1, reader.size[0] - top)),
                data.draw(st.integers(1, reader.size[1] - left)),
            )
            pixels = reader.read(Window(top, left, height, width))
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous
            np.testing.assert_array_equal(pixels, whole[top : top + height, left : left + width])


def scaled(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Values ``(H, W)`` or ``(H, W, C)`` as RGB; those with more than 8 bits scaled by ``RANGE``."""
    values = values.reshape(*values.shape[:2], -1)
    values = values[:, :, :3] if values.shape[2] > 2 else np.repeat(values[:, :, :1], 3, axis=2)
    if values.dtype == np.uint8:
        return values
    return np.clip(np.rint(values.astype(np.float64) * 255 / RANGE[1]), 0, 255).astype(np.uint8)


@st.composite
def tiff_options(draw: st.DrawFn) -> dict[str, Any]:
    """How tifffile stores an image."""
    tiled = draw(st.booleans())
    options: dict[str, Any] = {"bigtiff": draw(st.booleans()), "byteorder": draw(st.sampled_from("<>"))}
    if tiled:
        options["tile"] = (draw(st.sampled_from((16, 32, 48))), draw(st.sampled_from((16, 64))))
    else:
        options["rowsperstrip"] = draw(st.sampled_from((1, 3, 8, 1000)))
    options["compression"] = draw(st.sampled_from((None, "zlib", "lzma")))
    return options


@slow
@given(st.data(), tiff_options(), st.integers(1, 150), st.integers(1, 150))
def test_windows_of_any_layout_equal_the_whole_decoded_by_tifffile(
    tmp_path: Path, data: st.DataObject, options: dict[str, Any], height: int, width: int
) -> None:
    bands = data.draw(st.sampled_from((1, 3, 4)))
    dtype = np.dtype(data.draw(st.sampled_from(("u1", "u2", "f4"))))
    values = smooth(height, width, bands).astype(dtype) * dtype.type(1 if dtype == np.uint8 else 233)
    planar = "separate" if bands > 1 and data.draw(st.booleans()) else "contig"
    file = tmp_path / "a.tif"
    stored = values.transpose(2, 0, 1) if planar == "separate" else values if bands > 1 else values[:, :, 0]
    kind = "rgb" if bands > 1 else "minisblack"
    tifffile.imwrite(file, stored, photometric=kind, planarconfig=planar if bands > 1 else None, **options)
    check_windows(file, scaled(values), data)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd", "lzma", "packbits", "raw", "group4"]
)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
@given(data=st.data())
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_equal_read_image_for_every_mode_of_pillow(
    tmp_path: Path, mode: str, compression: str, order: str, data: st.DataObject
) -> None:
    modes = {"jpeg": ("L", "RGB", "CMYK", "YCbCr"), "group4": ("1",)}
    if mode not in modes.get(compression, (mode,)):
        return
    if mode.startswith("I;16"):
        image = Image.fromarray((smooth(130, 90, 1)[:, :, 0].astype(np.uint16) * 211).astype(f"{order}u2"))
    else:
        image = Image.fromarray(smooth(130, 90)).convert(mode)
    file = tmp_path / "a.tif"
    image.save(file, compression=compression, strip_size=4000, big_tiff=order == "<")
    check_windows(file, read_image(file, RANGE), data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@given(data=st.data())
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_are_turned_as_the_image_is(tmp_path: Path, orientation: int, suffix: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(smooth(70, 50)).save(file, exif=exif)
    check_windows(file, read_image(file), data, None)


@pytest.mark.parametrize("orientation", range(1, 9))
@given(data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_of_a_turned_tiled_tiff_are_read_by_window(
    tmp_path: Path, orientation: int, data: st.DataObject
) -> None:
    pixels = smooth(70, 50)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, pixels, tile=(16, 32), photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    check_windows(file, turned_pixels(pixels, orientation), data)


def png(folder: Path, values: npt.NDArray[Any], bits: int, kind: int, filters: list[int], palette: bytes = b"") -> Path:
    """Write a PNG file of raw values ``(H, W, C)``, with the given filters for its rows, one after another."""
    height, width, channels = values.shape
    if bits < 8:
        digits = (values[:, :, 0, None] >> np.arange(bits - 1, -1, -1)) & 1
        raw = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        raw = np.ascontiguousarray(values.astype(f">u{bits // 8}")).view(np.uint8).reshape(height, -1)
    step = max(1, bits * channels // 8)
    padded = np.zeros((height + 1, raw.shape[1] + step), int)
    padded[1:, step:] = raw
    rows = []
    for y in range(height):
        here, left, above, corner = padded[y + 1, step:], padded[y + 1, :-step], padded[y, step:], padded[y, :-step]
        estimate = left + above - corner
        distances = np.abs(np.stack((left, above, corner)) - estimate)
        paeth = np.choose(distances.argmin(axis=0), (left, above, corner))
        number = filters[y % len(filters)]
        guess = (0, left, above, (left + above) // 2, paeth)[number]
        rows.append(bytes([number]) + ((here - guess) % 256).astype(np.uint8).tobytes())

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = zlib.compress(b"".join(rows))
    parts = [chunk(b"IDAT", data[i : i + 1000]) for i in range(0, len(data), 1000)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    file = folder / "a.png"
    colors = chunk(b"PLTE", palette) if palette else b""
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + colors + b"".join(parts) + chunk(b"IEND", b""))
    return file


KINDS = [
    (1, 0),
    (2, 0),
    (4, 0),
    (8, 0),
    (16, 0),
    (8, 2),
    (16, 2),
    (1, 3),
    (2, 3),
    (4, 3),
    (8, 3),
    (8, 4),
    (16, 4),
    (8, 6),
    (16, 6),
]


@pytest.mark.parametrize(("bits", "kind"), KINDS)
@given(data=st.data(), filters=st.lists(st.integers(0, 4), min_size=1, max_size=7))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_of_png_files_equal_read_image_for_every_depth_and_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, kind: int, data: st.DataObject, filters: list[int]
) -> None:
    monkeypatch.setattr("retinanet.data.png_blocks.strip_rows", lambda row_bytes, height: min(height, 7))
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 40))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    values = smooth(height, width, channels).astype(int) * (1 if bits <= 8 else 257) % 2**bits
    palette = bytes((5 * i) % 256 for i in range(3 * min(2**bits, 200))) if kind == 3 else b""
    if kind == 3:
        values = values % (len(palette) // 3)
    check_windows(png(tmp_path, values, bits, kind, filters, palette), read_image(tmp_path / "a.png", RANGE), data)


def test_an_interlaced_png_is_decoded_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(smooth(1, 1)).save(file)
    data = bytearray(file.read_bytes())
    data[28] = 1  # the flag in the header; the data of a single pixel are the same
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    file.write_bytes(data)
    with open_windows(file) as reader:
        assert not reader.by_window
