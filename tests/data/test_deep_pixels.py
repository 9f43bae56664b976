from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.images import content_size, decode_image, image_size, pixel_spread, read_image
from retinanet.data.pixel_range import with_one_pixel_range
from retinanet.data.thumbnails import read_thumbnail
from retinanet.errors import DataError

SIZE = (40, 30)


def ramp(low: float, high: float, dtype: str) -> npt.NDArray[Any]:
    return np.linspace(low, high, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(dtype)


def save(file: Path, values: npt.NDArray[np.generic], tags: dict[int, object] | None = None) -> Path:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        info[tag] = value
    Image.fromarray(values).save(file, **(dict[str, Any](tiffinfo=info) if tags else {}))
    return file


def write_color_png(file: Path, values: npt.NDArray[np.uint16], extra: bytes = b"") -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    body = header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return file


def test_damaged_color_png_files_are_refused(tmp_path: Path) -> None:
    """Some decoders of 16-bit colors crash the process on such files."""
    rng = np.random.default_rng(0)
    file = write_color_png(tmp_path / "a.png", rng.integers(0, 4096, (30, 40, 3), dtype=np.uint16))
    content, messages = file.read_bytes(), list[str]()
    for _ in range(200):
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        for place in rng.integers(0, len(damaged), rng.integers(0, 4)):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            assert read_image(file).shape[2] == 3
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(file) in message for message in messages)


def test_interlaced_color_png_files_are_refused_with_a_remedy(tmp_path: Path) -> None:
    file = write_color_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint16))
    content = bytearray(file.read_bytes())
    content[28] = 1  # interlace method
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    file.write_bytes(content)
    with pytest.raises(DataError, match="interlaced PNG with 16-bit colors; save it without interlacing"):
        read_image(file)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_whole_numbers_are_scaled_by_the_smallest_number_of_bits(tmp_path: Path, suffix: str, bits: int) -> None:
    values = ramp(0, 2**bits - 1, "uint16")
    pixels = read_image(save(tmp_path / f"a.{suffix}", values))
    expected = np.rint(values.astype(np.float64) * 255 / (2**bits - 1))
    assert np.abs(pixels[:, :, 0] - expected).max() <= 1
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_color_images_with_16_bits_keep_all_bits(tmp_path: Path) -> None:
    """Pillow reads only the upper 8 bits, which are empty in images with 8 to 12 bits."""
    values = np.random.default_rng(0).integers(0, 4096, (30, 40, 3), dtype=np.uint16)
    pixels = read_image(write_color_png(tmp_path / "a.png", values))
    assert np.abs(pixels - values * (255 / 4095)).max() <= 0.51
    np.testing.assert_array_equal(decode_image((tmp_path / "a.png").read_bytes(), "a.png"), pixels)
    full = np.random.default_rng(0).integers(0, 65536, (30, 40, 3), dtype=np.uint16)
    assert np.abs(read_image(write_color_png(tmp_path / "b.png", full)) - full / 257.0).max() <= 0.51


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(3061, 3148, "float32"), (-40.5, 80.25, "float32"), (7000, 7900, "uint16"), (-5000, 90_000, "int32")],
)
def test_a_narrow_or_unusual_range_is_stretched(tmp_path: Path, low: float, high: float, dtype: str) -> None:
    pixels = read_image(save(tmp_path / "a.tif", ramp(low, high, dtype)))
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert np.abs(pixels[:, :, 0] - ramp(0, 255, "float64")).max() < 2


@pytest.mark.parametrize("missing", [np.nan, np.inf, -3.4e38, -9999])
def test_missing_values_do_not_change_the_range(tmp_path: Path, missing: float) -> None:
    values = ramp(3000, 3100, "float32")
    values[:10] = missing
    tags: dict[int, object] = {42113: "-9999"} if missing == -9999 else {}
    pixels = read_image(save(tmp_path / "a.tif", values, tags))
    assert (pixels[:10] == 0).all()
    assert pixels[10:].min() == 0
    assert pixels[10:].max() == 255


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_zero_is_white_where_the_file_says_so(tmp_path: Path, dtype: str) -> None:
    values = ramp(0, 1 if dtype == "float32" else np.iinfo(dtype).max, dtype)
    pixels = read_image(save(tmp_path / "a.tif", values, {262: 0}))
    assert pixels[0, 0, 0] > pixels[-1, -1, 0]


