"""Detect objects in large images, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from retinanet.data.read_ahead import read_ahead
from retinanet.data.window_reader import Window, WindowReader
from retinanet.detection.tile_merge import CUT_WITHIN, LONG_ENOUGH, Tiles, merge_tiles
from retinanet.detection.tile_plan import Tiling
from retinanet.detections import Detections

if TYPE_CHECKING:
    from retinanet.detection.detector import Detector

# Decoded windows that wait for the network take at most this many bytes, and at most a batch.
_AHEAD_BYTES = 1 << 27


def detect_tiled(
    detector: Detector,
    reader: WindowReader,
    tiling: Tiling,
    score: float | None = None,
    batch: int = 8,
    max_detections: int | None = None,
    wanted: float = 0.0,
) -> Detections:
    """Detect objects in the image of ``reader``; see :meth:`retinanet.detection.detector.Detector.detect_tiled`."""
    detector.limits(score, max_detections, tiled=True)  # refuse invalid numbers before the work
    limit = detector.tile_limit(max_detections)
    found, tiles = detections_of_tiles(detector, reader, tiling, score, batch, limit, wanted)
    threshold = detector.decode_config(score).nms
    kept = found.take(merge_tiles(found.boxes, found.scores, found.labels, found.images, tiles, threshold))
    whole = Detections.of_one_image(kept.boxes, kept.scores, kept.labels).best(max_detections).limited_above(wanted)
    limited, nonfinite = (np.zeros(min(1, len(marks)), dtype=np.int64) for marks in (found.limited, found.nonfinite))
    return replace(whole, limited=np.union1d(whole.limited, limited), nonfinite=nonfinite)


def detections_of_tiles(
    detector: Detector,
    reader: WindowReader,
    tiling: Tiling,
    score: float | None = None,
    batch: int = 8,
    limit: int | None = None,
    wanted: float = 0.0,
) -> tuple[Detections, Tiles]:
    """Detect objects in all tiles, without merging.

    Args:
        detector: the detector.
        reader: the image.
        tiling: the division into tiles.
        score: lowest score; unset: the number that the weights store.
        batch: largest number of tiles that go through the network together.
        limit: largest number of detections of a tile; unset: the number that the weights store.
        wanted: a limit that costs only detections below this score is not marked.

    Returns:
        Detections with boxes in pixels of the image, whose ``images`` are positions of tiles, and the tiles.
    """
    passes = [(scale, tiling.windows(reader.size, scale)) for scale in tiling.scales]
    found: list[Detections] = []
    for scale, windows in passes:
        shape = tiling.input_shape(windows[0], scale)
        together = detector.tile_batch(batch, shape)
        for each in _detect_windows(detector, reader, windows, shape, score, together, limit):
            found.append(each.limited_above(wanted).moved(len(found)))
    return Detections.concatenate(found), _tiles(passes, reader.size, tiling)


def _detect_windows(
    detector: Detector,
    reader: WindowReader,
    windows: Sequence[Window],
    shape: tuple[int, int],
    score: float | None,
    batch: int,
    limit: int | None,
) -> Iterator[Detections]:
    """Yield the detections of each window, scaled to ``shape``, in pixels of the image.

    The next windows are decoded while the network works on ``batch`` windows.
    """
    fitting = _AHEAD_BYTES // (3 * windows[0].height * windows[0].width)
    decoded = read_ahead(reader, windows, max(1, min(batch, fitting)))
    scaled = (detector.resize(pixels, shape) for pixels in decoded)
    ahead = iter(windows)
    while images := list(islice(scaled, batch)):
        for window, found in zip(islice(ahead, len(images)), detector.detect_scaled(images, score, limit), strict=True):
            yield _moved(detector.in_image(found, shape, (window.height, window.width)), window)


def _moved(own: Detections, window: Window) -> Detections:
    """Convert boxes from pixels of a window to pixels of the image."""
    offset = np.array([window.left, window.top] * 2, dtype=np.float32)
    return Detections(own.images, own.boxes + offset, own.scores, own.labels, own.limited, own.nonfinite)


def _tiles(passes: Sequence[tuple[float, list[Window]]], size: tuple[int, int], tiling: Tiling) -> Tiles:
    """Describe the tiles of all passes for the merging."""
    corners, cut_within, shortest, least = [], [], [], 0.0
    for scale, windows in passes:
        corners += [(w.left, w.top, w.left + w.width, w.top + w.height) for w in windows]
        cut_within += [CUT_WITHIN * tiling.side_at(scale) / tiling.input_side] * len(windows)
        shortest += [least] * len(windows)
        least = LONG_ENOUGH * tiling.overlap_at(scale)
    return Tiles(np.array(corners, dtype=np.float64), size, np.array(cut_within), np.array(shortest))
