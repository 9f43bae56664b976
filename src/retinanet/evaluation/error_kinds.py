"""The kinds of errors that TIDE distinguishes, and all texts about them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorKind:
    """A kind of error in words.

    Attributes:
        code: TIDE's name.
        noun: plural noun for a sentence.
        meaning: definition of the kind.
        detection: clause about a single false positive; empty for errors that are not false positives.
        remedy: advice on how to reduce errors of the kind, for any detector.
        helps: settings of this package that can reduce them: ``size``, ``anchors``, ``epochs``, ``nms``.
    """

    code: str
    noun: str
    meaning: str
    detection: str
    remedy: str
    helps: tuple[str, ...] = ()


_KINDS = (
    ErrorKind(
        code="Cls",
        noun="confused classes",
        meaning="correct box, wrong class",
        detection="it lies on an object of another class",
        remedy="Look at the confusion matrix: give classes that are confused more examples, or merge them.",
    ),
    ErrorKind(
        code="Loc",
        noun="imprecise boxes",
        meaning="correct class, imprecise box (IoU 0.1–0.5)",
        detection="its box fits an object of the class too badly",
        remedy="Check whether all annotators draw boxes in the same way.",
        helps=("size", "anchors", "epochs"),
    ),
    ErrorKind(
        code="Both",
        noun="wrong classes with imprecise boxes",
        meaning="wrong class and imprecise box (IoU 0.1–0.5)",
        detection="another class, and the box fits badly",
        remedy="More training images help.",
        helps=("epochs",),
    ),
    ErrorKind(
        code="Dupe",
        noun="duplicate detections",
        meaning="a second detection of the same object",
        detection="a better detection has found the object already",
        remedy="A stricter suppression of overlapping boxes removes them.",
        helps=("nms",),
    ),
    ErrorKind(
        code="Bkg",
        noun="detections on background",
        meaning="no annotated object there",
        detection="nothing is annotated there",
        remedy="Look at the false positives first: some may be objects without an annotation. Training images without "
        "objects help against the others.",
    ),
    ErrorKind(
        code="Miss",
        noun="undetected objects",
        meaning="an object without any detection, not even an imprecise one",
        detection="",
        remedy="Look at the false negatives. More training images help with rare kinds of objects.",
        helps=("size", "anchors"),
    ),
)
ERROR_KINDS = {kind.code: kind for kind in _KINDS}

# TIDE also reports these two sums over several kinds.
TOTALS = {"FP": "all false positives", "FN": "all objects that are not found (false negatives)"}