def test_a_broken_sensor_pixel_does_not_darken_the_image(tmp_path: Path) -> None:
    values = ramp(0, 4000, "uint16")
    values[3, 3] = 65535
    assert read_image(save(tmp_path / "a.png", values)).mean() > 100


def test_deep_color_images_are_turned(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    extra = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    turned = read_image(write_color_png(tmp_path / "a.png", values, extra))
    np.testing.assert_array_equal(turned, np.rot90(read_image(write_color_png(tmp_path / "b.png", values)), -1))


def dataset(folder: Path, ranges: list[tuple[float, float]], dtype: str = "uint16") -> Dataset:
    builder = DatasetBuilder("deep", folder, ("cat",))
    for i, (low, high) in enumerate(ranges):
        save(folder / f"{i}.tif", ramp(low, high, dtype))
        builder.add_image(f"{i}.tif", *SIZE)
    return builder.build()


def test_one_range_holds_for_all_images_of_a_dataset(tmp_path: Path) -> None:
    """A dark image stays dark."""
    data = dataset(tmp_path, [(0, 3900), (0, 900), (100, 500)])
    ranged = with_one_pixel_range({"train": data, "val": data})
    assert ranged["train"].pixel_range == ranged["val"].pixel_range == (0, 4095)
    assert read_image(data.path(2), (0, 4095)).max() == round(500 * 255 / 4095)
    [problem] = ranged["train"].problems
    assert problem.code == "pixel-range"
    assert "0 to 3900" in problem.message
    assert "4095 (white)" in problem.message
    assert not ranged["val"].problems


def test_a_given_range_is_used(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(0, 3900)])
    assert with_one_pixel_range({"train": data}, (0, 1000))["train"].pixel_range == (0, 1000)


def test_images_with_8_bits_have_no_range(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(0, 255)], "uint8")
    assert with_one_pixel_range({"train": data})["train"] is data


def test_a_range_changes_no_image_with_8_bits(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", ramp(0, 255, "uint8"))
    np.testing.assert_array_equal(read_image(file, (0, 4095)), read_image(file))


@pytest.mark.parametrize(("value", "contrast"), [(0, 0), (255, 0)])
def test_images_without_contrast_are_recognized(tmp_path: Path, value: int, contrast: int) -> None:
    file = save(tmp_path / "a.png", np.full((30, 40), value, np.uint8))
    assert read_thumbnail(file, 8).contrast == contrast
    assert read_thumbnail(save(tmp_path / "b.png", ramp(0, 255, "uint8")), 8).contrast > 200


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("dtype", "planar"), [("u2", "contig"), ("u2", "separate"), ("f4", "contig"), ("f4", None)])
def test_deep_tiff_files_keep_all_bits_in_every_layout(
    tmp_path: Path, order: Literal["<", ">"], compression: str | None, dtype: str, planar: str | None
) -> None:
    """Pillow keeps 8 bits of 16-bit colors, knows no other deep colors, and confuses byte orders."""
    values = np.linspace(0, 4000, 30 * 40 * 3).reshape(30, 40, 3).astype(dtype)
    expected = np.rint(values.astype(np.float64) * 255 / 4000).astype(np.uint8)
    file = tmp_path / "a.tif"
    if planar is None:
        values, expected = values[:, :, 0], np.repeat(expected[:, :, :1], 3, axis=2)
    stored = values.transpose(2, 0, 1) if planar == "separate" else values
    kind = "minisblack" if planar is None else "rgb"
    tags = [(274, 3, 1, 6, True)]
    tifffile.imwrite(
        file, stored, photometric=kind, planarconfig=planar, compression=compression, byteorder=order, extratags=tags
    )
    expected = np.rot90(expected, -1)
    np.testing.assert_array_equal(read_image(file, (0, 4000)), expected)
    np.testing.assert_array_equal(read_image(file), read_image(file, (0, 4095)))
    assert image_size(file) == (30, 40)
    spread = pixel_spread(file)
    assert spread is not None
    assert (spread.least, spread.most) == (0, values.max())
    assert read_thumbnail(file, 8, (0, 4000)).size == (30, 40)
    # From an archive, a URL or a pipe:
    np.testing.assert_array_equal(decode_image(file.read_bytes(), "a.tif", (0, 4000)), expected)
    assert content_size(file.read_bytes(), "a.tif") == (30, 40)
