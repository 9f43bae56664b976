"""Summarize a dataset in a few lines: its counts, and the problems that its reader found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset
    from retinanet.data.problems import Problem, ProblemKind

# Largest numbers of classes, of problems of one kind, and of notes that are listed. Further items are only counted.
_CLASSES, _PROBLEMS, _NOTES = 6, 3, 10


def summary(dataset: Dataset) -> list[str]:
    """Return lines with the numbers of images, boxes and classes, and with the problems of each kind."""
    boxes, ignored = int((~dataset.ignore).sum()), int(dataset.ignore.sum())
    counts = sorted(dataset.class_counts().items(), key=lambda item: -item[1])
    names = ", ".join(f"{name} {count}" for name, count in counts[:_CLASSES]) + (" …" if len(counts) > _CLASSES else "")
    regions = f", {ignored} ignore region{'s' * (ignored != 1)}" if ignored else ""
    lines = [f"{dataset.name}: {len(dataset)} images, {boxes} boxes ({names}){regions}"]
    kinds: dict[ProblemKind, list[Problem]] = {}
    for problem in dataset.problems:
        kinds.setdefault(problem.kind, []).append(problem)
    for kind, found in sorted(kinds.items(), key=lambda item: not item[0].sign):
        if kind.sign:
            lines += [f"{kind.severity}: {kind.title}, {kind.action}: {p.where}: {p.message}" for p in found]
            continue
        if kind.counted:
            lines += [f"  {p.count} × {kind.title}, {kind.action}: {p.message}; first {p.where}" for p in found]
            continue
        lines.append(f"  {len(found)} × {kind.title}, {kind.action}:")
        lines += [f"    {problem}" for problem in found[:_PROBLEMS]]
        if len(found) > _PROBLEMS:
            lines.append(f"    … and {len(found) - _PROBLEMS} more")
    return lines


def note_lines(notes: Sequence[str]) -> list[str]:
    """Return the first notes as lines, and a line with the number of further notes."""
    lines = [f"note: {note}" for note in notes[:_NOTES]]
    if len(notes) > _NOTES:
        lines.append(f"note: … and {len(notes) - _NOTES} more")
    return lines
