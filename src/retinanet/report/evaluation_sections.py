"""The sections of a report that show numbers: tables and drawings."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from retinanet.evaluation.analysis import Analysis, ClassResult
from retinanet.evaluation.curves import CONFIDENCE, FEWEST_IMAGES, RECALLS, SCORES
from retinanet.evaluation.matching import Floats, Ints
from retinanet.report import svg as plots
from retinanet.report.advice import ERRORS
from retinanet.report.svg import Line

# Classes that are drawn; the others are in tables.
SHOWN = 10

Numbers = Sequence[str]


def shown_classes(analysis: Analysis) -> list[int]:
    """Up to ten classes with objects, those with the most first."""
    known = [k for k, each in enumerate(analysis.classes) if each.objects]
    return sorted(known, key=lambda k: (-analysis.classes[k].objects, k))[:SHOWN]


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash for what cannot be measured."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(name: str, head: Numbers, rows: Iterable[Numbers], left: Collection[int] = ()) -> str:
    """A table that can be scrolled sideways; cells are HTML, ``name`` is its id, the columns ``left`` hold text."""
    kinds = [' class="left"' if column in left else "" for column in range(len(head))]
    cells = ("".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    top = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, head, strict=True))
    return f'<div class="scroll"><table id="{name}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def classes(analysis: Analysis) -> str:
    """Every class with its numbers and intervals."""
    order = sorted(range(len(analysis.classes)), key=lambda k: (-analysis.classes[k].objects, k))
    rows = [_class_row(analysis, k) for k in order if analysis.classes[k].objects or analysis.classes[k].detections]
    head = ["class", "objects", "detections", "AP", "", f"{CONFIDENCE:.0%} interval", "AP50", "interval", "AP75"]
    first = table("classes", head, rows[:SHOWN])
    more = table("more-classes", head, rows[SHOWN:])
    rest = f"<details><summary>{len(rows) - SHOWN} more classes</summary>{more}</details>" if rows[SHOWN:] else ""
    return f"""<p>Detections are those that count, right or wrong at an IoU of 0.5; no class has more than 100 an image.
