"""Seconds and peak memory of reading a 12,000×12,000 image by window, and of decoding it whole.

    python benchmarks/read_windows.py [--side 12000] [--out FILE]

Each case runs in its own process, on Linux. Seconds include opening the file; megabytes are the peak over the memory
that the imported package takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

WINDOW, STEP = 1024, 896

# VmHWM is the peak of this process only; ru_maxrss starts with the memory of the process that started it.
READ = f"""
import json, sys, time
from pathlib import Path
import numpy as np
from retinanet.data.images import read_image
from retinanet.data.windows import Window, open_windows
if sys.argv[2] == "no pyvips":
    sys.modules["pyvips"] = None
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
imported = peak()
start, by_window, windows = time.perf_counter(), False, 0
if sys.argv[2] == "whole":
    read_image(sys.argv[1])
else:
    with open_windows(sys.argv[1]) as reader:
        by_window = reader.by_window
        height, width = reader.size
        for top in [*range(0, height - {WINDOW}, {STEP}), height - {WINDOW}]:
            for left in [*range(0, width - {WINDOW}, {STEP}), width - {WINDOW}]:
                reader.read(Window(top, left, {WINDOW}, {WINDOW}))
                windows += 1
seconds = time.perf_counter() - start
megabytes = peak() - imported
print(json.dumps(dict(by_window=by_window, windows=windows, seconds=round(seconds, 2), megabytes=round(megabytes))))
"""


def drawn_image(side: int) -> npt.NDArray[np.uint8]:
    """A smooth image with a little noise, uint8 ``(side, side, 3)``."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    noise = random.integers(0, 8, (side, side, 1), dtype=np.uint8)
    return np.minimum(smooth, 247) + noise


def save_all(folder: Path, side: int) -> list[Path]:
    """Save the image in several formats."""
    pixels = drawn_image(side)
    image = Image.fromarray(pixels)
    image.save(folder / "photo.jpg", quality=90)
    image.save(folder / "photo.png", compress_level=3)
    image.save(folder / "strips-lzw.tif", compression="tiff_lzw")
    image.save(folder / "strips-jpeg.tif", compression="jpeg", quality=90)
    tifffile.imwrite(folder / "strips-plain.tif", pixels, photometric="rgb")
    tifffile.imwrite(folder / "tiles-plain.tif", pixels, photometric="rgb", tile=(256, 256))
    tifffile.imwrite(folder / "tiles-deflate.tif", pixels, photometric="rgb", tile=(256, 256), compression="zlib")
    return sorted(folder.iterdir())


def main() -> None:
    """Measure every file whole and by window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=12_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for file in save_all(Path(folder), options.side):
            for way in ("whole", "windows", *(["no pyvips"] if file.suffix == ".jpg" else [])):
                words = [sys.executable, "-c", READ, str(file), way]
                measured = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                rows.append({"file": file.name, "file_megabytes": file.stat().st_size // 2**20, "way": way, **measured})
                print(rows[-1], flush=True)
    if options.out:
        content = {"side": options.side, "window": WINDOW, "step": STEP, "machine": platform.machine(), "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
