"""What reading by window keeps in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from retinanet.data import blocks
from retinanet.data.windows import Window, open_windows

NOISE = np.random.default_rng(0).integers(0, 256, (256, 128, 3), dtype=np.uint8)


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
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, wide, photometric="rgb", compression="zlib", extratags=turned, **options)
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
