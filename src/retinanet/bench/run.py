"""Run ``retinanet bench``: measure the cases, print a table, write the numbers and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from retinanet.bench import cases, dense_image, density, exported
from retinanet.bench.measure import Case, Timing, measure
from retinanet.bench.options import BenchOptions
from retinanet.errors import ConfigError
from retinanet.files import make_folder, write_atomically, write_json
from retinanet.machine import cores, processor
from retinanet.progress import progress_bar

_DEFAULT = BenchOptions()

# The groups of cases by name, and how often each side is called.
GROUPS: dict[str, tuple[Callable[[], Iterable[Case]], int]] = {
    "loss": (lambda: (cases.focal(classes) for classes in (1, 80, 1203)), 3),
    "assignment": (lambda: (cases.assignment(count) for count in (7, 50, 500, 5000)), 5),
    "post-processing": (lambda: (cases.postprocessing(classes) for classes in (1, 80)), 5),
    "detector": (lambda: [cases.detector()], 5),
    "training-step": (lambda: [cases.training_step()], 3),
    "files": (lambda: cases.from_files(), 3),
    "photograph": (lambda: cases.photograph(), 15),
    "evaluation": (lambda: [cases.evaluation()], 1),
}

# Benchmarks that write their own files; they run only if they are named.
ALONE: dict[str, Callable[[Path, Console, BenchOptions], list[str]]] = {
    "density": lambda out, console, _: density.run(out, console),
    "dense-image": lambda out, console, _: dense_image.run(out, console),
    "export": exported.run,
}


def run(names: Sequence[str], out: Path, console: Console, options: BenchOptions = _DEFAULT) -> None:
    """Measure the benchmarks in ``names`` (all ``GROUPS`` if empty); write ``bench.json`` and ``scaling.png``.

    Raises:
        ConfigError: there is no group of that name, or an option would have no effect.
    """
    unknown = [name for name in names if name not in GROUPS and name not in ALONE]
    if unknown:
        raise ConfigError(f"there is no benchmark {unknown[0]!r}; choose from {', '.join([*GROUPS, *ALONE])}")
    options.check(names)
    make_folder(out)
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in (name for name in names if name in ALONE):
        console.print(f"wrote {', '.join(ALONE[name](out, console, options))} in {out}")
    chosen = [name for name in names if name in GROUPS] if names else list(GROUPS)
    if not chosen:
        return
    results: list[Timing] = []
    curves = SCALING if options.scaling and not names else {}
    with progress_bar(console, "measuring", len(chosen) + len(curves)) as bar:
        for name in chosen:
            make, repeats = GROUPS[name]
            for case in make():
                bar.update(0, case.name.strip())
                results.append(measure(case, repeats))
                _save(out, results, {})
            bar.advance(1)
        measured = {}
        for title, (_, make_case, values) in curves.items():
            bar.update(0, title)
            measured[title] = [(value, measure(make_case(value), 2, memory=False)) for value in values]
            bar.advance(1)
    _save(out, results, measured)
    console.print(table(results))
    written = ["bench.json"]
    if measured:
        write_atomically(out / "scaling.png", lambda temporary: _plot(measured, temporary))
        written.append("scaling.png")
    console.print(f"wrote {', '.join(written)} in {out}")


SCALING: dict[str, tuple[str, Callable[[int], Case], tuple[int, ...]]] = {
    "assignment": ("boxes in an 800×800 image", cases.assignment, (1, 5, 20, 100, 500, 2000, 5000)),
    "focal loss": ("classes (12,000 anchors)", lambda n: cases.focal(n, 12_000), (1, 5, 20, 80, 365, 1203)),
    "detector": ("pixels per side", cases.detector, (320, 512, 800, 1120, 1600)),
}


def table(results: Iterable[Timing]) -> str:
    """Format a line for each result: medians, speed-up, the floor's share of our time, additional memory."""
    header = ("", "ours", "ours bf16", "theirs", "faster", "faster bf16", "floor", "memory", "their memory")
    rows: list[tuple[str, ...]] = [header]
    for row in results:
        floor = row.seconds.get("floor")
        rows.append(
            (
                row.name,
                *(_time(row.seconds.get(side)) for side in ("ours", "ours bf16", row.peer)),
                *(_ratio(row.times_faster(side)) for side in ("ours", "ours bf16")),
                "" if floor is None else f"{100 * floor / row.seconds['ours']:.0f}%",
                *(_megabytes(row.memory.get(side)) for side in ("ours", row.peer)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()  # align names to the left
        for row in rows
    ]
    return "\n".join([_machine(), *lines])


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f} MB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f} ms"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}×"


def _machine() -> str:
    threads = torch.get_num_threads()
    return f"torch {torch.__version__}, {threads} threads on {cores()} cores, {processor()}; medians"


def _save(out: Path, results: Sequence[Timing], curves: dict[str, list[tuple[int, Timing]]]) -> None:
    import torchvision

    content = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cases": [result.to_dict() for result in results],
        "scaling": {
            title: [{"value": value, **found.to_dict()} for value, found in points] for title, points in curves.items()
        },
    }
    write_json(out / "bench.json", content, indent=1)


def _plot(curves: dict[str, list[tuple[int, Timing]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    colors = {"ours": "#1f6f8b", "ours bf16": "#7fb7be", "torchvision": "#c8553d"}
    for axes, (title, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for side, color in colors.items():
            line = [(value, 1000 * found.seconds[side]) for value, found in points if side in found.seconds]
            if line:
                axes.loglog(*zip(*line, strict=True), marker="o", markersize=4, label=side, color=color)
        axes.set(title=title, xlabel=SCALING[title][0], ylabel="ms")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
