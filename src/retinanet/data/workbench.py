"""The background of the synthetic sample images: a cluttered workbench."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.float32]

BENCHES = ((138, 104, 74), (96, 98, 102), (64, 92, 78), (70, 82, 110), (168, 160, 146), (58, 54, 52), (128, 132, 120))


def ngon(count: int, radius: float = 1.0, turns: float = 1.0) -> NDArray[np.float64]:
    """Corners of a regular polygon with ``count`` corners, or of an arc of one."""
    turn = np.arange(count) * (2 * math.pi * turns / count)
    return radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _noise(rng: np.random.Generator, cells: tuple[int, int], size: int) -> Array:
    """Smooth noise of about -1 to 1: a small random grid (columns, rows) stretched over the image."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells[1], cells[0])).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _marks(rng: np.random.Generator, size: int) -> Array:
    """Clutter on the workbench as changes of brightness: scratches, faint rings, stains and dust."""
    wide = size * 2
    sheet = Image.new("L", (wide, wide), 128)
    draw = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(10, 30))):
        kind, shade = int(rng.integers(4)), 128 + int(rng.choice((-1, 1)) * rng.integers(14, 60))
        x, y = rng.uniform(0, wide, 2)
        reach, turn = wide * rng.uniform(0.02, 0.12), rng.uniform(0, 2 * math.pi)
        around = (x - reach / 2, y - reach / 2, x + reach / 2, y + reach / 2)
        if kind == 0:
            end = (x + 4 * reach * math.cos(turn), y + 4 * reach * math.sin(turn))
            draw.line((x, y, *end), fill=shade, width=int(rng.integers(1, 5)))
        elif kind == 1:  # a ring left by a cup or washer, too faint and thin to be taken for a washer
            start = math.degrees(turn)
            draw.arc(around, start, start + rng.uniform(120, 360), (shade + 128) // 2, int(rng.integers(2, 6)))
        elif kind == 2:
            draw.polygon((ngon(9) * rng.uniform(0.3, 0.6, (9, 1)) * reach + (x, y)).ravel().tolist(), fill=shade)
        else:
            for px, py in rng.normal((x, y), reach, (12, 2)):
                draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=shade)
    return np.asarray(sheet.reduce(2).filter(ImageFilter.BoxBlur(0.6)), np.float32) - 128


def workbench(rng: np.random.Generator, size: int) -> Array:
    """Draw a workbench, RGB from about 0 to 255, ``(size, size, 3)``."""
    base = np.array(BENCHES[rng.integers(len(BENCHES))], np.float32) * np.float32(rng.uniform(0.75, 1.25))
    base *= rng.uniform(0.93, 1.07, 3).astype(np.float32)
    cells = [max(2, size // step) for step in (64, 16, 5, 2)]
    value = sum(np.float32(rng.uniform(3, 13)) * _noise(rng, (cell, cell), size) for cell in cells)
    if rng.random() < 0.4:  # wood grain or brushed metal is noise stretched along one axis
        grain = np.float32(rng.uniform(8, 22)) * _noise(rng, (3, size // 3), size)
        value = value + (grain if rng.random() < 0.5 else grain.T)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(-22, 22, 2).astype(np.float32)
    value = value + slope[0] * ramp + slope[1] * ramp[:, None] + _marks(rng, size)
    shift = (rng.uniform(-26, 26) + rng.uniform(-12, 12, 3)).astype(np.float32)
    stain = np.clip(_noise(rng, (6, 6), size) * 2 - 0.6, 0, 1)[..., None] * shift
    return np.asarray(base + value[..., None] + stain, np.float32)
