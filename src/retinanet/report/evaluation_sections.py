"""The tables and drawings of an evaluation's page, as values that ``templates/evaluation.html`` writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retinanet.evaluation.analysis import Analysis, ClassResult
from retinanet.evaluation.curves import RECALLS, SCORES
from retinanet.evaluation.error_kinds import ERROR_KINDS, TOTALS
from retinanet.evaluation.matching import Floats, Ints
from retinanet.evaluation.slices import Slice
from retinanet.report import svg
from retinanet.report.html import number
from retinanet.report.svg import Drawing, Line

# Number of classes that are drawn. Other classes are only in tables.
SHOWN = 10

# Lowest score in the second histogram. Most detections have lower scores.
_HIGH_SCORE = 0.3

# Number of confusions that are listed if the matrix leaves out classes.
_CONFUSIONS = 20


@dataclass(frozen=True)
class ClassRow:
    """A class and its color in the drawings. The color is ``None`` for a class that is not drawn."""

    result: ClassResult
    color: str | None


@dataclass(frozen=True)
class ErrorRow:
    """A kind of error with its count, its cost, and the width of its bar in rem."""

    code: str
    meaning: str
    count: int
    cost: float
    bar: float


@dataclass(frozen=True)
class Thresholds:
    """Curves against the score threshold, and precision and recall at the best threshold."""

    charts: list[Drawing]
    precision: float
    recall: float
    classes: list[ClassResult]


@dataclass(frozen=True)
class ScoreBin:
    """True and false positives with a score between two bounds."""

    low: float
    high: float
    tp: int
    fp: int


@dataclass(frozen=True)
class CalibrationBin:
    """The detections with a score between two bounds."""

    low: float
    high: float
    count: int
    score: float
    precision: float


@dataclass(frozen=True)
class SliceRow:
    """A group of objects. ``first`` marks the first group of each division, such as size."""

    result: Slice
    first: bool


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix. Its share of the row in percent is the opacity of its shade."""

    count: int
    share: int


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of the largest classes, and the most frequent confusions if classes were left out."""

    titles: list[str]
    rows: list[list[Cell]]
    frequent: list[tuple[str, str, int]] | None


def shown_classes(analysis: Analysis) -> list[int]:
    """Choose up to ten classes with objects, those with the most objects first."""
    return _by_objects(analysis, _known(analysis))[:SHOWN]


def class_rows(analysis: Analysis) -> list[ClassRow]:
    """List the classes with objects or detections, those with the most objects first."""
    colors = _colors(analysis)
    order = _by_objects(analysis, range(len(analysis.classes)))
    results = [(k, analysis.classes[k]) for k in order]
    return [ClassRow(each, colors.get(k)) for k, each in results if each.objects or each.detections]


def error_rows(analysis: Analysis) -> list[ErrorRow]:
    """List TIDE's kinds of errors with their counts and costs."""
    costs, counts = analysis.errors.costs, analysis.errors.counts
    most = max(0.001, *np.nan_to_num(list(costs.values())).tolist())
    meanings = {**{code: kind.meaning for code, kind in ERROR_KINDS.items()}, **TOTALS}
    return [
        ErrorRow(code, meaning, counts[code], costs[code], 6 * max(0.0, float(np.nan_to_num(costs[code]))) / most)
        for code, meaning in meanings.items()
    ]


def precision_recall_charts(analysis: Analysis) -> list[Drawing]:
    """Draw precision against recall, one chart for each IoU."""
    shown, colors = shown_classes(analysis), _colors(analysis)
    charts = []
    for iou, curves in analysis.curves.items() if shown else ():
        lines = [Line(analysis.classes[k].name, RECALLS, curves[k], colors[k]) for k in shown]
        areas = [f"{analysis.classes[k].name} {number(float(curves[k].mean()))}" for k in shown]
        if len(_known(analysis)) > 1:
            lines.append(_mean_line(analysis, RECALLS, curves))
        label = f"Precision against recall at an IoU of {iou}. Area under the curve: {', '.join(areas)}."
        charts.append(svg.line_chart(lines, "recall", "precision", f"IoU of at least {iou}", label))
    return charts


def thresholds(analysis: Analysis) -> Thresholds | None:
    """Draw F1, precision and recall against the score threshold; ``None`` without objects."""
    known = _known(analysis)
    if not known:
        return None
    best, values = analysis.threshold, analysis.thresholds
    precision, recall, f1 = (_mean(each, known) for each in (values.precision, values.recall, values.f1))
    at = int(np.argmin(np.abs(SCORES - best)))
    charts = [_f1_chart(analysis)] if len(known) > 1 else []
    lines = [
        Line("precision", SCORES, precision, svg.TEXT, dashes="7 4"),
        Line("recall", SCORES, recall, svg.TEXT, dashes="2 3"),
        Line("F1", SCORES, f1, svg.TEXT, thick=True, mark=best),
    ]
    what = "Mean over the classes" if len(known) > 1 else analysis.classes[known[0]].name
    at_best = f"At {best:.2f}: precision {number(float(precision[at]))}, recall {number(float(recall[at]))}."
    charts.append(svg.line_chart(lines, "score threshold", "", what, f"{what} against the score threshold. {at_best}"))
    classes = [analysis.classes[k] for k in _by_objects(analysis, known)]
    return Thresholds(charts, float(precision[at]), float(recall[at]), classes)


