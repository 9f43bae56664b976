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
        remedy: advice on how to reduce errors of the kind.
    """

    code: str
    noun: str
    meaning: str
    detection: str
    remedy: str


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
        remedy="Try larger images (--data.size), anchors fitted to your boxes (retinanet data anchors) or longer "
        "training. Check whether all annotators draw boxes in the same way.",
    ),
    ErrorKind(
        code="Both",
        noun="wrong classes with imprecise boxes",
        meaning="wrong class and imprecise box (IoU 0.1–0.5)",
        detection="another class, and the box fits badly",
        remedy="Train longer, or with more images.",
    ),
    ErrorKind(
        code="Dupe",
        noun="duplicate detections",
        meaning="a second detection of the same object",
        detection="a better detection has found the object already",
        remedy="Lower decode.nms.",
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
        remedy="Look at the false negatives. Larger images (--data.size) help with small objects, fitted anchors "
        "(retinanet data anchors) with unusual shapes, and more training images with rare kinds of objects.",
    ),
)
ERROR_KINDS = {kind.code: kind for kind in _KINDS}

# TIDE also reports these two sums over several kinds.
TOTALS = {"FP": "all false positives", "FN": "all objects that are not found (false negatives)"}
