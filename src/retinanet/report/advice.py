"""Advice after an evaluation, in a few sentences that follow from its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from retinanet.config import Config
from retinanet.evaluation.analysis import Analysis
from retinanet.evaluation.error_kinds import ERROR_KINDS
from retinanet.recipes import has_fitted_anchors

# Groups with fewer objects than this, and smaller differences than this, are not mentioned.
_FEWEST = 10
_BEHIND, _COST, _CALIBRATION, _SPREAD = 0.1, 0.005, 0.1, 0.15

# From this AP and this F1 on, a result counts as perfect.
_PERFECT = 0.9995


def costliest(analysis: Analysis) -> str | None:
    """Find the kind of error that costs the most AP50; ``None`` if no kind costs more than 0.005."""
    costs = {code: analysis.errors.costs[code] for code in ERROR_KINDS}
    worst = max(costs, key=lambda code: costs[code])
    return worst if costs[worst] > _COST else None


def describe_error(analysis: Analysis, code: str) -> str:
    """Describe a kind of error and its cost in a few words."""
    return f"{ERROR_KINDS[code].noun} ({code}) cost the most: {analysis.errors.costs[code]:.3f} AP50"


def is_perfect(analysis: Analysis) -> bool:
    """Whether AP and F1 are 1, up to rounding to three digits."""
    return analysis.AP >= _PERFECT and analysis.f1 >= _PERFECT


def next_steps(analysis: Analysis, config: Config | None = None) -> list[str]:
    """Advise in up to four sentences, the most useful first.

    Args:
        analysis: results of the detector.
        config: settings of its training, so that nothing is advised that was done; ``None`` for another program's
            detector.
    """
    if not sum(each.objects for each in analysis.classes):
        return ["There are no annotated objects, so nothing can be measured. Choose a split that has some."]
    if not sum(each.detections for each in analysis.classes):
        return ["Nothing was detected. Check whether the training converged, and which data it used."]
    if is_perfect(analysis):
        return [
            "Every object is found with a precise box, and nothing else is. Nothing is left to improve here.",
            *_threshold(analysis),
        ]
    return [*_errors(analysis, config), *_threshold(analysis), *_weakest(analysis), *_annotations(analysis)][:4]


def _errors(analysis: Analysis, config: Config | None) -> Iterator[str]:
    code = costliest(analysis)
    if code is None:
        yield f"No kind of error costs more than {_COST:g} AP50."
    else:
        sentence = describe_error(analysis, code)
        settings = _settings(ERROR_KINDS[code].helps, config) if config else ""
        yield f"{sentence[0].upper()}{sentence[1:]}. {ERROR_KINDS[code].remedy}{settings}"


def _settings(helps: Sequence[str], config: Config) -> str:
    """Propose changes of the settings of a training, without those that it had."""
    changes = {
        "size": f"larger images (--data.size, now {config.data.size})",
        "anchors": "" if has_fitted_anchors(config) else "anchors fitted to your boxes (retinanet data anchors)",
        "epochs": f"longer training (--train.epochs, now {config.train.epochs})",
        "nms": f"a lower --decode.nms (now {config.decode.nms:g})",
    }
    listed = [changes[name] for name in helps if changes[name]]
    if not listed:
        return ""
    return " In a new training, try " + (", ".join(listed[:-1]) + " or " if listed[1:] else "") + listed[-1] + "."


def _threshold(analysis: Analysis) -> Iterator[str]:
    if not analysis.f1 > 0:
        yield "No detection is correct at an IoU of 0.5, so no score threshold helps."
        return
    each = [k.threshold for k in analysis.classes if not math.isnan(k.threshold)]
    low, high = min(each), max(each)
    apart = (
        f" The best thresholds of single classes range from {low:.2f} to {high:.2f}." if high - low > _SPREAD else ""
    )
    yield f"Use a score threshold of {analysis.threshold:.2f}: it has the best F1, {analysis.f1:.2f}.{apart}"


def _weakest(analysis: Analysis) -> Iterator[str]:
    """Name the class or the group of objects that is furthest behind, if it has enough objects.

    Groups are compared by the AP averaged over objects. In the mean over classes, a single object of a rare class would
    weigh as much as all objects of a frequent class.
    """
    total = sum(each.objects for each in analysis.classes)
    groups = [
        (each.AP_by_object, each.AP_elsewhere, each.objects, f"{each.group}: {each.name}", ", averaged over objects")
        for each in analysis.slices
        if each.objects >= total / 20
    ]
    groups += [(each.AP, analysis.AP, each.objects, f"class {each.name}", "") for each in analysis.classes]
    groups = [group for group in groups if group[2] >= _FEWEST]
    if not groups:
        return
    value, usual, objects, what, how = min(groups, key=lambda group: group[0] - group[1])
    if usual - value > _BEHIND:
        share = f"({objects} of {total} objects)"
        yield f"The weakest group is “{what}” {share}: its AP is {value:.3f}, compared with {usual:.3f} overall{how}."


def _annotations(analysis: Analysis) -> Iterator[str]:
    listed = analysis.label_errors
    count = listed["class"].total + listed["missing"].total
    if count:
        subject = "1 confident detection contradicts" if count == 1 else f"{count} confident detections contradict"
        yield (
            f"{subject} the annotations; see the end of this page. Wrong annotations make a detector look worse than "
            "it is."
        )
    gap = analysis.calibration.error
    if gap > _CALIBRATION:
        yield f"Do not read scores as probabilities: on average they are off by {gap:.2f} (see Calibration)."