def score_charts(analysis: Analysis) -> list[Drawing]:
    """Draw histograms of the scores of true and false positives: all scores, then only high ones."""
    tp, fp = (part.tolist() for part in analysis.histogram)
    edges = np.linspace(0, 1, len(tp) + 1)
    parts = [("true positives", tp, svg.TRUE_POSITIVE), ("false positives", fp, svg.FALSE_POSITIVE)]
    label = f"Detections by score: {sum(tp)} true positives, {sum(fp)} false positives."
    charts = [svg.stacked_bars(edges, parts, "score", "detections", "all scores", label)]
    first = int(np.searchsorted(edges, _HIGH_SCORE))
    if sum(tp[first:]) + sum(fp[first:]):
        high = [(name, [0] * first + counts[first:], color) for name, counts, color in parts]
        counted = f"{sum(tp[first:])} true positives, {sum(fp[first:])} false positives"
        label = f"Detections with a score of at least {_HIGH_SCORE:g}: {counted}."
        charts.append(svg.stacked_bars(edges, high, "score", "detections", f"scores from {_HIGH_SCORE:g}", label))
    return charts


def score_bins(analysis: Analysis) -> list[ScoreBin]:
    """List the bins of the histogram that are not empty."""
    tp, fp = (part.tolist() for part in analysis.histogram)
    edges = np.linspace(0, 1, len(tp) + 1).tolist()
    return [ScoreBin(edges[k], edges[k + 1], tp[k], fp[k]) for k in range(len(tp)) if tp[k] or fp[k]]


def calibration_chart(analysis: Analysis) -> Drawing | None:
    """Draw the reliability diagram; ``None`` without detections."""
    each = analysis.calibration
    if not each.counts.sum():
        return None
    label = f"Reliability diagram: precision against score. Expected calibration error {number(each.error)}."
    caption = "bars: precision; rings: at the mean score of the bin; dashed line: ideal"
    return svg.reliability(each.counts.tolist(), each.scores, each.precision, caption, label)


def calibration_bins(analysis: Analysis) -> list[CalibrationBin]:
    """List the bins of the reliability diagram."""
    each = analysis.calibration
    edges = np.linspace(0, 1, len(each.counts) + 1).tolist()
    columns = zip(each.counts.tolist(), each.scores.tolist(), each.precision.tolist(), strict=True)
    return [CalibrationBin(edges[k], edges[k + 1], *column) for k, column in enumerate(columns)]


def slice_rows(analysis: Analysis) -> list[SliceRow]:
    """List the groups of objects, division by division."""
    divisions = dict.fromkeys(each.group for each in analysis.slices)
    grouped = [[each for each in analysis.slices if each.group == division] for division in divisions]
    return [SliceRow(each, first=k == 0) for group in grouped for k, each in enumerate(group)]


def confusion(analysis: Analysis) -> Confusion:
    """Build the confusion matrix of the ten classes with the most objects; the other classes are combined."""
    matrix, names = analysis.confusion, [each.name for each in analysis.classes]
    some = [k for k, each in enumerate(analysis.classes) if each.objects or matrix[:, k].any()]
    shown = _by_objects(analysis, some)
    kept, rest = shown[:SHOWN], shown[SHOWN:]
    groups = [[k] for k in kept] + ([rest] if rest else []) + [[len(names)]]
    titles = [names[k] for k in kept] + ([f"{len(rest)} others"] if rest else []) + ["nothing"]
    rows = []
    for members in groups:
        counts = [int(matrix[np.ix_(members, columns)].sum()) for columns in groups]
        rows.append([Cell(count, round(60 * count / sum(counts)) if count else 0) for count in counts])
    return Confusion(titles, rows, _frequent_confusions(matrix, names) if rest else None)


def _frequent_confusions(matrix: Ints, names: Sequence[str]) -> list[tuple[str, str, int]]:
    pairs = matrix[: len(names), : len(names)].copy()
    np.fill_diagonal(pairs, 0)
    order = np.argsort(-pairs, axis=None, kind="stable")[:_CONFUSIONS]
    rows, columns = np.unravel_index(order, pairs.shape)
    cells = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(names[row], names[column], int(pairs[row, column])) for row, column in cells if pairs[row, column]]


def _f1_chart(analysis: Analysis) -> Drawing:
    f1, colors = analysis.thresholds.f1, _colors(analysis)
    lines = []
    for k in shown_classes(analysis):
        best = analysis.classes[k].threshold
        mark = None if math.isnan(best) else best
        lines.append(Line(analysis.classes[k].name, SCORES, f1[k], colors[k], mark=mark))
    lines.append(_mean_line(analysis, SCORES, f1, analysis.threshold))
    label = f"F1 against the score threshold. The mean over the classes is best at {analysis.threshold:.2f}."
    return svg.line_chart(lines, "score threshold", "F1", "F1; dots: the best threshold", label)


def _colors(analysis: Analysis) -> dict[int, str]:
    """The color of each class that is drawn. Up to ten classes have the same colors as in the example images."""
    few = len(analysis.classes) <= SHOWN
    return {k: svg.CLASS_COLORS[k if few else place] for place, k in enumerate(shown_classes(analysis))}


def _by_objects(analysis: Analysis, labels: Sequence[int]) -> list[int]:
    return sorted(labels, key=lambda k: (-analysis.classes[k].objects, k))


def _known(analysis: Analysis) -> list[int]:
    """The classes with objects."""
    return [k for k, each in enumerate(analysis.classes) if each.objects]


def _mean(values: Floats, known: Sequence[int]) -> Floats:
    """Average ``values`` ``(K, S)`` over the classes ``known``, without NaN; NaN where all are NaN."""
    chosen = values[list(known)]
    there = ~np.isnan(chosen)
    counts = there.sum(axis=0)
    sums = np.where(there, chosen, 0).sum(axis=0)
    result: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return result


def _mean_line(analysis: Analysis, x: Floats, values: Floats, mark: float | None = None) -> Line:
    return Line("mean of all classes", x, _mean(values, _known(analysis)), svg.TEXT, thick=True, mark=mark)
