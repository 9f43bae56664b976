"""What can be wrong in a dataset: each kind of finding, how bad it is, and what training does about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        code: for machines.
        severity: error: training would stop or go wrong; warning: it learns or measures something wrong; note: worth
            knowing.
        title: what it is, in words.
        effect: what training does about it.
    """

    code: str
    severity: Severity
    title: str
    effect: str


# In the order in which they matter.
_KINDS = (
    Kind("unreadable-split", "error", "split that cannot be read", "training stops"),
    Kind("no-objects", "error", "split without a single object", "training stops, or cannot be measured"),
    Kind(
        "broken-picture",
        "error",
        "picture that cannot be read",
        "training stops before its first step; with --data.skip-broken it goes on without the picture",
    ),
    Kind(
        "broken-annotation",
        "error",
        "annotation that belongs to nothing or cannot be read",
        "training stops before its first step",
    ),
    Kind(
        "unknown-class",
        "error",
        "class that train does not list",
        "training stops: the model would have no output for it",
    ),
    Kind(
        "leak",
        "error",
        "same picture in two splits",
        "the model is tested on what it has learnt by heart: scores are too high",
    ),
    Kind(
        "picture-size",
        "error",
        "picture of another size than its annotations say",
        "boxes are taken as they are and lie in the wrong place",
    ),
    Kind(
        "near-leak",
        "warning",
        "nearly the same picture in two splits",
        "the model is tested on what it has almost seen: scores are too high",
    ),
    Kind("bad-box", "warning", "box that is none", "dropped"),
    Kind("bad-line", "warning", "annotation that is not understood", "dropped"),
    Kind(
        "two-classes",
        "warning",
        "same box with two classes (IoU above 0.95)",
        "an anchor learns only one of the two, the one that fits it better",
    ),
    Kind(
        "duplicate-box",
        "warning",
        "box that is there twice (same class, IoU above 0.95)",
        "the anchors are divided between the two; in evaluation, one of them is always missed",
    ),
    Kind(
        "duplicate-picture",
        "warning",
        "same picture twice in a split",
        "counts twice; where annotations differ, training learns both",
    ),
    Kind(
        "similar-classes",
        "warning",
        "class names that differ only by case, space, hyphen or underscore",
        "learnt as different classes that compete for the same objects",
    ),
    Kind("never-learnt", "warning", "class without a box in train", "the model never finds it: its AP is 0"),
    Kind("rare-class", "warning", "class with fewer than 10 boxes in train", "too few examples to learn from"),
    Kind(
        "low-coverage",
        "warning",
        "split with over 10 % of boxes that no anchor reaches",
        "matching by IoU gives them no positive anchor: they are learnt as background",
    ),
    Kind(
        "no-anchor",
        "note",
        "split with boxes that get no anchor",
        "they count as background in training, and as misses in evaluation",
    ),
    Kind(
        "tiny-box",
        "warning",
        "box with a side under 2 pixels of the network's input",
        "left out of training below 1 pixel, hardly learnt below 2; raise --data.size or cut the pictures into tiles",
    ),
    Kind("never-measured", "note", "class of train that a held-out split does not show", "learnt, but never measured"),
    Kind("clipped-box", "note", "box that reaches over the edge of its picture", "clipped to the picture"),
    Kind(
        "huge-box",
        "note",
        "box over 90 % of its picture, where that is rare",
        "learnt like any other; often a picture's label that was made a box",
    ),
    Kind(
        "near-duplicate",
        "note",
        "nearly the same picture in a split",
        "counts more than once; a part of train set aside at random for val would not be independent of the rest",
    ),
    Kind(
        "few-boxes",
        "note",
        "picture with far fewer boxes than the others",
        "if objects were forgotten, they are learnt as background",
    ),
    Kind(
        "unflagged-crowd",
        "note",
        "box around five or more boxes of its class",
        "learnt as one large object; if it is a group, flag it as crowd (COCO iscrowd, VOC difficult)",
    ),
    Kind("no-boxes", "note", "split with pictures without objects", "learnt as background"),
    Kind("crowd", "note", "split with crowd, difficult or ignore regions", "depends on --data.crowd"),
    Kind("unlisted-picture", "note", "picture that no annotation file lists", "not used"),
    Kind("remark", "note", "remark of the reader", "see there"),
)
KINDS = {kind.code: kind for kind in _KINDS}
_ORDER = {kind.code: number for number, kind in enumerate(_KINDS)}
_SEVERITIES = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Sight:
    """What to show of a finding: a picture, by split and number, and boxes in its pixels; all of it, or the boxes."""

    split: str
    image: int
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    closely: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        code: of its :class:`Kind`.
        split: where.
        where: file and line, or file and annotation id.
        what: this case in words.
        sights: pictures of it.
        effect: what training does, if that is not the same for the whole kind.
    """

    code: str
    split: str
    where: str
    what: str
    sights: tuple[Sight, ...] = ()
    effect: str = ""

    @property
    def kind(self) -> Kind:
        """The kind it is of."""
        return KINDS[self.code]

    def to_dict(self) -> dict[str, Any]:
        """For ``findings.json``."""
        return {
            "severity": self.kind.severity,
            "code": self.code,
            "split": self.split,
            "where": self.where,
            "what": self.what,
            "effect": self.effect or self.kind.effect,
        }


def by_kind(findings: Iterable[Finding]) -> dict[Kind, list[Finding]]:
    """The findings of each kind, what matters most first."""
    groups: dict[Kind, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    return dict(sorted(groups.items(), key=lambda item: (_SEVERITIES[item[0].severity], _ORDER[item[0].code])))
