"""The results of an evaluation and of a comparison on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from retinanet.evaluation.analysis import Analysis
from retinanet.evaluation.coco_ap import Metrics
from retinanet.evaluation.compare import Change, Comparison
from retinanet.evaluation.limits import Limits
from retinanet.evaluation.model_evaluation import Evaluation
from retinanet.report.advice import costliest, describe_error
from retinanet.report.comparison_page import verdict
from retinanet.report.html import metric, percent, signed

# Largest number of classes in a table. The JSON file has all classes.
_CLASSES = 20

# Largest number of names in a sentence.
_NAMES = 8


def evaluation_lines(evaluation: Evaluation) -> Iterator[str | Table]:
    """Give the metrics, the classes, the costliest errors and the best threshold of an evaluation."""
    metrics = evaluation.metrics
    yield from _limit_lines(evaluation.limits)
    for kind in ("AP", "AR"):  # two rows of six metrics fit into narrow terminals
        names = [name for name in metrics.summary if name.startswith(kind)]
        table = Table(box=None, pad_edge=False)
        for name in names:
            table.add_column(name, justify="right", min_width=5)
        table.add_row(*(metric(metrics.summary[name]) for name in names))
        yield table
    if metrics.per_class:
        yield f"Pascal VOC: mAP {metrics.voc['mAP']:.3f}, by 11 points {metrics.voc['mAP11']:.3f}"
    if len(metrics.per_class) > 1:
        yield _class_table(metrics)
        if len(metrics.per_class) > _CLASSES:
            yield f"… and {len(metrics.per_class) - _CLASSES} more classes in metrics.json"
    summary = _summary(evaluation.analysis)
    if summary:
        yield summary


def comparison_lines(comparison: Comparison) -> Iterator[str | Table]:
    """Give the metrics of both detectors, their classes and the verdict of a comparison."""
    yield f"A: {comparison.names[0]}\nB: {comparison.names[1]}"
    for names, reason in zip(comparison.only, ("only A has", "only B has", "neither has"), strict=True):
        if names:
            listed = ", ".join(names[:_NAMES]) + (" …" if len(names) > _NAMES else "")
            yield f"note: not compared, because {reason} these classes: {listed}"
    yield from _limit_lines(*comparison.limits)
    total = _table(["", "A", "B", "B − A", "95% interval", "B better"])
    for name, change in comparison.total.items():
        total.add_row(name, *_cells(change), percent(change.better))
    for name in ("AP@100", "AP50@100"):
        if name in comparison.metrics[0].summary:
            a, b = (each.summary[name] for each in comparison.metrics)
            total.add_row(name, metric(a), metric(b), signed(b - a))
    yield total
    if len(comparison.per_class) > 1:
        boxes = comparison.dataset.class_counts()
        table = _table(["class", "boxes", "AP of A", "AP of B", "B − A", "95% interval"])
        rows = sorted(comparison.per_class.items(), key=lambda item: -boxes[item[0]])
        for name, changes in rows[:_CLASSES]:
            table.add_row(name, str(boxes[name]), *_cells(changes["AP"]))
        yield table
        if len(rows) > _CLASSES:
            yield f"… and {len(rows) - _CLASSES} more classes in compare.json"
    yield verdict(comparison.total["AP"])


def _limit_lines(*limits: Limits) -> Iterator[str]:
    """Say whether all detections count, and how many images of each detector reached a limit."""
    if limits[0].counted is None:
        yield limits[0].protocol()
    for name, each in zip("AB", limits, strict=False):
        for note in each.notes(brief=True):
            yield f"note: {f'{name}: ' if len(limits) > 1 else ''}{note}"


def _class_table(metrics: Metrics) -> Table:
    table = _table(["class", "boxes", "AP", "AP50"])
    rows = sorted(metrics.per_class.items(), key=lambda item: -item[1]["boxes"])
    for name, row in rows[:_CLASSES]:
        table.add_row(name, f"{row['boxes']:.0f}", f"{row['AP']:.3f}", f"{row['AP50']:.3f}")
    return table


def _summary(analysis: Analysis) -> str:
    code = costliest(analysis)
    parts = [describe_error(analysis, code)] if code else []
    if analysis.f1 > 0:
        parts.append(f"best threshold: {analysis.threshold:.2f} (F1 {analysis.f1:.3f})")
    return "; ".join(parts)


def _table(head: Sequence[str]) -> Table:
    """A table whose first column is text."""
    table = Table(box=None, pad_edge=False)
    for column, name in enumerate(head):
        table.add_column(name, justify="right" if column else "left")
    return table


def _cells(change: Change) -> list[str]:
    interval = f"{signed(change.low)} to {signed(change.high)}"
    return [metric(change.a), metric(change.b), signed(change.delta), interval]
