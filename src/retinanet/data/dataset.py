"""Datasets as flat arrays, and the only place where ground-truth boxes are checked.

A million annotations are stored in four NumPy arrays instead of a million Python objects, so that worker processes
share or copy only a few megabytes. The readers in ``formats/`` fill a :class:`DatasetBuilder`; all other code uses the
:class:`Dataset` that it builds.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinanet.data.box_meaning import Meaning
from retinanet.data.class_names import NO_CLASS as NO_CLASS
from retinanet.data.class_names import class_positions, merged_classes, unknown_classes
from retinanet.data.deep_pixels import PixelRange
from retinanet.data.exif import map_files
from retinanet.data.file_list import FileList as FileList
from retinanet.data.image_frames import AnnotatedFrame, Images
from retinanet.data.images import header_or_none
from retinanet.data.problems import PROBLEM_KINDS, Problem
from retinanet.data.raw_boxes import RawBoxes
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions

_DEFAULT_OPTIONS, _CORNERS = ReadOptions(), Meaning()

# Formats without a flag for ignore regions (YOLO, CSV) mark them with this class name.
IGNORE_CLASS = "ignore"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and boxes of one split.

    Attributes:
        name: used in messages, e.g. ``"bccd/BCCD [train]"``.
        root: folder of relative ``files``.
        classes: class names; ``labels`` index them.
        category_ids: id of each class in the source (COCO ``category_id``; 1..K in other formats).
        files: image paths relative to ``root``, or absolute.
        image_ids: int64 ``(N,)``.
        sizes: int32 ``(N, 2)``, width and height that the annotations refer to.
        offsets: int64 ``(N + 1,)``; the boxes of image ``i`` are rows ``offsets[i]:offsets[i+1]``.
        boxes: float32 ``(M, 4)`` ``xyxy``, half-open, pixels.
        labels: int32 ``(M,)``; ``NO_CLASS`` for an ignore region without a class.
        ignore: bool ``(M,)``; crowd, difficult or user-marked regions.
        areas: float32 ``(M,)``; they decide whether an object is small, medium or large in COCO's metrics.
        problems: problems in the annotations.
        places: file and line (or annotation id) of each of the M boxes. Only a tolerant reader records the places.
            Datasets derived from this one have no places.
        pixel_range: values that become black and white in images with more than 8 bits. ``None``: chosen for each
            image.
        orientations: uint8 ``(N,)``, EXIF orientation of each image; ``None`` if EXIF turns no image.
        frame: which images the annotations refer to; ``None`` if EXIF turns no image.
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
    pixel_range: PixelRange | None = None
    orientations: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    frame: AnnotatedFrame | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def title(self) -> str:
        """Name of the dataset without the split."""
        return self.name.split(" [")[0]

    def path(self, index: int) -> Path:
        """Path of image ``index``."""
        return self.root / self.files[index]

    def rows(self, index: int) -> slice:
        """Rows of ``boxes``, ``labels``, ``ignore`` and ``areas`` that belong to image ``index``."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64], name: str | None = None) -> Dataset:
        """Select the images at ``indices``, in that order; classes and problems are kept."""
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
            orientations=None if self.orientations is None else self.orientations[chosen],
        )

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Divide the images at random, seeded with ``seed``. The second part has ``fraction`` of them, at least one."""
        if len(self) < 2:
            raise DataError(f"{self.name}: {len(self)} image cannot be divided into train and val; name both splits")
        order = np.random.default_rng(seed).permutation(len(self))
        held_out = min(len(self) - 1, max(1, round(fraction * len(self))))
        return self.subset(np.sort(order[held_out:])), self.subset(np.sort(order[:held_out]))

    def with_classes(self, classes: Sequence[str]) -> Dataset:
        """Re-index ``labels`` into ``classes``, by name.

        Raises:
            DataError: a box has a class that ``classes`` lacks.
        """
        if tuple(classes) == self.classes:
            return self
        position, matched = class_positions(self.classes, classes)
        if unknown := self.classes_missing_in(classes):
            raise DataError(f"{self.name}: {unknown_classes(unknown, classes)}")
        # A class that only ignore regions use may be missing from `classes`; it becomes NO_CLASS. The last entry maps
        # label NO_CLASS (index −1) to itself.
        table = np.array([*(position[name] for name in self.classes), NO_CLASS], dtype=np.int32)
        own = {position[name]: number for name, number in zip(self.classes, self.category_ids, strict=True)}
        fresh = iter(range(max((0, *self.category_ids)) + 1, 1 << 31))
        ids = tuple(own[label] if label in own else next(fresh) for label in range(len(classes)))
        result = replace(self, classes=tuple(classes), category_ids=ids, labels=table[self.labels])
        for name, other in matched:
            result = result.with_problem("matched-class", self.name, f"{name!r} is taken for {other!r}")
        return result

    def classes_missing_in(self, classes: Sequence[str]) -> list[str]:
        """Classes with boxes whose name, but for case and spaces, is not in ``classes``."""
        position = class_positions(self.classes, classes)[0]
        return [name for name, count in self.class_counts().items() if count and position[name] == NO_CLASS]

    def with_crowds(self, policy: Literal["ignore", "drop", "object"]) -> Dataset:
        """Keep crowd and difficult boxes as ignore regions, drop them, or turn them into ordinary objects.

        A region without a class cannot be an object; ``object`` leaves it an ignore region.
        """
        if policy == "object":
            return replace(self, ignore=self.ignore & (self.labels == NO_CLASS))
        if policy == "ignore" or not self.ignore.any():
            return self
        return self.with_boxes(~self.ignore)

    def with_boxes(self, keep: npt.NDArray[np.bool_]) -> Dataset:
        """Keep all images, and the boxes that the mask ``keep`` ``(M,)`` marks."""
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

    def with_problem(self, code: str, where: str, message: str, count: int = 1) -> Dataset:
        """Add a problem that was found after the reading."""
        return replace(self, problems=(*self.problems, Problem(code, where, message, count)))

    def class_counts(self) -> dict[str, int]:
        """Count the boxes of each class, without ignore regions."""
        counts = np.bincount(self.labels[~self.ignore], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))


class DatasetBuilder:
    """Collect images and boxes, check every box, and build a :class:`Dataset`.

    For each image, call :meth:`add_image`, then :meth:`add_box` for each of its boxes. Call :meth:`build` at the end.
    Class names that differ only by case or spaces become one class; ``labels`` maps every given name to its label.

    A ``tolerant`` builder handles a problem that would otherwise abort the reading: it records the problem and leaves
    out the annotation. It also records the place of each box.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        classes: Sequence[str],
        category_ids: Sequence[int] | None = None,
        tolerant: bool = False,
        options: ReadOptions = _DEFAULT_OPTIONS,
        meaning: Meaning = _CORNERS,
    ) -> None:
        self.name = name
        self.root = root
        self.classes, self.labels, firsts = merged_classes(classes)
        ids = range(1, len(firsts) + 1) if category_ids is None else (category_ids[i] for i in firsts)
        self.category_ids = tuple(ids)
        self.tolerant = tolerant
        self.options = options
        self._problems: list[Problem] = []
        self._counts_of: Counter[tuple[str, str]] = Counter()  # of counted problems, by code and message
        self.size_is_measured = False  # whether the size of the next image was read from its file
        self._files: list[str] = []
        self._ids, self._sizes, self._measured = array("q"), array("i"), array("b")
        self._raw, self._labels, self._ignore = RawBoxes(meaning), array("i"), array("b")
        for number in sorted({*range(len(classes))} - {*firsts}):
            kept = self.classes[self.labels[classes[number]]]
            self.report("merged-class", str(root), f"{classes[number]!r} and {kept!r} are one class")

    def __len__(self) -> int:
        return len(self._files)

    def add_image(self, file: str, width: int, height: int, image_id: int | None = None) -> None:
        """Add an image; ``image_id`` defaults to its number, counted from 1."""
        self._files.append(file)
        self._ids.append(len(self._files) if image_id is None else image_id)
        self._sizes.extend((width, height))
        self._measured.append(self.size_is_measured)
        self.size_is_measured = False

    def add_box(
        self,
        xyxy: tuple[float, float, float, float],
        label: int,
        where: str,
        *,
        ignore: bool = False,
        area: float | None = None,
        derived: bool = False,
        score: float | None = None,
    ) -> None:
        """Add a box to the latest image.

        :meth:`build` interprets and checks the boxes: it clips them to their images, and drops and reports degenerate
        boxes.

        Args:
            xyxy: corners in pixels, half-open, as the format defines them.
            label: from ``labels``.
            where: file and line (or annotation id).
            ignore: the box is an ignore region.
            area: COCO's ``area``; if unset, width × height.
            derived: the corners were computed from an outline, such as a polygon.
            score: confidence of a detection. The box is left out if ``options.min_score`` is higher.
        """
        if score is not None:
            if score < self.options.min_score:
                self.report("low-score", where, f"scores are below {self.options.min_score:g}")
                return
            remedy = "" if self.options.min_score else "; leave out low scores with --data.min-score"
            self.report("scored-box", where, f"boxes of a detector{remedy}")
        self._raw.add(xyxy, len(self._files) - 1, where, area, derived)
        self._labels.append(label)
        self._ignore.append(ignore)

    def report(self, code: str, where: str, message: str) -> None:
        """Record a problem that the reader dealt with, or a decision that the user should know of.

        Args:
            code: of a :class:`retinanet.data.problems.ProblemKind`.
            where: file and line, or file and annotation id.
            message: description of this case. If the kind is counted, only the first case of each message is kept.
        """
        if PROBLEM_KINDS[code].counted:
            self._counts_of[code, message] += 1
            if self._counts_of[code, message] > 1:
                return
        self._problems.append(Problem(code, where, message))

    @property
    def problems(self) -> list[Problem]:
        """The problems recorded so far."""
        return [replace(p, count=self._counts_of.get((p.code, p.message), 1)) for p in self._problems]

    def refuse(self, code: str, where: str, message: str, error: str) -> None:
        """Abort with ``error``; a tolerant builder records the problem instead.

        Raises:
            DataError: the builder is not tolerant.
        """
        if not self.tolerant:
            raise DataError(error)
        self.report(code, where, message)

    def build(self) -> Dataset:
        """Build the dataset.

        Raises:
            DataError: there is no image, or two images have the same id.
        """
        if not self._files:
            raise DataError(f"{self.name}: no images listed; add some, or choose another split")
        ids = np.array(self._ids, dtype=np.int64)
        if len(np.unique(ids)) != len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise DataError(f"{self.name}: image id {values[counts > 1][0]} is used by two images; ids must differ")
        images = self._images()
        checked = self._raw.checked(images, self.options, self)
        owners = self._raw.images[checked.rows]
        return Dataset(
            name=self.name,
            root=self.root,
            classes=self.classes,
            category_ids=self.category_ids,
            files=FileList(self._files),
            image_ids=ids,
            sizes=checked.sizes,
            offsets=np.searchsorted(owners, np.arange(len(ids) + 1)).astype(np.int64),
            boxes=checked.boxes,
            labels=np.array(self._labels, dtype=np.int32)[checked.rows],
            ignore=np.array(self._ignore, dtype=np.bool_)[checked.rows],
            areas=checked.areas,
            problems=tuple(self.problems),
            places=FileList(self._raw.places[row] for row in checked.rows.tolist()) if self.tolerant else None,
            orientations=images.orientation.astype(np.uint8) if checked.frame else None,
            frame=checked.frame,
        )

    def _images(self) -> Images:
        """Sizes of the images in the annotations and in the image files."""
        root = os.path.join(self.root, "")
        headers = map_files(header_or_none, [os.path.join(root, file) for file in self._files])
        return Images(
            np.array(self._sizes, dtype=np.int64).reshape(-1, 2),
            np.array(self._measured, dtype=np.bool_),
            np.array([(0, 0) if header is None else header.stored for header in headers], dtype=np.int64),
            np.array([1 if header is None else header.orientation for header in headers], dtype=np.int64),
            self._files,
        )
