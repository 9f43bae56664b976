"""Boxes as a reader finds them, until all boxes of the dataset are known and can be interpreted and checked."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from retinanet.data.box_meaning import PIXELS, Floats, Meaning, Numbers, Reporter, recognize
from retinanet.data.image_frames import AnnotatedFrame, Images, Ints, Placed, place
from retinanet.read_options import ReadOptions

# Corners that lie outside the image by at most this many pixels are rounding errors of an xywh file. They are clipped
# but not reported.
_EDGE_TOLERANCE = 0.05

# An ``area`` above this cannot be the area of an object; width × height is used instead.
_LARGEST_AREA = 1e18


@dataclass(frozen=True)
class CheckedBoxes:
    """Boxes that were interpreted and checked.

    Attributes:
        rows: int64 ``(K,)``, which of the raw boxes are left.
        boxes: float32 ``(K, 4)`` ``xyxy``, pixels of the upright images, inside the images.
        areas: float32 ``(K,)``.
        sizes: int32 ``(N, 2)``, width and height of the images.
        frame: which images the annotations refer to; ``None`` if EXIF turns no image.
    """

    rows: Ints
    boxes: npt.NDArray[np.float32]
    areas: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int32]
    frame: AnnotatedFrame | None


class RawBoxes:
    """Growing lists of boxes."""

    def __init__(self, meaning: Meaning) -> None:
        self.meaning = meaning
        self.places: list[str] = []
        self._corners, self._areas = array("d"), array("d")
        self._images, self._derived = array("q"), array("b")

    def add(
        self, xyxy: tuple[float, float, float, float], image: int, where: str, area: float | None, derived: bool
    ) -> None:
        """Add a box; see :meth:`retinanet.data.dataset.DatasetBuilder.add_box`."""
        self._corners.extend(xyxy)
        self._images.append(image)
        self._areas.append(np.nan if area is None else area)
        self._derived.append(derived)
        self.places.append(where)

    @property
    def images(self) -> Ints:
        """Index of each box's image, ``(M,)``."""
        return np.array(self._images, dtype=np.int64)

    def checked(self, images: Images, options: ReadOptions, reporter: Reporter) -> CheckedBoxes:
        """Find out what the numbers mean, convert them to pixels of the upright images, clip them and drop bad boxes.

        Raises:
            DataError: the boxes do not fit into their images, and the reader is not tolerant.
        """
        corners, image = np.array(self._corners, dtype=np.float64).reshape(-1, 4), self.images
        areas, derived = np.array(self._areas, dtype=np.float64), np.array(self._derived, dtype=np.bool_)
        with np.errstate(over="ignore", invalid="ignore"):  # a number may be NaN, infinite or huge
            if self.meaning.frame != PIXELS:
                given = images.given[image].astype(np.float64)
                corners = corners / np.concatenate([given, given], axis=1)
            numbers = self.meaning.numbers(corners)
            # Boxes computed from outlines are corners in every format. They do not tell the form of other boxes.
            outlines = Meaning("xyxy", self.meaning.frame)
            numbers[derived] = outlines.numbers(corners[derived])
            declared = outlines if derived.all() else self.meaning
            tells = np.isfinite(numbers).all(axis=1) & (derived.all() | ~derived)
            limits = images.largest()[image].astype(np.float64)
            sample = Numbers(numbers[tells], image[tells], limits[tells])
            if derived.all():
                options = replace(options, box_form="format")
            found = recognize(declared, sample, options, reporter)
            corners = found.corners(numbers)
            corners[derived] = Meaning("xyxy", found.frame).corners(numbers[derived])
            placed = place(corners, found.frame.size is not None, image, images, options, reporter)
            areas = areas * placed.scale.prod(axis=1)[image] if found == declared else np.full_like(areas, np.nan)
            return _checked(placed, image, areas, self.places, reporter)


def _checked(placed: Placed, image: Ints, areas: Floats, places: Sequence[str], reporter: Reporter) -> CheckedBoxes:
    corners, sizes = placed.corners, placed.sizes
    limits = np.concatenate([np.zeros_like(sizes), sizes], axis=1)[image]  # (M, 4)
    clipped = np.concatenate([np.maximum(corners[:, :2], 0), np.minimum(corners[:, 2:], limits[:, 2:])], axis=1)
    boxes = clipped.astype(np.float32)
    finite = np.asarray(np.isfinite(corners).all(axis=1))
    inverted = np.asarray(finite & (corners[:, 2:] < corners[:, :2]).any(axis=1))
    flat = np.asarray(finite & (corners[:, 2:] == corners[:, :2]).any(axis=1))
    sound = finite & ~flat & ~inverted
    outside = np.asarray(sound & (clipped[:, 2:] <= clipped[:, :2]).any(axis=1))
    # A box may also be thinner than float32 resolves.
    flat |= sound & ~outside & (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    kept = sound & ~outside & ~flat
    moved = kept & (np.abs(corners - clipped).max(axis=1, initial=0) > _EDGE_TOLERANCE)
    for row in np.flatnonzero(~kept | moved).tolist():
        where, box = places[row], _text(corners[row])
        size = f"{sizes[image[row]][0]}×{sizes[image[row]][1]}"
        if not finite[row]:
            reporter.report("non-finite-box", where, "coordinate is not a number")
        elif flat[row]:
            reporter.report("zero-area-box", where, f"zero-area box {box}")
        elif inverted[row]:
            reporter.report("inverted-box", where, f"corners in the wrong order {box}")
        elif outside[row]:
            reporter.report("outside-box", where, f"box {box} outside the {size} image")
        else:
            reporter.report("clipped-box", where, f"box {box} reaches over the {size} image")
    inside, whole = ((c[:, 2:] - c[:, :2]).prod(axis=1) for c in (clipped, corners))
    # The area of a mask shrinks in proportion to its box.
    areas = np.where(moved, areas * (inside / np.where(moved, whole, 1.0)), areas)
    areas = np.where((areas > 0) & (areas < _LARGEST_AREA), areas, inside)
    rows = np.flatnonzero(kept)
    return CheckedBoxes(rows, boxes[rows], areas[rows].astype(np.float32), sizes.astype(np.int32), placed.frame)


def _text(corners: Floats) -> str:
    return "(" + ", ".join(f"{v:g}" for v in corners.tolist()) + ")"
