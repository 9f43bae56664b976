"""Lines about an inspection for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from retinanet.inspection.dataset_inspection import Inspection
from retinanet.inspection.findings import Finding, by_kind
from retinanet.inspection.paragraph import contents, problems

# Largest number of lines for the findings, and largest number of cases shown for each kind.
_LINES, _CASES = 24, 2


def inspection_lines(inspection: Inspection, repaired: Path | None = None) -> Iterator[str]:
    """Yield the lines: a paragraph about what matters most, findings, notes. The page has all numbers.

    ``repaired`` is the folder of the repaired copy, if one is written.
    """
    serious = problems(inspection.findings, inspection.config, repaired)
    yield f"{inspection.name}: {contents(inspection.splits)} {serious}"
    for split, parents in inspection.unions.items():
        yield f"{split}: not inspected, because its images are those of {' and '.join(parents)}"
    yield from _density_line(inspection)
    yield from finding_lines(inspection.findings)
    yield from (f"note: {note}" for note in inspection.notes)


def finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a line for each kind of finding, and lines for its first cases."""
    groups = list(by_kind(findings).items())
    room = _LINES - len(groups)
    for kind, group in groups:
        effects = {finding.effect or kind.effect for finding in group}
        effect = effects.pop() if len(effects) == 1 else kind.effect
        yield f"{kind.severity}: {len(group)} × {kind.title}. Effect: {effect}."
        cases = group[: max(0, min(_CASES if room > len(groups) else 1, room))]
        room -= len(cases)
        for finding in cases:
            yield f"    {finding.where}: {finding.what}"


def _density_line(inspection: Inspection) -> Iterator[str]:
    """The densest image of the first split, and the limit on detections that a training would choose."""
    split, survey = next(iter(inspection.surveys.items()))
    densest = int(survey.per_image.argmax())
    yield (
        f"densest image of {split}: {survey.per_image[densest]} objects ({survey.dataset.files[densest]}); a training "
        f"would allow {inspection.max_detections} detections per image (--decode.max-detections)"
    )
