"""What to do next, in a few sentences that follow from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from retinanet.evaluation.analysis import Analysis
from retinanet.evaluation.tide import KINDS

ERRORS = {
    "Cls": "right box, wrong class",
    "Loc": "right class, box fits badly (IoU 0.1–0.5)",
    "Both": "wrong class and a badly fitting box",
    "Dupe": "a second detection of the same object",
    "Bkg": "nothing is annotated there",
    "Miss": "objects that nothing finds",
    "FP": "all wrong detections together",
    "FN": "all objects not found together",
}
_NAMES = {
    "Cls": "confusing classes",
    "Loc": "badly fitting boxes",
    "Both": "wrong classes with badly fitting boxes",
    "Dupe": "double detections",
    "Bkg": "detections where nothing is annotated",
    "Miss": "missed objects",
}
_REMEDIES = {
    "Cls": "Look at the confusion matrix: such classes need more examples, or one name.",
    "Loc": "Try larger pictures (--data.size), anchors that fit (retinanet data anchors), or a longer training; see "
    "whether the annotators drew their boxes alike.",
    "Both": "Train longer, or on more pictures.",
    "Dupe": "Try a lower decode.nms.",
    "Bkg": "Look at the false positives first: some may be objects that were not annotated. Pictures without objects "
    "help against the others.",
    "Miss": "Look at what is missed: larger pictures (--data.size) help with small objects, retinanet data anchors "
    "with odd shapes, more pictures with rare kinds.",
}

# Objects of a part, and differences, that are worth a sentence.
_FEWEST = 10
_BEHIND, _COST, _CALIBRATION = 0.1, 0.005, 0.1


def costliest(analysis: Analysis) -> str | None:
    """The kind of error, of TIDE's six, that costs the most AP50; ``None`` if none costs anything."""
    costs = {kind: analysis.errors.costs[kind] for kind in (*KINDS, "Miss")}
    worst = max(costs, key=lambda kind: costs[kind])
    return worst if costs[worst] > _COST else None


def describe_error(analysis: Analysis, kind: str) -> str:
    """A kind of error and its cost in a few words."""
    return f"{_NAMES[kind]} ({kind}) cost the most: {analysis.errors.costs[kind]:.3f} AP50"


def next_steps(analysis: Analysis) -> list[str]:
    """Up to four sentences, the most useful first."""
    if not sum(each.objects for each in analysis.classes):
        return ["There are no annotated objects that count, so nothing can be measured. Choose a split that has some."]
    if not sum(each.detections for each in analysis.classes):
        return [
            "Nothing was detected that counts. Look whether the training has converged, and on what it was trained."
        ]
    return [*_errors(analysis), *_threshold(analysis), *_weakest(analysis), *_annotations(analysis)][:4]


def _errors(analysis: Analysis) -> Iterator[str]:
    kind = costliest(analysis)
    if kind is None:
        yield "No kind of error costs more than 0.005 AP50."
    else:
        sentence = describe_error(analysis, kind)
        yield f"{sentence[0].upper()}{sentence[1:]}. {_REMEDIES[kind]}"


def _threshold(analysis: Analysis) -> Iterator[str]:
    if not analysis.f1 > 0:
        yield "No detection is right at an IoU of 0.5; no threshold helps."
        return
    each = [k for k in analysis.classes if not math.isnan(k.threshold)]
    low, high = min(k.threshold for k in each), max(k.threshold for k in each)
    apart = f" The best thresholds of the classes reach from {low:.2f} to {high:.2f}." if high - low > 0.15 else ""
    yield f"Use a threshold of {analysis.threshold:.2f}: there F1 is best, {analysis.f1:.2f}.{apart}"


def _weakest(analysis: Analysis) -> Iterator[str]:
    """The class or part of the data that is furthest behind, if it has its share of the objects.

    Parts are compared object by object: the mean over classes would blame one for a single object of a rare class.
    """
    total = sum(each.objects for each in analysis.classes)
    parts = [
        (each.AP_by_object, each.AP_elsewhere, each.objects, f"{each.group}: {each.name}", ", object by object")
        for each in analysis.slices
        if each.objects >= total / 20
    ]
    parts += [(each.AP, analysis.AP, each.objects, f"class {each.name}", "") for each in analysis.classes]
    parts = [part for part in parts if part[2] >= _FEWEST]
    if not parts:
        return
    value, usual, objects, what, how = min(parts, key=lambda part: part[0] - part[1])
    if usual - value > _BEHIND:
        share = f"({objects} of {total} objects)"
        yield f"The weakest part is “{what}” {share}: AP {value:.3f}, against {usual:.3f} in all{how}."


def _annotations(analysis: Analysis) -> Iterator[str]:
    listed = analysis.label_errors
    count = listed["class"].total + listed["missing"].total
    if count:
        yield (
            f"{count} sure detections contradict the annotations; look at them at the end of this page. "
            "Wrong annotations make a detector look worse than it is."
        )
    gap = analysis.calibration.error
    if gap > _CALIBRATION:
        yield f"Scores are no probabilities: they are off by {gap:.2f} on average (see Calibration)."
