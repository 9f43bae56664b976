"""Lines about an inspection for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retinanet.inspection.dataset_inspection import Inspection
from retinanet.inspection.findings import Finding, by_kind
from retinanet.inspection.survey import REACHED, Survey

# Largest number of lines for the findings, and largest number of cases shown for each kind.
_LINES, _CASES = 31, 2

# Largest number of classes named in the line of a split.
_CLASSES = 4


def inspection_lines(inspection: Inspection) -> Iterator[str]:
    """Yield the lines: splits, anchors, findings."""
    for split, parents in inspection.unions.items():
        yield f"{split}: not inspected, because its images are those of {' and '.join(parents)}"
    for split, survey in inspection.surveys.items():
        yield _split_line(split, survey)
    yield from _density_line(inspection)
    yield "Anchors are the fixed boxes that the detector starts from. IoU is the overlap of two boxes, from 0 to 1."
    yield "Small boxes have an area under 32×32 pixels in the network's input, and large boxes 96×96 pixels or more."
    yield "Positive anchors are trained to find an object. Anchor coverage of each split:"
    for split, survey in inspection.surveys.items():
        yield from _coverage_lines(split, survey)
    split = next(iter(inspection.surveys))
    for sentence in inspection.loss_balance:
        yield f"  {split}: {sentence}"
    yield from finding_lines(inspection.findings)


def finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a line for each kind of finding, and lines for its first cases."""
    groups = list(by_kind(findings).items())
    if not groups:
        yield "No findings."
    room = _LINES - len(groups)
    for kind, group in groups:
        effects = {finding.effect or kind.effect for finding in group}
        effect = effects.pop() if len(effects) == 1 else kind.effect
        yield f"{kind.severity}: {len(group)} × {kind.title}. Effect: {effect}."
        cases = group[: max(0, min(_CASES if room > len(groups) else 1, room))]
        room -= len(cases)
        for finding in cases:
            yield f"    {finding.where}: {finding.what}"


def _split_line(split: str, survey: Survey) -> str:
    """Images, boxes and classes of a split."""
    counts = survey.per_image
    classes = sorted(survey.dataset.class_counts().items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name}: {count}" for name, count in classes[:_CLASSES])
    more = " …" if len(classes) > _CLASSES else ""
    imbalance = f", class imbalance {survey.imbalance:.1f} : 1" if survey.imbalance > 1 else ""
    return (
        f"{split}: {len(counts)} images, {int((counts == 0).sum())} of them without objects; "
        f"{int(counts.sum())} boxes{f' ({listed}{more})' if counts.any() else ''}{imbalance}"
    )


def _density_line(inspection: Inspection) -> Iterator[str]:
    """The densest image of the first split, and the limit on detections that a training would choose."""
    split, survey = next(iter(inspection.surveys.items()))
    densest = int(survey.per_image.argmax())
    yield (
        f"densest image of {split}: {survey.per_image[densest]} objects ({survey.dataset.files[densest]}); a training "
        f"would allow {inspection.max_detections} detections per image (--decode.max-detections)"
    )


def _coverage_lines(split: str, survey: Survey) -> Iterator[str]:
    """How many boxes have an overlapping anchor, and how many get a positive anchor."""
    groups = [group for group in survey.coverage() if group.by != "class"]
    if not groups:
        return
    every, sizes = groups[0], ", ".join(f"{group.name.split(' (')[0]} {group.reached:.1%}" for group in groups[1:])
    yield (
        f"  {split}: {every.reached:.1%} of the boxes have an anchor with IoU ≥ {REACHED:g} ({sizes}). "
        f"With the current settings {every.assigned:.1%} get at least one positive anchor."
    )
