"""A dataset as a handful of flat arrays, and the one place where ground-truth boxes are checked.

A million annotations are four numpy arrays here, not a million Python objects, so that forked or spawned workers share
or copy a few megabytes. Readers in ``formats/`` fill a :class:`DatasetBuilder`; everything after that sees a
:class:`Dataset`.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinanet.errors import DataError

# Readers of formats without a flag of their own (YOLO, CSV) mark ignore regions by this class name.
IGNORE_CLASS = "ignore"

# What a tolerant reader does with that at which training stops.
REFUSED = "left out, where training stops"

# Label of an ignore region that belongs to no class in particular.
NO_CLASS = -1

# Corners this close to the border are rounding in an xywh file, not a mistake worth a line in the report.
_EDGE_TOLERANCE = 0.05

# An ``area`` beyond this is no area of an image; float32 could not hold it for long.
_LARGEST_AREA = 1e18


@dataclass(frozen=True)
class Problem:
    """Something found wrong in the annotations.

    Attributes:
        kind: what is wrong.
        where: file and line, or file and annotation id.
        action: what was done about it.
    """

    kind: str
    where: str
    action: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}, {self.action}"


class FileList(Sequence[str]):
    """An immutable list of paths kept as one block of bytes and an offset array."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and boxes of one split.

    Attributes:
        name: what to call it in messages, e.g. ``"bccd/BCCD [train]"``.
        root: folder that relative ``files`` start from.
        classes: class names; ``labels`` index them.
        category_ids: the id each class has in the source (COCO ``category_id``; elsewhere 1..K).
        files: image paths relative to ``root``, or absolute.
        image_ids: int64 ``(N,)``.
        sizes: int32 ``(N, 2)``, width and height the annotations refer to.
        offsets: int64 ``(N + 1,)``; the boxes of image ``i`` are rows ``offsets[i]:offsets[i+1]``.
        boxes: float32 ``(M, 4)`` ``xyxy``, half-open, pixels.
        labels: int32 ``(M,)``; ``NO_CLASS`` for an ignore region of no class in particular.
        ignore: bool ``(M,)``; crowd, difficult or user-marked regions.
        areas: float32 ``(M,)``; the area COCO sorts objects into small, medium and large by.
        problems: what the reader clipped, dropped or doubted.
        places: file and line (or annotation id) of each of the M boxes, where a reader was asked to remember them; a
            dataset made from this one has none.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    files: FileList
    image_ids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    ignore: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float32]
    problems: tuple[Problem, ...] = field(default=(), repr=False)
    places: FileList | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """Where the image ``index`` lies."""
        return self.root / self.files[index]

    def rows(self, index: int) -> slice:
        """Rows of ``boxes``, ``labels``, ``ignore`` and ``areas`` that belong to image ``index``."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64], name: str | None = None) -> Dataset:
        """The images at ``indices``, in that order; classes and problems are kept."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen]
        take = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        return replace(
            self,
            name=name or self.name,
            files=FileList(self.files[int(i)] for i in chosen),
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            offsets=np.cumsum([0, *(len(r) for r in rows)], dtype=np.int64),
            boxes=self.boxes[take],
            labels=self.labels[take],
            ignore=self.ignore[take],
            areas=self.areas[take],
            places=None,
        )

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Divide at random but reproducibly: the second part holds ``fraction`` of the images, at least one."""
        if len(self) < 2:
            raise DataError(f"{self.name}: {len(self)} image cannot be divided into train and val; name both splits")
        order = np.random.default_rng(seed).permutation(len(self))
        held_out = min(len(self) - 1, max(1, round(fraction * len(self))))
        return self.subset(np.sort(order[held_out:])), self.subset(np.sort(order[:held_out]))

    def with_classes(self, classes: Sequence[str]) -> Dataset:
        """The same boxes with ``labels`` re-indexed, by name, into ``classes``.

        Raises:
            DataError: a box carries a class that ``classes`` does not have.
        """
        if tuple(classes) == self.classes:
            return self
        position = {name: i for i, name in enumerate(classes)}
        used = Counter(self.labels[~self.ignore].tolist())
        unknown = [self.classes[k] for k in sorted(used) if self.classes[k] not in position]
        if unknown:
            missing = ", ".join(map(repr, unknown[:5])) + (" …" if len(unknown) > 5 else "")
            known = ", ".join(list(classes)[:8]) + (" …" if len(classes) > 8 else "")
            raise DataError(
                f"{self.name}: class {missing} is not one of the model's {len(classes)} classes ({known}); "
                "use data with the same class names, train a model on these, or name a converted model's outputs "
                "('retinanet convert --classes')"
            )
        # Classes only ignore regions carry need no index. The last entry is where label NO_CLASS (−1) looks.
        table = np.array([*(position.get(name, NO_CLASS) for name in self.classes), NO_CLASS], dtype=np.int32)
        own = dict(zip(self.classes, self.category_ids, strict=True))
        fresh = iter(range(max((0, *self.category_ids)) + 1, 1 << 31))
        ids = tuple(own[name] if name in own else next(fresh) for name in classes)
        return replace(self, classes=tuple(classes), category_ids=ids, labels=table[self.labels])

    def with_crowds(self, policy: Literal["ignore", "drop", "object"]) -> Dataset:
        """The same images with crowd and difficult boxes kept as ignore regions, left out, or as ordinary objects.

        A region of no class in particular cannot be an object; ``object`` leaves it an ignore region.
        """
        if policy == "object":
            return replace(self, ignore=self.ignore & (self.labels == NO_CLASS))
        if policy == "ignore" or not self.ignore.any():
            return self
        return self.with_boxes(~self.ignore)

    def with_boxes(self, keep: npt.NDArray[np.bool_]) -> Dataset:
        """The same images with those of the boxes that the mask ``keep`` ``(M,)`` marks."""
        before = np.concatenate([[0], np.cumsum(keep)])  # boxes kept among the first i
        return replace(
            self,
            offsets=before[self.offsets].astype(np.int64),
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            ignore=self.ignore[keep],
            areas=self.areas[keep],
            places=None,
        )

    def class_counts(self) -> dict[str, int]:
        """Boxes of each class, ignore regions not counted."""
        counts = np.bincount(self.labels[~self.ignore], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))


class DatasetBuilder:
    """Collects images and boxes, checks every box, and makes a :class:`Dataset`.

    Call :meth:`add_image`, then :meth:`add_box` for each of its boxes, image after image; then :meth:`build`.

    A ``tolerant`` reader reports and leaves out what would otherwise end the reading, as far as that can be done, and
    remembers the place of each box.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        classes: Sequence[str],
        category_ids: Sequence[int] | None = None,
        tolerant: bool = False,
    ) -> None:
        duplicates = [c for c, n in Counter(classes).items() if n > 1]
        if duplicates:
            raise DataError(f"{name}: class name {duplicates[0]!r} appears twice; class names must differ")
        self.name = name
        self.root = root
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids) if category_ids is not None else tuple(range(1, len(classes) + 1))
        self.tolerant = tolerant
        self.problems: list[Problem] = []
        self._places: list[str] = []
        self._files: list[str] = []
        self._ids, self._sizes, self._counts = array("q"), array("i"), array("q")
        self._boxes, self._labels, self._ignore, self._areas = array("f"), array("i"), array("b"), array("f")

    def __len__(self) -> int:
        return len(self._files)

    def add_image(self, file: str, width: int, height: int, image_id: int | None = None) -> None:
        """Begin an image; ``image_id`` defaults to its number, from 1."""
        self._files.append(file)
        self._ids.append(len(self._files) if image_id is None else image_id)
        self._sizes.extend((width, height))
        self._counts.append(0)

    def add_box(
        self,
        xyxy: tuple[float, float, float, float],
        label: int,
        where: str,
        *,
        ignore: bool = False,
        area: float | None = None,
    ) -> None:
        """Add a box to the newest image, clipped to it; a box nothing can be learnt from is dropped and reported.

        Args:
            xyxy: corners in pixels, half-open.
            label: index into ``classes``.
            where: file and line (or annotation id), for the report.
            ignore: the box is an ignore region.
            area: COCO's ``area`` if the source has one, else width × height.
        """
        width, height = self._sizes[-2], self._sizes[-1]
        if not all(map(math.isfinite, xyxy)):
            self._report("coordinate is not a number", where, "dropped")
            return
        x1, y1, x2, y2 = xyxy
        if x2 <= x1 or y2 <= y1:
            kind = "zero-area box" if x2 == x1 or y2 == y1 else "corners in the wrong order"
            self._report(f"{kind} {_corners(xyxy)}", where, "dropped")
            return
        clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            self._report(f"box {_corners(xyxy)} outside the {width}×{height} image", where, "dropped")
            return
        stored = array("f", clipped)
        if stored[2] <= stored[0] or stored[3] <= stored[1]:  # a sliver thinner than float32 can tell
            self._report(f"zero-area box {_corners(xyxy)}", where, "dropped")
            return
        moved = max(abs(a - b) for a, b in zip(xyxy, clipped, strict=True)) > _EDGE_TOLERANCE
        if moved:
            self._report(f"box {_corners(xyxy)} reaches over the {width}×{height} image", where, "clipped")
        inside = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
        if area is None or not 0 < area < _LARGEST_AREA:
            area = inside
        elif moved:  # an area of its own, such as a mask's, loses the share that its box loses
            area *= inside / ((x2 - x1) * (y2 - y1))
        self._boxes.extend(stored)
        self._labels.append(label)
        self._ignore.append(ignore)
        self._areas.append(area)
        self._counts[-1] += 1
        if self.tolerant:
            self._places.append(where)

    def report(self, kind: str, where: str, action: str) -> None:
        """Note something the reader itself found and dealt with."""
        self._report(kind, where, action)

    def refuse(self, problem: str, where: str, message: str) -> None:
        """End the reading with ``message``; or, if tolerant, report ``problem`` as left out.

        Raises:
            DataError: unless tolerant.
        """
        if not self.tolerant:
            raise DataError(message)
        self._report(problem, where, REFUSED)

    def _report(self, kind: str, where: str, action: str) -> None:
        self.problems.append(Problem(kind, where, action))

    def build(self) -> Dataset:
        """The finished dataset.

        Raises:
            DataError: there is no image.
        """
        if not self._files:
            raise DataError(f"{self.name}: no images listed; add some, or choose another split")
        ids = np.array(self._ids, dtype=np.int64)
        if len(np.unique(ids)) != len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise DataError(f"{self.name}: image id {values[counts > 1][0]} is used by two images; ids must differ")
        return Dataset(
            name=self.name,
            root=self.root,
            classes=self.classes,
            category_ids=self.category_ids,
            files=FileList(self._files),
            image_ids=ids,
            sizes=np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
            offsets=np.cumsum([0, *self._counts], dtype=np.int64),
            boxes=np.array(self._boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(self._labels, dtype=np.int32),
            ignore=np.array(self._ignore, dtype=np.bool_),
            areas=np.array(self._areas, dtype=np.float32),
            problems=tuple(self.problems),
            places=FileList(self._places) if self.tolerant else None,
        )


def _corners(xyxy: tuple[float, float, float, float]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in xyxy) + ")"
