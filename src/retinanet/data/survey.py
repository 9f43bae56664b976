"""What a dataset offers to learn from: boxes, sizes, how anchors cover them, and how rare foreground is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from retinanet.anchors.fit import ScaledBoxes, best_overlaps, positives
from retinanet.config import AssignConfig, Config
from retinanet.data.dataset import Dataset
from retinanet.data.findings import Finding
from retinanet.data.transforms import PAD_TO, scaled_size
from retinanet.losses.classification import Focal

# IoU from which the paper gives a box an anchor.
REACHED = 0.5

# Share of boxes out of reach from which that is worth a warning.
_FEW_MISSED = 0.1

# More images than this tell no more about how many anchors a box gets.
_ASSIGNED = 1000

_SIZES = (("small (under 32×32)", 0, 32**2), ("medium", 32**2, 96**2), ("large (96×96 and more)", 96**2, math.inf))


class Coverage(NamedTuple):
    """How anchors cover a group of boxes.

    Attributes:
        by: what makes it a group: ``all``, ``size`` or ``class``.
        name: of the group.
        boxes: how many.
        reached: share with an anchor of IoU 0.5.
        assigned: share that gets an anchor under the settings; NaN if none of them was looked at.
    """

    by: str
    name: str
    boxes: int
    reached: float
    assigned: float


@dataclass(frozen=True, eq=False)
class Survey:
    """A split in numbers.

    Attributes:
        dataset: the split, crowds treated as in training.
        size: float32 ``(M, 2)``, width and height of the boxes in pixels of the network's input.
        overlaps: float32 ``(M,)``, IoU of each box with its best anchor; NaN for ignore regions.
        positives: int64 ``(M,)``, anchors that each box gets under the recipe's assignment; −1 for ignore regions and
            boxes of images that were not looked at.
        anchors: mean number of anchors of an image.
        foreground: mean number of those that get an object.
    """

    dataset: Dataset
    size: npt.NDArray[np.float32]
    overlaps: npt.NDArray[np.float32]
    positives: npt.NDArray[np.int64]
    anchors: float
    foreground: float

    @classmethod
    def of(cls, dataset: Dataset, config: Config, progress: Callable[[int], object] = lambda images: None) -> Survey:
        """Survey a split; ``progress`` is told the number of images whose anchors were just assigned."""
        dataset = dataset.with_crowds(config.data.crowd)
        scaled = ScaledBoxes.of(dataset, config.data)
        chosen = np.arange(len(dataset))
        if len(dataset) > _ASSIGNED:
            chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[:_ASSIGNED])
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
        """Which boxes are objects: bool ``(M,)``."""
        return ~self.dataset.ignore

    @property
    def per_image(self) -> npt.NDArray[np.int64]:
        """Objects of each image: int64 ``(N,)``."""
        return np.diff(np.concatenate([[0], np.cumsum(self.objects)])[self.dataset.offsets])

    @property
    def imbalance(self) -> float:
        """Boxes of the commonest class per box of the rarest that has any; NaN without boxes."""
        counts = [count for count in self.dataset.class_counts().values() if count]
        return max(counts) / min(counts) if counts else math.nan

    @property
    def reached(self) -> float:
        """Share of the boxes with an anchor of IoU 0.5; NaN without boxes."""
        return next((each.reached for each in self.coverage()), math.nan)

    def coverage(self) -> Iterator[Coverage]:
        """Of all boxes, of those of each size, and of each class, where there are any."""
        area = self.size.prod(axis=1)
        groups = [("all", "all", self.objects)]
        groups += [("size", name, self.objects & (area >= low) & (area < high)) for name, low, high in _SIZES]
        classes = self.dataset.classes
        by_class = [("class", name, self.objects & (self.dataset.labels == i)) for i, name in enumerate(classes)]
        for by, name, rows in groups + (by_class if len(classes) > 1 else []):
            if rows.any():
                looked_at = self.positives[rows & (self.positives >= 0)]
                assigned = float((looked_at > 0).mean()) if len(looked_at) else math.nan
                yield Coverage(by, name, int(rows.sum()), float((self.overlaps[rows] >= REACHED).mean()), assigned)

    def to_dict(self) -> dict[str, Any]:
        """For ``findings.json``; NaN as ``None``."""
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
    """The classification loss of an average picture before the first step, when every score is π.

    Attributes:
        foreground: anchors with an object.
        background: all others.
        cross_entropy: summed loss of the foreground's own classes, and of everything else.
        focal: the same under the focal loss.
    """

    foreground: float
    background: float
    cross_entropy: tuple[float, float]
    focal: tuple[float, float]

    @classmethod
    def of(cls, survey: Survey, prior: float, alpha: float, gamma: float) -> Balance:
        """The balance for scores of ``prior`` (π) and a focal loss of ``alpha`` and ``gamma``."""
        background, classes = survey.anchors - survey.foreground, len(survey.dataset.classes)
        wrong = background * classes + survey.foreground * (classes - 1)  # logits whose class is wrong
        logit = torch.tensor(math.log(prior / (1 - prior)), dtype=torch.float64)

        def totals(loss: Focal) -> tuple[float, float]:
            return survey.foreground * float(loss.foreground(logit, None)), wrong * float(loss.background(logit))

        return cls(survey.foreground, background, totals(Focal(None, 0.0)), totals(Focal(alpha, gamma)))

    def sentences(self, prior: float, alpha: float, gamma: float) -> list[str]:
        """What that means, in plain words."""
        if self.foreground == 0:
            return ["no anchor gets an object"]
        ratio = self.background / self.foreground
        fg, bg = self.cross_entropy
        focal_fg, focal_bg = self.focal
        return [
            f"an average picture has {self.foreground:.0f} foreground anchors and {self.background:.0f} others, "
            f"1 : {ratio:.0f}",
            f"at the start, with every score at π = {prior:g}, cross entropy sums to {bg:.3g} over the background and "
            f"{fg:.3g} over the foreground: the background makes {bg / (bg + fg):.0%} of the loss",
            f"the focal loss (γ = {gamma:g}, α = {alpha:g}) sums to {focal_bg:.3g} and {focal_fg:.3g}: the background "
            f"makes {_percent(focal_bg / (focal_bg + focal_fg))}",
        ]


def coverage_findings(split: str, survey: Survey, assign: AssignConfig) -> Iterator[Finding]:
    """What the anchors do not cover, as findings about the split."""
    objects = survey.objects
    missed = objects & (survey.overlaps < REACHED)
    if assign.method == "iou" and missed.sum() > _FEW_MISSED * objects.sum():
        what = f"{missed.sum()} of {objects.sum()} boxes have no anchor of IoU ≥ {REACHED:g}"
        yield Finding("low-coverage", split, survey.dataset.name, what)
    looked_at = survey.positives >= 0
    none = survey.positives == 0
    if none.any():
        what = f"{none.sum()} of {looked_at.sum()} boxes under --assign.method {assign.method}"
        yield Finding("no-anchor", split, survey.dataset.name, what)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}" if share >= 0.0001 else "under 0.01%"


def _anchors(dataset: Dataset, config: Config) -> float:
    """Mean number of anchors of an image."""
    total = 0
    for (width, height), images in zip(*np.unique(dataset.sizes, axis=0, return_counts=True), strict=True):
        sides = [-(-side // PAD_TO) * PAD_TO for side in scaled_size(int(height), int(width), config.data)]
        locations = sum(-(-sides[0] // s) * -(-sides[1] // s) for s in config.anchors.strides)
        total += int(images) * locations * config.anchors.per_location
    return total / len(dataset)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
