"""Damaged, odd and huge files, and the memory that reading by window takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from retinanet.data import blocks, jpeg_blocks
from retinanet.data.images import read_image
from retinanet.data.windows import Window, open_windows
from retinanet.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (256, 128, 3), dtype=np.uint8)


def saved(folder: Path, values: npt.NDArray[Any], **options: Any) -> Path:
    file = folder / "a.tif"
    tifffile.imwrite(file, values, **{"photometric": "rgb" if values.ndim == 3 else "minisblack", **options})
    return file


def damage(file: Path, number: int) -> None:
    """Overwrite the middle of one strip or tile."""
    with tifffile.TiffFile(file) as opened:
        page = opened.pages.first
        start, count = page.dataoffsets[number], page.databytecounts[number]
    data = bytearray(file.read_bytes())
    data[start : start + count] = b"\xff" * count
    file.write_bytes(data)


@pytest.mark.parametrize("options", [{"rowsperstrip": 64}, {"tile": (64, 64)}], ids=["strips", "tiles"])
def test_a_damaged_strip_is_named_and_the_others_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    file = saved(tmp_path, NOISE, compression="zlib", **options)
    damage(file, 2)  # the third strip; or the first tile of the second row
    first = 128 if "rowsperstrip" in options else 64
    with open_windows(file) as reader:
        with pytest.raises(DataError, match=rf"a\.tif: rows {first} to {first + 64}, .* cannot be decoded .*; replace"):
            reader.read(Window(first + 1, 0, 10, 10))
        np.testing.assert_array_equal(reader.read(Window(0, 0, 60, 128)), NOISE[:60])
        np.testing.assert_array_equal(reader.read(Window(200, 0, 50, 128)), NOISE[200:250])
        with pytest.raises(DataError, match="cannot be decoded"):
            reader.read(Window(first + 1, 0, 10, 10))


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_the_start_of_a_truncated_file_is_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    tall = np.concatenate([NOISE] * 20)
    if kind == "tif":
        tifffile.imwrite(file, tall, photometric="rgb", rowsperstrip=64)
    else:
        Image.fromarray(tall).save(file)
    file.write_bytes(file.read_bytes()[: tall.nbytes * 3 // 4])
    with open_windows(file) as reader:
        np.testing.assert_array_equal(reader.read(Window(0, 0, 100, 128)), tall[:100])
        with pytest.raises(DataError, match=r"cannot be decoded .*cut short"):
            reader.read(Window(len(tall) - 50, 0, 50, 128))
        np.testing.assert_array_equal(reader.read(Window(50, 0, 100, 128)), tall[50:150])


@pytest.mark.parametrize(
    "window",
    [Window(0, 0, 0, 5), Window(0, 0, 5, 0), Window(-1, 0, 5, 5), Window(0, 120, 5, 9), Window(250, 0, 7, 5)],
)
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.bmp"])
def test_windows_that_are_empty_or_outside_are_refused(tmp_path: Path, window: Window, name: str) -> None:
    Image.fromarray(NOISE).save(tmp_path / name)
    with open_windows(tmp_path / name) as reader, pytest.raises(DataError, match="128×256 pixels; choose one inside"):
        reader.read(window)


@pytest.mark.parametrize("shape", [(100_000, 1), (1, 100_000)])
@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_images_of_a_single_row_or_column_are_read(tmp_path: Path, shape: tuple[int, int], name: str) -> None:
    values = np.arange(100_000).astype(np.uint8).reshape(shape)
    Image.fromarray(values).save(tmp_path / name)
    with open_windows(tmp_path / name) as reader:
        assert reader.size == shape
        for place in (0, 50_000, 99_990, 7):
            window = Window(place, 0, 10, 1) if shape[1] == 1 else Window(0, place, 1, 10)
            assert reader.read(window)[:, :, 0].ravel().tolist() == [(place + i) % 256 for i in range(10)]


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_sixteen_bands_are_refused_unless_three_are_colors(tmp_path: Path, planar: str) -> None:
    values = np.repeat(NOISE[:, :, :1], 16, axis=2)
    values[:, :, :3] = NOISE
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    file = saved(tmp_path, stored, photometric="minisblack", planarconfig=planar)
    with pytest.raises(DataError, match=r"a\.tif: 16 bands, and the file does not say which are red, .*; write"):
        open_windows(file)
    file = saved(tmp_path, stored, photometric="rgb", planarconfig=planar)
    with open_windows(file) as reader:
        np.testing.assert_array_equal(reader.read(Window(3, 4, 50, 60)), NOISE[3:53, 4:64])


def test_the_limit_on_pixels_can_be_raised(tmp_path: Path) -> None:
    files = [saved(tmp_path, NOISE)]
    for suffix in ("png", "jpg", "bmp"):
        files.append(tmp_path / f"a.{suffix}")
        Image.fromarray(NOISE).save(files[-1])
    for file in files:
        with pytest.raises(DataError, match=r"128×256 is too large \(limit 0 megapixels\); cut it .* raise max_pixels"):
            open_windows(file, max_pixels=128 * 256 - 1)
        with open_windows(file, max_pixels=128 * 256) as reader:
            assert reader.size == (256, 128)


def test_images_over_the_limit_of_pillow_are_read_if_it_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg_blocks, "jpeg_blocks", lambda path, orientation: None)
    for suffix in ("png", "jpg", "bmp"):
        file = tmp_path / f"a.{suffix}"
        Image.fromarray(NOISE).save(file)
        whole = read_image(file)
        with monkeypatch.context() as patched:
            patched.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # as if the images were huge
            with pytest.raises(DataError, match="too large"):
                read_image(file)
            with open_windows(file, max_pixels=10**9) as reader:
                np.testing.assert_array_equal(reader.read(Window(10, 20, 30, 30)), whole[10:40, 20:50])
            assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "header.tif").write_bytes(b"II*\0\x08\0\0\0")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")
    messages = {"pipe.tif": "named pipe", "gone.tif": "no such image file", ".": "a folder"}
    for name in ("pipe.tif", "gone.tif", ".", "empty.tif", "header.tif", "text.png", "header.png"):
        with pytest.raises(DataError, match=messages.get(name, "not a readable image")):
            open_windows(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["tif", "tiled.tif", "png"])
def test_damaged_headers_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    file, random = tmp_path / f"a.{kind}", np.random.default_rng(1)
    if kind == "png":
        Image.fromarray(NOISE).save(file)
    else:
        tifffile.imwrite(
            file, NOISE, photometric="rgb", compression="zlib", tile=(64, 64) if kind == "tiled.tif" else None
        )
    original, messages = file.read_bytes(), []
    for _ in range(150):
        data = bytearray(original)
        for place in random.integers(0, 500, 3):
            data[place] = random.integers(0, 256)
        file.write_bytes(data)
        try:
            with open_windows(file) as reader:
                height, width = (min(side, 50) for side in reader.size)
                assert reader.read(Window(0, 0, height, width)).shape == (height, width, 3)
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith(str(file)) and "\n" not in message for message in messages)


def test_deep_images_without_a_range_have_one_range_for_all_windows(tmp_path: Path) -> None:
    values = np.linspace(20_000, 20_600, 256 * 128).astype(np.uint16).reshape(256, 128)
    file = saved(tmp_path, values, tile=(64, 64))
    whole = read_image(file)
    assert whole.min() == 0
    assert whole.max() == 255
    with open_windows(file) as reader:
        for top in (0, 100, 200):
            np.testing.assert_array_equal(reader.read(Window(top, 0, 50, 128)), whole[top : top + 50])


def test_a_damaged_deep_image_without_a_range_is_read_elsewhere(tmp_path: Path) -> None:
    values = np.linspace(0, 65_535, 256 * 128).astype(np.uint16).reshape(256, 128)
    file = saved(tmp_path, values, compression="zlib", rowsperstrip=64)
    damage(file, 1)
    with open_windows(file) as reader:
        expected = np.rint(values[200:250] / 257).astype(np.uint8)
        np.testing.assert_array_equal(reader.read(Window(200, 0, 50, 128))[:, :, 0], expected)
        with pytest.raises(DataError, match="rows 64 to 128"):
            reader.read(Window(60, 0, 50, 128))


def test_the_range_of_a_large_deep_image_is_chosen_from_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinanet.data.windows._ALL_VALUES", 1000)
    values = np.linspace(20_000, 20_600, 2048 * 128).astype(np.uint16).reshape(2048, 128)
    with open_windows(saved(tmp_path, values, tile=(16, 16))) as reader:
        shown = reader.read(Window(0, 0, 2048, 128))[:, :, 0].astype(float)
    expected = (values.astype(float) - 20_000) * 255 / 600
    assert np.abs(shown - np.clip(expected, 0, 255)).max() < 6


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_missing_tiles_are_black(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    file = tmp_path / "sparse.tif"
    options = {"height": 256, "width": 128, "count": 3, "dtype": "uint8", "tiled": True, "blockxsize": 64}
    with rasterio.open(file, "w", driver="GTiff", sparse_ok=True, blockysize=64, compress="lzw", **options) as opened:
        opened.write(NOISE[:64, :64].transpose(2, 0, 1), window=((64, 128), (0, 64)))
    with open_windows(file) as reader:
        pixels = reader.read(Window(0, 0, 256, 128))
    np.testing.assert_array_equal(pixels[64:128, :64], NOISE[:64, :64])
    assert pixels[:64].max() == pixels[128:].max() == pixels[:, 64:].max() == 0


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", ["lzw", "deflate", "zstd", "packbits", "none"])
@pytest.mark.parametrize(("dtype", "predictor"), [("uint8", 2), ("uint16", 2), ("float32", 3), ("float32", 2)])
def test_files_of_gdal_are_read(tmp_path: Path, interleave: str, compress: str, dtype: str, predictor: int) -> None:
    rasterio = pytest.importorskip("rasterio")
    file = tmp_path / "a.tif"
    values = NOISE.astype(dtype) * (1 if dtype == "uint8" else 200)
    options: dict[str, Any] = {"compress": compress, "interleave": interleave, "photometric": "rgb", "tiled": True}
    if compress in ("lzw", "deflate", "zstd"):
        options["predictor"] = predictor
    sizes = {"height": 256, "width": 128, "count": 3, "dtype": dtype, "blockxsize": 64, "blockysize": 48}
    with rasterio.open(file, "w", driver="GTiff", **sizes, **options) as opened:
        opened.write(values.transpose(2, 0, 1))
    scaled = NOISE if dtype == "uint8" else np.rint(values.astype(float) * 255 / 51_000).astype(np.uint8)
    with open_windows(file, (0, 51_000)) as reader:
        assert reader.by_window
        np.testing.assert_array_equal(reader.read(Window(30, 20, 100, 90)), scaled[30:130, 20:110])


def test_a_compression_that_is_not_known_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, NOISE)
    data = file.read_bytes()
    with tifffile.TiffFile(file) as opened:
        place = opened.pages.first.tags[259].valueoffset
    file.write_bytes(data[:place] + b"\x70\x87" + data[place + 2 :])  # 34672
    with pytest.raises(DataError, match="not a readable image"):
        open_windows(file)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_files_are_read_with_and_without_pyvips(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg_blocks, "strip_rows", lambda row_bytes, height: 16)
    file = tmp_path / "a.jpg"
    Image.fromarray(NOISE).convert(mode).save(file, quality=90)
    whole = read_image(file)
    places = [Window(0, 0, 40, 128), Window(100, 5, 60, 50), Window(30, 0, 40, 128), Window(0, 0, 256, 128)]
    try:
        import pyvips

        streamed = mode != "CMYK" and pyvips is not None
    except ImportError:
        streamed = False
    for by_window in (streamed, False):
        if not by_window:
            monkeypatch.setitem(sys.modules, "pyvips", None)
        with open_windows(file) as reader:
            assert reader.by_window == by_window
            for top, left, height, width in places:
                found = reader.read(Window(top, left, height, width))
                np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])


def test_a_truncated_jpeg_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.fromarray(NOISE).save(file, quality=95)
    file.write_bytes(file.read_bytes()[:10_000])
    with open_windows(file) as reader:
        for _ in range(2):
            with pytest.raises(DataError, match=r"a\.jpg.* cannot be decoded"):
                reader.read(Window(200, 0, 56, 128))


class Counted:
    """Counts how often each block is decoded."""

    def __init__(self, reader: Any) -> None:
        self.counts: dict[tuple[int, int], int] = {}
        self._decode = reader._blocks.decode
        reader._blocks.decode = self

    def __call__(self, row: int, column: int) -> blocks.Pixels:
        self.counts[row, column] = self.counts.get((row, column), 0) + 1
        return self._decode(row, column)  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{"tile": (32, 32)}, {"rowsperstrip": 8}, {"tile": (32, 32), "turned": True}])
def test_overlapping_windows_row_by_row_decode_each_block_once(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinanet.data.windows._CACHE_BYTES", 0)
    monkeypatch.setattr("retinanet.data.tiff_layout.STRIP_ROWS", 8)
    turned = [(274, 3, 1, 6, True)] if options.pop("turned", False) else []
    wide = np.concatenate([NOISE] * 4, axis=1)
    file = saved(tmp_path, wide, compression="zlib", extratags=turned, **options)
    with open_windows(file) as reader:
        counted = Counted(reader)
        height, width = reader.size
        for top in [*range(0, height - 64, 48), height - 64]:
            for left in [*range(0, width - 64, 48), width - 64]:
                reader.read(Window(top, left, 64, 64))
        assert set(counted.counts.values()) == {1}
        assert reader._kept_bytes < wide.nbytes / 2  # type: ignore[attr-defined]


# VmHWM is the peak of this process only; ru_maxrss starts with the memory of the process that started it.
MEASURE = """
import sys
from pathlib import Path
from retinanet.data.windows import Window, open_windows
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
with open_windows(sys.argv[1]) as reader:
    height, width = reader.size
    for top in range(0, height, 512):
        for left in range(0, width, 512):
            reader.read(Window(top, left, min(512, height - top), min(512, width - left)))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["tiled", "striped", "png"])
def test_reading_by_window_takes_a_fraction_of_the_memory_of_the_image(tmp_path: Path, kind: str) -> None:
    pixels = np.zeros((12_000, 9000, 3), np.uint8)  # 309 MB
    pixels[::7, ::5] = 99
    file = tmp_path / ("a.png" if kind == "png" else "a.tif")
    if kind == "png":
        Image.fromarray(pixels).save(file, compress_level=1)
    else:
        options = {"tile": (256, 256)} if kind == "tiled" else {"rowsperstrip": 16}
        tifffile.imwrite(file, pixels, photometric="rgb", compression="zlib", compressionargs={"level": 1}, **options)
    ended = subprocess.run([sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True)
    assert 5 < float(ended.stdout) < 130
