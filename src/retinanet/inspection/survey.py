"""Statistics of a split: boxes, their sizes, how well anchors cover them, and how rare positive anchors are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from retinanet.config import AssignConfig, Config
from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import padded_size, scaled_size
from retinanet.data.object_counts import objects_per_image
from retinanet.inspection.anchor_coverage import ScaledBoxes, best_overlaps, positives
from retinanet.inspection.findings import Finding
from retinanet.losses.classification import Focal

# In the paper, an anchor with at least this IoU with a box is positive.
REACHED = 0.5

# If more than this fraction of the boxes has no anchor of that IoU, there is a warning.
_FEW_UNREACHED = 0.1

# Number of images whose anchors are assigned. More images would hardly change the result.
ASSIGNED_IMAGES = 1000

_SIZES = (("small (under 32×32)", 0, 32**2), ("medium", 32**2, 96**2), ("large (96×96 and more)", 96**2, math.inf))


class GroupCoverage(NamedTuple):
    """How well the anchors cover a group of boxes.

    Attributes:
        by: kind of the group: ``all``, ``size`` or ``class``.
        name: name of the group.
        boxes: number of boxes.
        reached: fraction of the boxes with an anchor of IoU ≥ 0.5.
        assigned: fraction of the boxes that get a positive anchor with the current settings; NaN if no box was checked.
    """

    by: str
    name: str
    boxes: int
    reached: float
    assigned: float


@dataclass(frozen=True, eq=False)
class Survey:
    """Statistics of a split.

    Attributes:
        dataset: the split, with crowds treated as in training.
        size: float32 ``(M, 2)``, width and height of the boxes in pixels of the network's input.
        overlaps: float32 ``(M,)``, IoU of each box with its best anchor; NaN for ignore regions.
        positives: int64 ``(M,)``, number of positive anchors of each box with the recipe's assignment; −1 for ignore
            regions and for boxes of images that were not checked.
        anchors: mean number of anchors per image.
        foreground: mean number of positive anchors per image.
    """

    dataset: Dataset
    size: npt.NDArray[np.float32]
    overlaps: npt.NDArray[np.float32]
    positives: npt.NDArray[np.int64]
    anchors: float
    foreground: float

    @classmethod
    def of(cls, dataset: Dataset, config: Config, progress: Callable[[int], object] = lambda images: None) -> Survey:
        """Survey a split; ``progress`` is called with the number of images whose anchors were just assigned."""
        dataset = dataset.with_crowds(config.data.crowd)
        scaled = ScaledBoxes.of(dataset, config.data)
        chosen = np.arange(len(dataset))
        if len(dataset) > ASSIGNED_IMAGES:
            chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[:ASSIGNED_IMAGES])
        sample = dataset.subset(chosen)
        counts = positives(sample, config, progress)
        every = np.full(len(dataset.boxes), -1, dtype=np.int64)
        every[np.concatenate([np.arange(dataset.offsets[i], dataset.offsets[i + 1]) for i in chosen])] = counts
        return cls(
            dataset,
            scaled.boxes[:, 2:] - scaled.boxes[:, :2],
            best_overlaps(dataset, config.anchors, config.data),
            every,
            _anchors(sample, config),
            float(np.maximum(counts, 0).sum() / len(sample)),
        )

    @property
    def objects(self) -> npt.NDArray[np.bool_]:
        """Whether each box is an object, not an ignore region: bool ``(M,)``."""
        return ~self.dataset.ignore

    @property
    def per_image(self) -> npt.NDArray[np.int64]:
        """Number of objects of each image: int64 ``(N,)``."""
        return objects_per_image(self.dataset)

    @property
    def imbalance(self) -> float:
        """Boxes of the most frequent class divided by those of the rarest class with boxes; NaN without boxes."""
        counts = [count for count in self.dataset.class_counts().values() if count]
        return max(counts) / min(counts) if counts else math.nan

    @property
    def reached(self) -> float:
        """Fraction of the boxes with an anchor of IoU ≥ 0.5; NaN without boxes."""
        return next((each.reached for each in self.coverage()), math.nan)

    def coverage(self) -> Iterator[GroupCoverage]:
        """Yield the coverage of all boxes, of each size, and of each class. Empty groups are left out."""
        area = self.size.prod(axis=1)
        groups = [("all", "all", self.objects)]
        groups += [("size", name, self.objects & (area >= low) & (area < high)) for name, low, high in _SIZES]
        classes = self.dataset.classes
        by_class = [("class", name, self.objects & (self.dataset.labels == i)) for i, name in enumerate(classes)]
        for by, name, rows in groups + (by_class if len(classes) > 1 else []):
            if rows.any():
                looked_at = self.positives[rows & (self.positives >= 0)]
                assigned = float((looked_at > 0).mean()) if len(looked_at) else math.nan
                yield GroupCoverage(by, name, int(rows.sum()), float((self.overlaps[rows] >= REACHED).mean()), assigned)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the split in ``findings.json``, with ``None`` for NaN."""
        counts = self.per_image
        return {
            "images": len(self.dataset),
            "images_with_objects": int((counts > 0).sum()),
            "boxes": int(self.objects.sum()),
            "ignore_regions": int(self.dataset.ignore.sum()),
            "classes": self.dataset.class_counts(),
            "imbalance": _number(self.imbalance),
            "boxes_per_image": {
                "mean": float(counts.mean()),
                "median": float(np.median(counts)),
                "max": int(counts.max()),
            },
            "anchors_per_image": self.anchors,
            "foreground_anchors_per_image": self.foreground,
            "coverage": [
                each._asdict() | {"reached": _number(each.reached), "assigned": _number(each.assigned)}
                for each in self.coverage()
            ],
        }


