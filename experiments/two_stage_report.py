"""The page and the plot of ``two_stage.py``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from peers import LOG, PEERS, RATES, best_rate
from retinanet.files import write_atomically, write_text
from retinanet.reproduce.figures import COLORS
from runs import SETS, SIZE, read_log
from two_stage import SEEDS, SIDES, SIZES, Measurements, Timing

NAMES = {
    "faster_rcnn": "Faster R-CNN (two stages)",
    "faster_rcnn_stride8": "Faster R-CNN without stride 4",
    "torchvision": "torchvision's RetinaNet",
    "paper": "paper",
    "paper_fitted": "paper, fitted anchors",
    "modern_focal": "modern, focal loss",
    "modern_flip": "modern, only flipped",
    "modern": "modern",
}
CONTROLS = ("faster_rcnn_stride8", "modern_flip")  # are listed only for the sets on which they were run
REPEATED = LOG.parent / "two_stage.jsonl"  # of runs that were trained again for their weights


@dataclass(frozen=True)
class Row:
    """The measurements of a side on a set at an input size.

    Attributes:
        aps: AP of each seed, in points; 0 for a run that diverged.
        small: AP of small objects (under 32² pixels of the image), in points; None where there are none.
        logged: seeds whose AP is that of the log of the training, because the weights were not evaluated.
        diverged: number of seeds whose loss became NaN or infinite.
        timing: milliseconds per image.
    """

    set: str
    side: str
    size: int
    aps: dict[int, float]
    small: list[float]
    logged: tuple[int, ...]
    diverged: int
    timing: Timing | None

    @property
    def mean(self) -> float:
        """Mean AP over the seeds."""
        return statistics.mean(self.aps.values())


def row_of(measured: Measurements, runs: list[dict[str, Any]], data_set: str, side: str, size: int) -> Row:
    """Collect the measurements of a side; ``runs`` are the lines of the log."""
    rate = best_rate(data_set, side) if side in PEERS else None
    found = [e for e in measured.evaluations if (e.set, e.side, e.size, e.lr) == (data_set, side, size, rate)]
    aps = {e.seed: 100 * e.summary["AP"] for e in found}
    small = [100 * e.summary["APs"] for e in found if e.summary["APs"] >= 0]
    mine = runs_of(runs, data_set, side)
    logged = {r["spec"]["seed"]: 100 * r["AP"] for r in mine} if size == SIZE else {}
    diverged = {r["spec"]["seed"]: 0.0 for r in mine if "diverged" in r}
    timing = [t for t in measured.timings if (t.set, t.side, t.size) == (data_set, side, size)]
    unevaluated = tuple(sorted(logged.keys() - aps.keys() - diverged.keys()))
    aps = logged | aps | diverged
    return Row(data_set, side, size, aps, small, unevaluated, len(diverged), timing[0] if timing else None)


def runs_of(runs: list[dict[str, Any]], data_set: str, side: str) -> list[dict[str, Any]]:
    """The runs of a side in the log, with the best learning rate."""
    rate = best_rate(data_set, side) if side in PEERS else None
    return [r for r in runs if (r["spec"]["set"], r["spec"]["side"], r["spec"].get("lr")) == (data_set, side, rate)]


def write_report(measured: Measurements, result: Path) -> None:
    """Write ``fig2_two_stage.md`` and ``fig2_two_stage.png`` beside ``result``."""
    runs = read_log(LOG)
    sides = [(each, side) for each in SETS for side in SIDES if side not in CONTROLS or runs_of(runs, each, side)]
    rows = [row_of(measured, runs, *names, size) for names in sides for size in SIZES]
    write_text(result.with_suffix(".md"), page(measured, runs, rows, result.with_suffix(".png").name))
    draw(rows, result.with_suffix(".png"))


def page(measured: Measurements, runs: list[dict[str, Any]], rows: Sequence[Row], plot: str) -> str:
    """The content of ``fig2_two_stage.md``."""
    timed = [
        f"* {name}: {t['machine']}; {t['threads']} threads, {t['images']} images; load before: {t['load_before']}"
        for name, t in measured.timed.items()
    ]
    return TEXT.format(
        plot=plot,
        trainings=trainings(runs, rows),
        sizes=_table(
            ["set", "side", "input", "seeds", "AP", "AP of small objects", "ms per image", "proposals", "detections"],
            [_cells(row) for row in rows],
        ),
        claims=claims(rows),
        timed="\n".join(timed) or "No times were measured.",
    )


def trainings(runs: list[dict[str, Any]], rows: Sequence[Row]) -> str:
    """The table of the trainings."""
    lines = []
    repeated = read_log(REPEATED)
    for row in (row for row in rows if row.size == SIZE):
        mine = runs_of(runs, row.set, row.side)
        command = f"`peers.py DATA --set {row.set} --side {row.side}`"
        name = f"{row.set}/{SETS[row.set].held_out} | {NAMES[row.side]}"
        if not mine:
            lines.append([name, "", "not run", "", "", "", "", command])
            continue
        tried = len({r["spec"]["lr"] for r in runs if _is_trial(r, row)}) if row.side in PEERS else 0
        rate = f"{mine[0]['spec']['lr']:g}, {tried} of {len(RATES)} tried" if tried else ""
        seeds = ", ".join(str(seed) for seed in sorted(r["spec"]["seed"] for r in mine))
        missing = [str(seed) for seed in SEEDS if seed not in {r["spec"]["seed"] for r in mine}]
        seeds += f" (not run: {', '.join(missing)})" if missing else ""
        ap = _spread([100 * r["AP"] for r in mine]) + (f", {row.diverged} diverged" if row.diverged else "")
        timed = [r for r in [*mine, *runs_of(repeated, row.set, row.side)] if not r.get("resumed")]
        cpu = [r["cpu_seconds"] for r in timed if "cpu_seconds" in r]
        parameters = f"{row.timing.parameters / 1e6:.1f} M" if row.timing else "–"
        seconds = f"{statistics.median(r['seconds'] for r in mine):.0f}"
        lines.append(
            [name, rate, seeds, ap, seconds, f"{statistics.median(cpu):.0f}" if cpu else "–", parameters, command]
        )
    heads = ["set", "side", "learning rate", "seeds", f"AP at {SIZE} px", "seconds", "CPU seconds", "parameters"]
    return _table([*heads, "command"], lines)


def _is_trial(run: dict[str, Any], row: Row) -> bool:
    spec = run["spec"]
    return (spec["set"], spec["side"], spec["seed"]) == (row.set, row.side, 0)


def _cells(row: Row) -> list[str]:
    name = [f"{row.set}/{SETS[row.set].held_out}", NAMES[row.side], f"{row.size} px"]
    seeds = ", ".join(str(seed) for seed in sorted(row.aps))
    ap = _spread(list(row.aps.values())) if row.aps else "not run"
    ap += f", log: {', '.join(map(str, row.logged))}" if row.logged else ""
    ap += f", {row.diverged} diverged" if row.diverged else ""
    small = _spread(row.small) if row.small else "–"
    if row.timing is None:
        return [*name, seeds, ap, small, "not run", "", ""]
    t = row.timing
    milliseconds = f"{t.median:.0f} ({t.low:.0f}–{t.high:.0f})" + ("" if t.trained else ", random weights")
    proposals = "–" if t.proposals is None else f"{t.proposals:.0f}"
    return [*name, seeds, ap, small, milliseconds, proposals, f"{t.detections:.0f}"]


def claims(rows: Sequence[Row]) -> str:
    """Every other side against Faster R-CNN, at each input size for which both are measured."""
    found = {(row.set, row.side, row.size): row for row in rows}
    lines = []
    for row in rows:
        two = found[row.set, "faster_rcnn", row.size]
        if row.side == "faster_rcnn" or not row.aps or not two.aps:
            continue
        overlap = min(row.aps.values()) <= max(two.aps.values()) and min(two.aps.values()) <= max(row.aps.values())
        ranges = "one seed" if min(len(row.aps), len(two.aps)) == 1 else "overlap" if overlap else "do not overlap"
        faster = "–"
        if row.timing and two.timing:
            faster = f"{two.timing.median / row.timing.median:.1f} ×"
            faster += "" if row.timing.trained and two.timing.trained else " (random weights)"
        name = f"{row.set}/{SETS[row.set].held_out}"
        lines.append([name, NAMES[row.side], f"{row.size} px", f"{row.mean - two.mean:+.1f}", ranges, faster])
    if not lines:
        return "No size has been measured for both."
    return _table(["set", "side", "input", "AP minus Faster R-CNN's", "ranges of AP", "times as fast"], lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|---" * len(heads) + "|"
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.1f}" + (f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else "")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw AP against milliseconds, with a panel for each set; bars show the range over the seeds."""
    figure = Figure(figsize=(5 * len(SETS), 4.6), layout="constrained")
    panels = figure.subplots(1, len(SETS))
    for axes, data_set in zip(panels, SETS, strict=True):
        for color, side in zip((*COLORS, "#000000"), SIDES, strict=True):
            points = [row for row in rows if (row.set, row.side) == (data_set, side) and row.aps and row.timing]
            _line(axes, points, color, NAMES[side])
        axes.set(title=f"{data_set}/{SETS[data_set].held_out}", xlabel="ms per image, from array to detections")
        axes.set(ylabel="AP (bar: range over the seeds)")
        longest = max((t.median for row in rows if row.set == data_set and (t := row.timing)), default=1.0)
        axes.set_xlim(0, 1.1 * longest)  # leaves room for the last label
        axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        if not axes.lines:
            axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_label()[0] != "_"}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def _line(axes: Any, points: Sequence[Row], color: str, label: str) -> None:
    """Draw a side. Hollow points are timed with random weights."""
    places = [row.timing.median for row in points if row.timing]
    means = [row.mean for row in points]
    if not points:
        return
    axes.plot(places, means, color=color, label=label, linewidth=1.5, marker="o", markersize=3)
    for row, x, y in zip(points, places, means, strict=True):
        values = row.aps.values()
        axes.errorbar(x, y, [[y - min(values)], [max(values) - y]], color=color, capsize=3)
        filled = row.timing is not None and row.timing.trained
        axes.plot(x, y, "o", color=color, markerfacecolor=color if filled else "white", markersize=6)
        axes.annotate(str(row.size), (x, y), (6, -10), textcoords="offset points", fontsize=7, color=color)


