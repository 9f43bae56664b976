"""Kinds of findings in a dataset: the severity of each kind and its effect on training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from retinanet.data.problems import PROBLEM_KINDS, Severity


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        code: identifies the kind; decisions use this.
        severity: ``error``: training stops, or its metrics are invalid. ``warning``: accuracy or metrics may suffer.
            ``note``: worth knowing.
        title: noun phrase for the kind.
        effect: its effect on training.
    """

    code: str
    severity: Severity
    title: str
    effect: str


# The most important kinds come first.
_KINDS = (
    Kind("unreadable-split", "error", "split that cannot be read", "training stops"),
    Kind("no-objects", "error", "split without any object", "training stops, or the split cannot be evaluated"),
    Kind(
        "broken-image",
        "error",
        "image that cannot be read",
        "training stops before its first step; with --data.skip-broken it leaves out the image",
    ),
    Kind(
        "broken-annotation",
        "error",
        "annotation that cannot be read, or whose image or class is not defined",
        "training stops before its first step",
    ),
    Kind(
        "leak",
        "error",
        "same image in two splits",
        "the model is evaluated on an image that it was trained on, so scores are too high",
    ),
    Kind(
        "image-size",
        "error",
        "image whose size differs from its annotations",
        "the boxes are used as they are and lie in the wrong place",
    ),
    *(Kind(kind.code, kind.severity, kind.title, kind.action) for kind in PROBLEM_KINDS.values() if kind.sign),
    Kind(
        "near-leak",
        "warning",
        "nearly the same image in two splits",
        "the model is evaluated on an image close to one that it was trained on, so scores are too high",
    ),
    Kind(
        "flat-image",
        "warning",
        "image without contrast, such as an entirely black or white one",
        "nothing can be seen in it; if its values have another range, set --data.pixel-range",
    ),
    Kind("bad-box", "warning", "degenerate box", "the box is dropped"),
    Kind("bad-line", "warning", "annotation with an invalid format", "the annotation is dropped"),
    Kind(
        "two-classes",
        "warning",
        "two boxes of different classes in the same place (IoU above 0.95)",
        "each anchor is trained with the class of only one of the boxes",
    ),
    Kind(
        "duplicate-box",
        "warning",
        "duplicate box (same class, IoU above 0.95)",
        "the two boxes share their anchors, and evaluation always counts one of them as a false negative",
    ),
    Kind(
        "duplicate-image",
        "warning",
        "same image twice in a split",
        "the image counts twice; if its annotations differ, both are used",
    ),
    Kind(
        "similar-classes",
        "warning",
        "class names that differ only by a hyphen or underscore",
        "they are trained as different classes that compete for the same objects",
    ),
    Kind(
        "unknown-class",
        "warning",
        "class that train does not list",
        "the model never detects it: its AP is 0 and lowers the mean",
    ),
    Kind("never-learnt", "warning", "class without a box in train", "the model never detects it: its AP is 0"),
    Kind("rare-class", "warning", "class with fewer than 10 boxes in train", "too few examples to learn the class"),
    Kind(
        "low-coverage",
        "warning",
        "split with more than 10% of its boxes below IoU 0.5 with every anchor",
        "matching by IoU gives these boxes no positive anchor, so they are treated as background",
    ),
    Kind(
        "no-anchor",
        "note",
        "split with boxes that get no positive anchor",
        "training treats these boxes as background, so the detector is unlikely to find them",
    ),
    Kind(
        "small-objects",
        "warning",
        "split with objects that are small against their images",
        "most objects are hard to detect at the size of the network's input; --data.tile trains on tiles",
    ),
    Kind(
        "tiny-box",
        "warning",
        "box with a side under 2 pixels of the network's input",
        "training leaves out boxes under 1 pixel and boxes under 2 are hard to detect; "
        "raise --data.size or train on tiles with --data.tile",
    ),
    Kind(
        "never-measured",
        "note",
        "class of train without a box in a held-out split",
        "the class is trained, but its AP cannot be measured on that split",
    ),
    Kind("clipped-box", "note", "box that reaches over the edge of its image", "the box is clipped to the image"),
    Kind(
        "huge-box",
        "note",
        "box over 90% of its image, in a dataset where such boxes are rare",
        "the box is used like any other; often it was made from a label of the whole image",
    ),
    Kind(
        "near-duplicate",
        "note",
        "nearly the same image twice in a split",
        "the image counts more than once; a val split drawn at random from train would not be independent of it",
    ),
    Kind(
        "few-boxes",
        "note",
        "image with far fewer boxes than the other images",
        "if objects were not annotated, they are treated as background",
    ),
    Kind(
        "unflagged-crowd",
        "note",
        "box around five or more boxes of its class",
        "the box is treated as one large object; if it is a group, flag it as crowd (COCO iscrowd, VOC difficult)",
    ),
    Kind("no-boxes", "note", "split with images without objects", "these images are used as background"),
    Kind("crowd", "note", "split with crowd, difficult or ignore regions", "the effect depends on --data.crowd"),
    Kind("unread-files", "note", "kind of files that are not read", "the images in these files are not used"),
    Kind("unlisted-image", "note", "image that no annotation file lists", "the image is not used"),
    Kind("remark", "note", "other problem in the annotations", "see the description"),
)
KINDS = {kind.code: kind for kind in _KINDS}
_ORDER = {kind.code: number for number, kind in enumerate(_KINDS)}
_SEVERITIES = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Sight:
    """Image and boxes that illustrate a finding.

    Attributes:
        split: name of the split.
        image: index of the image in the split.
        boxes: boxes to draw, in pixels of the image.
        closely: show only the boxes and their surroundings, not the whole image.
    """

    split: str
    image: int
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    closely: bool = False


@dataclass(frozen=True)
class Finding:
    """One finding in a dataset.

    Attributes:
        code: of its :class:`Kind`.
        split: name of the split.
        where: file and line, or file and annotation id.
        what: description of this case.
        sights: images that show the finding.
        effect: effect on training, if it differs from the effect of the kind.
    """

    code: str
    split: str
    where: str
    what: str
    sights: tuple[Sight, ...] = ()
    effect: str = ""

    @property
    def kind(self) -> Kind:
        """The kind of the finding."""
        return KINDS[self.code]

    @property
    def severity(self) -> Severity:
        """``error``, ``warning`` or ``note``."""
        return self.kind.severity

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the finding in ``findings.json``."""
        return {
            "severity": self.severity,
            "code": self.code,
            "split": self.split,
            "where": self.where,
            "what": self.what,
            "effect": self.effect or self.kind.effect,
        }


def by_kind(findings: Iterable[Finding]) -> dict[Kind, list[Finding]]:
    """Group the findings by kind, the most important kind first."""
    groups: dict[Kind, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    return dict(sorted(groups.items(), key=lambda item: (_SEVERITIES[item[0].severity], _ORDER[item[0].code])))