@dataclass(frozen=True)
class Balance:
    """Classification loss of an average image before the first step, when every score is π.

    Attributes:
        foreground: number of positive anchors.
        background: number of all other anchors.
        cross_entropy: cross entropy, summed over the positive targets and over the negative targets.
        focal: the focal loss, summed in the same way.
    """

    foreground: float
    background: float
    cross_entropy: tuple[float, float]
    focal: tuple[float, float]

    @classmethod
    def of(cls, survey: Survey, prior: float, alpha: float, gamma: float) -> Balance:
        """Compute the balance for scores of ``prior`` (π) and a focal loss with ``alpha`` and ``gamma``."""
        background, classes = survey.anchors - survey.foreground, len(survey.dataset.classes)
        negatives = background * classes + survey.foreground * (classes - 1)
        logit = torch.tensor(math.log(prior / (1 - prior)), dtype=torch.float64)

        def totals(loss: Focal) -> tuple[float, float]:
            positive, negative = loss.foreground(logit, None), loss.background(logit)
            return survey.foreground * float(positive), negatives * float(negative)

        return cls(survey.foreground, background, totals(Focal(None, 0.0)), totals(Focal(alpha, gamma)))

    def sentences(self, prior: float, alpha: float, gamma: float) -> list[str]:
        """Describe the balance in plain words."""
        if self.foreground == 0:
            return ["No anchor is positive, so no object can be learned."]
        return [
            f"An average image has {self.foreground:,.0f} positive anchors (objects) and "
            f"{self.background:,.0f} other anchors (background): 1 : {self.background / self.foreground:.0f}.",
            f"Before the first training step every score is {prior:g} (the prior π). With cross entropy, "
            f"background then causes {_background_share(self.cross_entropy)}.",
            f"With the focal loss (γ = {gamma:g}, α = {alpha:g}), background causes {_background_share(self.focal)}.",
        ]


def coverage_findings(split: str, survey: Survey, assign: AssignConfig) -> Iterator[Finding]:
    """Findings about boxes that the anchors do not cover."""
    objects = survey.objects
    unreached = objects & (survey.overlaps < REACHED)
    if assign.method == "iou" and unreached.sum() > _FEW_UNREACHED * objects.sum():
        what = f"{unreached.sum()} of {objects.sum()} boxes have no anchor with IoU ≥ {REACHED:g}"
        yield Finding("low-coverage", split, survey.dataset.name, what)
    looked_at = survey.positives >= 0
    none = survey.positives == 0
    if none.any():
        what = f"{none.sum()} of {looked_at.sum()} boxes with --assign.method {assign.method}"
        yield Finding("no-anchor", split, survey.dataset.name, what)


def _background_share(loss: tuple[float, float]) -> str:
    """Share of the background in a loss, given as its sums over foreground and background."""
    total = sum(loss)
    share = loss[1] / total
    percent = f"{share:.0%}" if share >= 0.01 else f"{share:.2%}" if share >= 0.0001 else "less than 0.01%"
    return f"{percent} of the loss of this image ({_short(loss[1])} of {_short(total)})"


def _short(value: float) -> str:
    """Format a number with three significant digits, or without decimals if it is large."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _anchors(dataset: Dataset, config: Config) -> float:
    """Mean number of anchors per image."""
    total = 0
    for (width, height), images in zip(*np.unique(dataset.sizes, axis=0, return_counts=True), strict=True):
        sides = padded_size([scaled_size(int(height), int(width), config.data)], config.data.pad_to)
        locations = sum(-(-sides[0] // s) * -(-sides[1] // s) for s in config.anchors.strides)
        total += int(images) * locations * config.anchors.per_location
    return total / len(dataset)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