Intervals: {analysis.resamples} times as many images were drawn from these as there are, with repetition; the AP lay in
the interval in {CONFIDENCE:.0%} of the draws. They say how much hangs on which images were measured. A class in fewer
than {FEWEST_IMAGES} images has none.</p>{first}{rest}"""


def _class_row(analysis: Analysis, label: int) -> Numbers:
    each = analysis.classes[label]
    return [
        _swatch(analysis, label) + html.escape(each.name),
        str(each.objects),
        str(each.detections),
        number(each.AP),
        plots.interval_bar(each.AP, each.AP_interval) if each.objects else "",
        _interval(each.AP_interval),
        number(each.AP50),
        _interval(each.AP50_interval),
        number(each.AP75),
    ]


def _interval(bounds: tuple[float, float] | None) -> str:
    return "–" if bounds is None else _range(*bounds)


def _range(low: float, high: float, digits: int = 3) -> str:
    return f'<span class="range">{low:.{digits}f}–{high:.{digits}f}</span>'


def _color(analysis: Analysis, label: int) -> str:
    """Of up to ten classes the one they have in pictures; of more, one for each that is drawn."""
    place = label if len(analysis.classes) <= SHOWN else shown_classes(analysis).index(label)
    return plots.CLASS_COLORS[place]


def _swatch(analysis: Analysis, label: int) -> str:
    if label not in shown_classes(analysis):
        return ""
    return f'<i class="swatch" style="background:{_color(analysis, label)}"></i>'


def precision_recall(analysis: Analysis) -> str:
    """Precision against recall, at two IoUs."""
    shown = shown_classes(analysis)
    if not shown:
        return "<p>There are no objects.</p>"
    charts = []
    for iou, curves in analysis.curves.items():
        lines = [Line(analysis.classes[k].name, RECALLS, curves[k], _color(analysis, k)) for k in shown]
        areas = [f"{analysis.classes[k].name} {number(float(curves[k].mean()))}" for k in shown]
        if len(_known(analysis)) > 1:
            lines.append(_mean_line(analysis, RECALLS, curves))
        caption = f"IoU of at least {iou}"
        told = f"Precision against recall at an IoU of {iou}. Area under the curve: {', '.join(areas)}."
        charts.append(plots.line_chart(lines, "recall", "precision", caption, told))
    return (
        "<p>From left to right the threshold falls: more objects are found, more detections are wrong. A curve that "
        f"falls to 0 early shows objects that no threshold finds.{_only(analysis)}</p>"
        f'<div class="charts">{"".join(charts)}</div>'
    )


def thresholds(analysis: Analysis) -> str:
    """F1, precision and recall against the threshold, and the best one of each class."""
    shown, known = shown_classes(analysis), _known(analysis)
    if not shown:
        return "<p>There are no objects.</p>"
    each = analysis.thresholds
    f1, precision, recall = each.f1, each.precision, each.recall
    charts = []
    if len(known) > 1:
        lines = [
            Line(analysis.classes[k].name, SCORES, f1[k], _color(analysis, k), mark=_mark(analysis.classes[k]))
            for k in shown
        ]
        lines.append(_mean_line(analysis, SCORES, f1, analysis.threshold))
        told = f"F1 against the score threshold. The mean over the classes is best at {analysis.threshold:.2f}."
        charts.append(plots.line_chart(lines, "score threshold", "F1", "F1; dots: the best threshold", told))
    lines = [
        Line("precision", SCORES, _mean(precision, known), plots.TEXT, dashes="7 4"),
        Line("recall", SCORES, _mean(recall, known), plots.TEXT, dashes="2 3"),
        Line("F1", SCORES, _mean(f1, known), plots.TEXT, thick=True, mark=analysis.threshold),
    ]
    what = "Mean over the classes" if len(known) > 1 else analysis.classes[known[0]].name
    at = int(np.argmin(np.abs(SCORES - analysis.threshold)))
    p, r = (float(_mean(values, known)[at]) for values in (precision, recall))
    told = f"{what} against the threshold. At {analysis.threshold:.2f}: precision {number(p)}, recall {number(r)}."
    charts.append(plots.line_chart(lines, "score threshold", "", what, told))
    rows = [
        [html.escape(c.name), number(c.threshold, 2), number(c.f1), number(c.precision), number(c.recall)]
        for c in (analysis.classes[k] for k in sorted(known, key=lambda k: (-analysis.classes[k].objects, k)))
    ]
    head = ["class", "best threshold", "F1", "precision", "recall"]
    listed = table("thresholds", head, rows)
    if len(rows) > SHOWN:
        listed = f"<details><summary>The best threshold of each class</summary>{listed}</details>"
    return (
        "<p>Precision: the share of detections that are right. Recall: the share of objects that are found. F1: their "
        "harmonic mean. At an IoU of 0.5. The single threshold with the best "
        f'{"mean " if len(known) > 1 else ""}F1 is <b id="best-threshold">{analysis.threshold:.2f}</b> (F1 '
        f'<b id="best-f1">{number(analysis.f1)}</b>, precision {number(p)}, recall {number(r)}).{_only(analysis)}</p>'
        f'<div class="charts">{"".join(charts)}</div>{listed}'
    )


def scores(analysis: Analysis) -> str:
    """Histograms of right and wrong detections."""
    right, wrong = (part.tolist() for part in analysis.histogram)
    edges = np.linspace(0, 1, len(right) + 1)
    parts = [("right", right, plots.RIGHT), ("wrong", wrong, plots.WRONG)]
    told = f"Detections by score: {sum(right)} right, {sum(wrong)} wrong."
    charts = [plots.stacked_bars(edges, parts, "score", "detections", "all", told)]
    first = int(np.searchsorted(edges, 0.3))
    if sum(right[first:]) + sum(wrong[first:]):
        high = [(name, [0] * first + counts[first:], color) for name, counts, color in parts]
        told = f"Detections with a score from 0.3: {sum(right[first:])} right, {sum(wrong[first:])} wrong."
        charts.append(plots.stacked_bars(edges, high, "score", "detections", "only scores from 0.3", told))
    rows = [
        [_range(edges[k], edges[k + 1], 2), str(right[k]), str(wrong[k])]
        for k in range(len(right))
        if right[k] or wrong[k]
    ]
    listed = table("scores", ["score", "right", "wrong"], rows)
    return (
        "<p>The further right and wrong detections are apart, the easier a threshold is chosen. Right: at an IoU of at "
        f'least 0.5.</p><div class="charts">{"".join(charts)}</div><details><summary>Counts</summary>{listed}</details>'
    )


def errors(analysis: Analysis) -> str:
    """TIDE's kinds of errors and what they cost."""
    costs, counts = analysis.errors.costs, analysis.errors.counts
    most = max(0.001, *np.nan_to_num(list(costs.values())).tolist())
    rows = [
        [
            kind,
            meaning,
            str(counts[kind]),
            number(costs[kind]),
            f'<span class="bar" style="width:{6 * max(0.0, float(np.nan_to_num(costs[kind]))) / most:.2f}rem"></span>',
        ]
        for kind, meaning in ERRORS.items()
    ]
    return f"""<p>By how much would AP50 (now {number(analysis.AP50)}) rise if the errors of one kind, and only
these, were mended? Counts are of all scores; errors of low scores are many and cost little. Costs do not add up. The
last two lines are no kinds of their own. (TIDE, arXiv 2008.08115)</p>
{table("errors", ["kind", "what", "count", "costs AP50", ""], rows, left=(1, 4))}"""


