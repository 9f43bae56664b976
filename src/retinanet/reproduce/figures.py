"""Draw the plots of results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retinanet.files import write_atomically
from retinanet.reproduce.results import Results
from retinanet.reproduce.rows import EXPERIMENTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors of the curves in order (Okabe and Ito). Color-blind people can tell them apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_OURS, _PAPER = "#0072b2", "#555555"


def draw(results: Results, path: Path) -> None:
    """Draw ``NAME.png``."""
    from matplotlib.figure import Figure

    figures: dict[str, Callable[[Figure, Results], None]] = {
        "fig1": _losses,
        "fig2": _speed,
        "fig4": _distribution,
        "divergence": _divergence,
    }
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figures.get(results.name, _table)(figure, results)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def _table(figure: Figure, results: Results) -> None:
    """Draw the paper's AP and ours in two panels, with a line for each setting."""
    rows = results.rows
    figure.set_size_inches(10, 1.5 + 0.42 * len(rows))
    paper, here = figure.subplots(1, 2, sharey=True)
    _points(paper, [(i, row.paper, [row.paper]) for i, row in enumerate(rows) if row.paper is not None], _PAPER)
    paper.set(title=f"the paper: {results.where}", xlabel="AP")
    _ours(here, results)
    for axes in (paper, here):
        axes.set_yticks(range(len(rows)), [row.setting for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
    for i, row in enumerate(rows):
        if row.paper is None:
            _note(paper, i, "diverges" if row.paper_diverges else "not in the paper")


def _ours(axes: Axes, results: Results) -> None:
    _points(axes, [(i, row.mean(), row.aps()) for i, row in enumerate(results.rows) if row.aps()], _OURS)
    for i, row in enumerate(results.rows):
        if row.diverged:
            _note(axes, i, f"{row.diverged} of {len(row.runs)} diverged")
        elif not row.runs:
            _note(axes, i, "not run")
    seeds = len(results.seeds)
    axes.set(title=f"here: {results.data}, {seeds} seed{'s' * (seeds > 1)}", xlabel="AP (bar: mean; dots: seeds)")


def _points(axes: Axes, points: list[tuple[int, Any, list[Any]]], color: str) -> None:
    """Draw each mean as a short bar and its values as dots. The axis starts at 0, so that lengths can be compared."""
    for place, mean, values in points:
        axes.plot([0, mean], [place, place], color=color, linewidth=1.2, alpha=0.35)
        axes.plot([mean, mean], [place - 0.25, place + 0.25], color=color, linewidth=2.5)
        axes.plot(values, [place] * len(values), "o", color=color, markersize=4, alpha=0.7)
        label = f"{mean:.1f}"
        axes.annotate(label, (max(values), place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    highest = max((max(values) for _, _, values in points), default=1.0)
    axes.set_xlim(0, max(1.0, 1.15 * highest))


def _note(axes: Axes, place: int, text: str) -> None:
    # Place the text at the left end, slightly below the line, where no mean covers it.
    axes.annotate(text, (0, place), (4, -9), textcoords="offset points", va="center", fontsize=7, color="#a33")


def _losses(figure: Figure, results: Results) -> None:
    """Draw Figure 1, and Figure 5 of the appendix beside it."""
    by_probability, by_logit = figure.subplots(1, 2)
    for color, (gamma, values) in zip(COLORS, results.extra["fl"].items(), strict=False):
        name = f"γ = {gamma}" + (" (cross entropy)" if gamma == "0" else "")
        by_probability.plot(results.extra["p_t"], values, color=color, label=name)
    by_probability.set(
        title="Figure 1", xlabel="probability of the true class, p_t", ylabel="loss", ylim=(0, 5), xlim=(0, 1)
    )
    by_probability.axvspan(0.6, 1, color="#009e73", alpha=0.07, linewidth=0)
    by_probability.annotate("well-classified", (0.8, 2.4), ha="center", fontsize=8, color="#555555")
    for color, (name, values) in zip(COLORS, results.extra["variants"].items(), strict=False):
        by_logit.plot(results.extra["x_t"], values, color=color, label=name)
    by_logit.set(title="Figure 5: FL and FL*", xlabel="logit of the true class, x_t", ylabel="loss", ylim=(0, 5))
    by_logit.axvline(0, color="#999999", linewidth=0.8)
    for axes in (by_probability, by_logit):
        axes.legend(frameon=False, fontsize=9)


def _speed(figure: Figure, results: Results) -> None:
    """Draw AP against milliseconds, the paper's and ours on separate axes."""
    paper, here = figure.subplots(1, 2)
    for color, depth in zip((_PAPER, "#d55e00"), ("R-50", "R-101"), strict=True):
        rows = [row for row in EXPERIMENTS["fig2"].rows if row.setting.startswith(f"{depth},")]
        _line(paper, [(row.milliseconds, row.ap, row.setting.split(", ")[1]) for row in rows], color, depth)
    paper.set(title="the paper: COCO test-dev, one M40", xlabel="ms per image", ylabel="AP")
    found = results.extra["speed"]
    points = [
        (found[row.setting]["median"], row.mean(), row.setting.split(" (")[0].split(", ")[-1])
        for row in results.rows
        if row.setting in found
    ]
    _line(here, [point for point in points if point[1] is not None], _OURS, results.base["model"]["backbone"])
    for row in results.rows:
        for ap in row.aps() if row.setting in found else []:
            here.plot(found[row.setting]["median"], ap, "o", color=_OURS, markersize=3, alpha=0.5)
    here.set(title=f"here: {results.data}", xlabel="ms per image, from file to detections", ylabel="AP", ylim=(0, None))
    here.set_xlim(0, 1.15 * max([point[0] for point in points], default=1))  # leaves room for the last label
    for axes in (paper, here):
        axes.legend(frameon=False, fontsize=9, loc="lower right")


def _line(axes: Axes, points: list[tuple[Any, Any, str]], color: str, label: str) -> None:
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", color=color, label=label)
    for i, (x, y, size) in enumerate(points):
        above = label == "R-101" and i > 0  # labels of the paper's two lines must not overlap
        axes.annotate(
            size, (x, y), (-34, 5) if above else (5, -10), textcoords="offset points", fontsize=8, color=color
        )


def _distribution(figure: Figure, results: Results) -> None:
    """Draw Figure 4: cumulative loss over the anchors, sorted from easy to hard."""
    found = results.extra.get("distribution")
    for axes, group in zip(figure.subplots(1, 2), ("foreground", "background"), strict=True):
        axes.set(
            title=f"{group} anchors", xlabel=f"fraction of {group}, easy to hard", ylabel="cumulative normalized loss"
        )
        axes.set(xlim=(0, 1), ylim=(0, 1))
        if found is None:
            axes.annotate("not measured", (0.5, 0.5), ha="center")
            continue
        for color, (gamma, values) in zip(COLORS, found[group]["curves"].items(), strict=False):
            axes.plot(np.linspace(0, 1, len(values)), values, color=color, label=f"γ = {gamma}")
        axes.set_title(f"{found[group]['anchors']:,} {group} anchors")
        axes.legend(frameon=False, fontsize=9, loc="upper left")


def _divergence(figure: Figure, results: Results) -> None:
    """Draw the losses of the first steps, with a line for each seed, and the resulting AP."""
    losses, precision = figure.subplots(1, 2, width_ratios=(3, 2))
    for color, row in zip(COLORS, results.rows, strict=False):
        label: str | None = row.setting
        for run in row.runs:
            steps = np.arange(1, len(run.losses) + 1)
            finite = np.isfinite(run.losses)
            losses.plot(steps[finite], np.array(run.losses)[finite], color=color, linewidth=0.9, alpha=0.8, label=label)
            if run.diverged is not None and finite.any() and run.diverged <= len(steps) + 1:
                losses.plot(steps[finite][-1], np.array(run.losses)[finite][-1], "x", color=color, markersize=9)
            label = None
    losses.set(title="loss of single batches (×: last finite loss)", xlabel="step", ylabel="loss", yscale="log")
    if losses.lines:
        losses.legend(frameon=False, fontsize=8)
    _ours(precision, results)
    precision.set_yticks(range(len(results.rows)), [row.setting for row in results.rows], fontsize=8)
    precision.set_ylim(len(results.rows) - 0.5, -0.5)
