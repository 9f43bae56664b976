"""Merge the detections of tiles into those of the image. NumPy, O(n log n).

A detection is *cut* if it ends at an inner edge of its tile, because its object may go on beyond the edge. Three rules
apply, each only to detections of one class in different tiles:

1. A pass with larger tiles finds only objects that the pass before may have cut: those longer than its overlap.
2. A cut detection yields to one that covers it and is not cut, or is larger: a neighboring tile holds the whole object,
   or more of it.
3. Of two detections with an IoU above the model's threshold the worse is dropped, as in non-maximum suppression. Uncut
   detections are better than cut ones, then the score decides.

The tiles share only seams, so detections outside the seams are never dropped. Detections of one tile were compared when
the network detected them, and are not compared again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retinanet.box_suppression import kept_of_pairs
from retinanet.overlaps import Bools, BoxIndex, Floats, Ints, pair_iou, shared_area

# A detection is cut if it ends within this many pixels of the network's input from an inner edge of its tile.
CUT_WITHIN = 2.0

# A cut detection yields to one that covers at least this share of its area.
COVERED = 0.7

# A pass with larger tiles keeps detections that are longer than this share of the overlap of the pass before.
LONG_ENOUGH = 0.75


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of an image, in all passes.

    Attributes:
        windows: float64 ``(T, 4)`` ``xyxy``, image pixels.
        size: ``(height, width)`` of the image.
        cut_within: float64 ``(T,)``, distance from an inner edge at which a detection is cut, in image pixels.
        shortest: float64 ``(T,)``, longer side of the smallest detection that counts, in image pixels.
    """

    windows: Floats
    size: tuple[int, int]
    cut_within: Floats
    shortest: Floats


def merge_tiles(
    boxes: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    owners: npt.NDArray[np.int64],
    tiles: Tiles,
    threshold: float,
) -> Ints:
    """Find the detections of the tiles that are detections of the image.

    Args:
        boxes: ``(D, 4)`` ``xyxy`` in image pixels, finite.
        scores: ``(D,)``.
        labels: ``(D,)``.
        owners: ``(D,)``, the tile of each detection.
        tiles: the tiles.
        threshold: IoU above which two detections of a class are of one object.

    Returns:
        int64 positions of the detections that stay, best first.
    """
    exact = boxes.astype(np.float64)
    longer = (exact[:, 2:] - exact[:, :2]).max(axis=1, initial=0)
    rows = np.flatnonzero(longer >= tiles.shortest[owners])
    cut = cut_by_edges(exact[rows], owners[rows], tiles)
    order = np.lexsort((-scores[rows], cut))  # stable
    rows, cut = rows[order], cut[order]
    stays = ~_yielding(exact[rows], labels[rows], owners[rows], cut)
    rows = rows[stays]
    rows = rows[_best_of_each_object(exact[rows], labels[rows], owners[rows], threshold)]
    result: Ints = rows[np.lexsort((rows, -scores[rows]))]
    return result


def cut_by_edges(boxes: Floats, owners: Ints, tiles: Tiles) -> Bools:
    """Whether each box ends at an edge of its tile that is no edge of the image: bool ``(D,)``."""
    height, width = tiles.size
    inner = np.abs(tiles.windows - np.array([0, 0, width, height])) > 0
    near = np.abs(boxes - tiles.windows[owners]) <= tiles.cut_within[owners, None]
    result: Bools = (near & inner[owners]).any(axis=1)
    return result


def _yielding(boxes: Floats, labels: Ints, owners: Ints, cut: Bools) -> Bools:
    """Which boxes are cut, and covered by a box of another tile that is uncut or larger: bool ``(D,)``."""
    yields, parts = np.zeros(len(boxes), dtype=np.bool_), np.flatnonzero(cut)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    pairs = BoxIndex(boxes, COVERED, labels).search(boxes[parts], labels[parts], covered=True)
    for first, cover in pairs.chunks():
        part = parts[first]
        covered = shared_area(boxes[part], boxes[cover]) >= COVERED * areas[part]
        holds_more = ~cut[cover] | (areas[cover] > areas[part])
        yields[part[covered & holds_more & (owners[part] != owners[cover])]] = True
    return yields


def _best_of_each_object(boxes: Floats, labels: Ints, owners: Ints, threshold: float) -> Bools:
    """Greedy suppression between tiles: which boxes stay, bool ``(D,)``; better boxes come first."""
    better, worse = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    if threshold < 1:
        for first, second in BoxIndex(boxes, threshold, labels).search(boxes, labels).chunks():
            once = (first < second) & (owners[first] != owners[second])
            first, second = first[once], second[once]
            same = pair_iou(boxes[first], boxes[second]) > threshold
            better.append(first[same])
            worse.append(second[same])
    ahead, behind = np.concatenate(better), np.concatenate(worse)
    order = np.lexsort((behind, ahead))
    return kept_of_pairs(len(boxes), ahead[order], behind[order])
