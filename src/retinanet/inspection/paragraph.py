"""What matters most about a dataset before hours are spent on a training, in one paragraph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.inspection.findings import Finding, by_kind
from retinanet.recipes import has_fitted_anchors

# Number of kinds of findings that the paragraph describes.
_KINDS = 3

_FIX = "'retinanet data inspect' with --fix OUT writes a repaired copy"

# What to do about a kind of finding, by its code. Kinds that are not listed need no action, or their effect states it.
_REMEDIES = {
    "unreadable-split": "correct its annotation file, or choose other splits with --data.train and --data.val",
    "no-objects": "annotate it, or choose another split with --data.train or --data.val",
    "broken-annotation": _FIX,
    "unknown-class": "add examples of the class to train",
    "leak": _FIX,
    "image-size": "restore the images that were annotated, or correct the sizes",
    "near-leak": "move both images to the same split",
    "bad-box": "correct the boxes",
    "bad-line": "correct the annotations",
    "two-classes": "delete the wrong box",
    "duplicate-box": _FIX,
    "duplicate-image": _FIX,
    "similar-classes": _FIX,
    "never-learnt": "annotate examples of it in train",
    "rare-class": "annotate more examples",
    "low-coverage": "use --assign.method atss",
}


def remedy(code: str, config: Config, repaired: Path | None = None) -> str:
    """Say what to do about a kind of finding, without settings that ``config`` already has.

    Args:
        code: of the kind.
        config: settings of the planned training.
        repaired: folder of the repaired copy that is being written.

    Returns:
        The end of a sentence; empty if there is nothing to do, or if the effect of the kind says it.
    """
    text = _REMEDIES.get(code, "")
    if text == _FIX and repaired is not None:
        return f"it is repaired in {repaired}"
    if code == "rare-class" and not config.data.repeat_rare:
        return f"{text}, or show them more often with --data.repeat-rare"
    if code == "low-coverage" and not has_fitted_anchors(config):
        return f"fit the anchors with 'retinanet data anchors', or {text}"
    return text


def contents(splits: Mapping[str, Dataset]) -> str:
    """Describe the size of a dataset in a sentence."""
    images = " and ".join(f"{_many(len(data), 'image')} in {split}" for split, data in splits.items())
    boxes = sum(int((~data.ignore).sum()) for data in splits.values())
    classes = len(next(iter(splits.values())).classes)
    return f"{images}, with {_many(boxes, 'box', 'boxes')} of {_many(classes, 'class', 'classes')}."


def problems(findings: Iterable[Finding], config: Config, repaired: Path | None = None) -> str:
    """Describe the most serious errors and warnings in a few sentences: their number, their effect and a remedy.

    ``config`` and ``repaired`` are those of :func:`remedy`.
    """
    kinds = by_kind(findings)
    serious = {kind: group for kind, group in kinds.items() if kind.severity != "note"}
    if not serious:
        return "No problem was found that would harm a training."
    counts = [
        _many(sum(len(group) for kind, group in serious.items() if kind.severity == severity), severity)
        for severity in ("error", "warning")
        if any(kind.severity == severity for kind in serious)
    ]
    first = ", the most serious first" if len(serious) > 1 else ""
    sentences = [f"Found {' and '.join(counts)}{first}."]
    for kind, group in list(serious.items())[:_KINDS]:
        effects = {finding.effect or kind.effect for finding in group}
        effect = effects.pop() if len(effects) == 1 else kind.effect
        advice = remedy(kind.code, config, repaired)
        end = f"; {advice}." if advice else "."
        sentences.append(f"{kind.title[0].upper()}{kind.title[1:]} ({len(group)} ×): {effect}{end}")
    if len(serious) > _KINDS:
        sentences.append(f"{_many(len(serious) - _KINDS, 'further kind')} of problems may matter less.")
    return " ".join(sentences)


def _many(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