def calibration(analysis: Analysis) -> str:
    """Reliability of the scores."""
    each = analysis.calibration
    if not each.counts.sum():
        return "<p>No detection counts as right or wrong.</p>"
    counts = each.counts.tolist()
    told = f"Reliability diagram, expected calibration error {number(each.error)}."
    chart = plots.reliability(
        counts, each.scores, each.precision, "bars: right; rings: at the mean score; dashes: ideal", told
    )
    edges = np.linspace(0, 1, len(counts) + 1)
    rows = [
        [_range(edges[k], edges[k + 1], 1), str(counts[k]), number(each.scores[k]), number(each.precision[k])]
        for k in range(len(counts))
    ]
    bins = table("calibration", ["score", "detections", "mean score", "share right"], rows)
    own = [[html.escape(c.name), number(c.calibration_error)] for c in analysis.classes if c.detections]
    per_class = table("class-calibration", ["class", "error"], own)
    if len(own) > SHOWN:
        per_class = f"<details><summary>Each class</summary>{per_class}</details>"
    return (
        "<p>Of detections with a score of 0.8, are 80 % right? Above the dashed line scores are too modest, below it "
        f'too sure. Expected calibration error: <b id="calibration-error">{number(each.error)}</b>, the mean distance '
        "from the line over all detections, most of which have low scores.</p>"
        f'<div class="charts">{chart}<div>{bins}{per_class}</div></div>'
    )


def slices(analysis: Analysis) -> str:
    """AP of parts of the dataset."""
    if not analysis.slices:
        return "<p>There are no objects.</p>"
    rows: list[Numbers] = []
    for group in dict.fromkeys(each.group for each in analysis.slices):
        for k, each in enumerate(part for part in analysis.slices if part.group == group):
            name = f"<b>{html.escape(group)}</b>: " if k == 0 else ""
            rows.append(
                [
                    name + html.escape(each.name),
                    str(each.objects),
                    str(each.detections),
                    number(each.AP),
                    plots.interval_bar(each.AP, None),
                    number(each.AP50),
                    f"{each.recall:.1%}",
                ]
            )
    head = ["part", "objects", "detections", "AP", "", "AP50", "found"]
    return (
        "<p>Each part alone: objects of other parts are neither to be found nor wrong to find. A part with few objects "
        f"says little. Found: at the threshold {analysis.threshold:.2f}. Neighbours are objects of any class.</p>"
        + table("slices", head, rows)
    )


def confusion(analysis: Analysis) -> str:
    """Which classes are taken for which, at the best single threshold."""
    shown = [k for k, each in enumerate(analysis.classes) if each.objects or analysis.confusion[:, k].any()]
    shown = sorted(shown, key=lambda k: (-analysis.classes[k].objects, k))
    names = [each.name for each in analysis.classes]
    matrix = analysis.confusion
    kept, rest = shown[:SHOWN], shown[SHOWN:]
    groups = [[k] for k in kept] + ([rest] if rest else []) + [[len(names)]]
    titles = [html.escape(names[k]) for k in kept] + ([f"{len(rest)} others"] if rest else []) + ["<i>nothing</i>"]
    merged = np.array([[matrix[np.ix_(rows, columns)].sum() for columns in groups] for rows in groups])
    lines = []
    for row, title in enumerate(titles):
        total = merged[row].sum()
        lines.append([title, *(_cell(merged[row, column], total) for column in range(len(groups)))])
    text = f"""<p>Detections with a score of at least {analysis.threshold:.2f}. Rows: what is annotated; columns: what
is detected there at an IoU of at least 0.5, whatever its class. The last column are objects not found, the last row
detections where no object is. Shades are shares of a row.</p>"""
    frequent = _most_confused(matrix, names) if rest else ""
    return text + table("confusion", ["annotated ↓ detected →", *titles], lines) + frequent


def _cell(count: int, total: int) -> str:
    share = count / total if total else 0
    return f'<span class="cell" style="--share:{60 * share:.0f}%">{count}</span>'


def _most_confused(matrix: Ints, names: Sequence[str]) -> str:
    pairs = matrix[: len(names), : len(names)].copy()
    np.fill_diagonal(pairs, 0)
    order = np.argsort(-pairs, axis=None, kind="stable")[:20]
    rows, columns = np.unravel_index(order, pairs.shape)
    found = [
        [html.escape(names[row]), html.escape(names[column]), str(pairs[row, column])]
        for row, column in zip(rows, columns, strict=True)
        if pairs[row, column]
    ]
    if not found:
        return "<p>No class is taken for another.</p>"
    head = ["annotated", "detected", "count"]
    return f"<p>The most frequent confusions:</p>{table('confusions', head, found, left=(1,))}"


def _known(analysis: Analysis) -> list[int]:
    return [k for k, each in enumerate(analysis.classes) if each.objects]


def _mean(values: Floats, known: Sequence[int]) -> Floats:
    """The mean over the classes ``known`` where each of ``values`` ``(K, S)`` is known; NaN where none is."""
    chosen = values[list(known)]
    there = ~np.isnan(chosen)
    counts = there.sum(axis=0)
    sums = np.where(there, chosen, 0).sum(axis=0)
    result: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return result


def _mean_line(analysis: Analysis, x: Floats, values: Floats, mark: float | None = None) -> Line:
    return Line("mean of all classes", x, _mean(values, _known(analysis)), plots.TEXT, thick=True, mark=mark)


def _mark(each: ClassResult) -> float | None:
    return None if math.isnan(each.threshold) else each.threshold


def _only(analysis: Analysis) -> str:
    count = len(_known(analysis))
    return f" Drawn are the {SHOWN} classes with the most objects of {count}." if count > SHOWN else ""