TEXT = """# One stage against two: Figure 2 with our data

The paper: RetinaNet is more accurate than the two-stage detectors of its time, and faster. Here, torchvision's Faster
R-CNN with a feature pyramid is compared with torchvision's RetinaNet and with the recipes of this package. All sides
have the same backbone weights (EfficientNet-Lite0), pyramids of 128 channels, bf16 convolutions, the same images and
the same number of them in training, and are evaluated on held-out images. torchvision's sides use the best of their
learning rates, chosen on the held-out images. AP is in points: the mean over the seeds, with the range in brackets.

    python experiments/peers.py DATA --jobs 1 --side {sides}
    python experiments/two_stage.py evaluate DATA
    python experiments/two_stage.py time DATA
    python experiments/two_stage.py report

![AP against milliseconds per image, for three input sizes]({plot})

Bars show the range over the seeds. Hollow points are timed with random weights.

## Trainings

Seconds are the median of the runs of the log, including evaluation, on a machine with other load. CPU seconds are the
median of the runs that were not interrupted; older runs have none. A run that diverged has an AP of 0.

{trainings}

## Input sizes

All sides were trained at {size} px. The other sizes are evaluated with the same weights. In the paper, each size has
its own training. "log" lists the seeds whose AP is that of the training, because the weights were not evaluated again.
Small objects have fewer than 32² pixels of the original image. Milliseconds are the median, with the quartiles in
brackets, from an array of pixels to its detections. The sides ran in turn in one process. Proposals per image are those
that the second stage of Faster R-CNN classifies. With random weights, non-maximum suppression receives another number
of boxes, so the time of a trained detector is different.

{sizes}

{timed}

## Against Faster R-CNN

{claims}
""".replace("{sides}", " ".join(SIDES)).replace("{size}", str(SIZE))
