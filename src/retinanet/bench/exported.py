"""``retinanet bench export``: a model in every runtime and precision, beside PyTorch and torchvision.

Two runtimes that are called in turn disturb each other's threads. So each side is measured in blocks: all calls of a
side, then all calls of the next one, and all sides again.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from retinanet.bench.exported_sides import Side, model_sides, resnet_sides
from retinanet.bench.options import BenchOptions
from retinanet.files import write_atomically, write_json
from retinanet.machine import cores, processor

# Each side has this many blocks; a block lasts at least so many seconds and calls, after one call that is not counted.
_BLOCKS, _SECONDS, _CALLS = 5, 1.0, 3

# Side of the ResNet-50's input in pixels.
_SIDE = 800


@dataclass(frozen=True)
class Row:
    """The figures of a side; times are medians in milliseconds."""

    model: str
    side: str
    network_ms: float
    detect_ms: float
    images_per_second: float | None
    ap: float | None
    megabytes: float | None


def run(out: Path, console: Console, options: BenchOptions, side: int = _SIDE) -> list[str]:
    """Measure torchvision's ResNet-50 and a model; write ``export.json``, and ``export.png`` if AP is known.

    Args:
        out: folder of the results.
        console: where progress and the table are shown.
        options: the model, and the dataset for its AP and INT8.
        side: side of the input of the ResNet-50 in pixels.

    Returns:
        The names of the files in ``out``.
    """
    weights, data, split = options.weights, options.data, options.split
    threads = options.threads or cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            rows += measured(f"ResNet-50, {side}×{side}", resnet_sides(place, console, threads, side), console)
            _save(out, rows, threads)
            sides = model_sides(weights, place, console, data, split, threads)
            rows += measured(Path(weights).stem, sides, console)
    finally:
        torch.set_num_threads(before)
    _save(out, rows, threads)
    console.print(table(rows))
    if not any(row.ap is not None for row in rows):
        return ["export.json"]
    write_atomically(out / "export.png", lambda temporary: _plot(rows, temporary))
    return ["export.json", "export.png"]


def _save(out: Path, rows: Sequence[Row], threads: int) -> None:
    head = {"processor": processor(), "threads": threads, "torch": torch.__version__, "versions": _versions()}
    write_json(out / "export.json", {**head, "rows": [asdict(row) for row in rows]}, indent=1)


def measured(title: str, sides: Sequence[Side], console: Console) -> list[Row]:
    """Measure the sides in blocks."""
    console.print(f"{title}: measuring {', '.join(each.name for each in sides)} …")
    networks: dict[str, list[float]] = {side.name: [] for side in sides}
    detections: dict[str, list[float]] = {side.name: [] for side in sides}
    folders: dict[str, list[float]] = {side.name: [] for side in sides}
    for number, side in itertools.product(range(_BLOCKS), sides):
        networks[side.name] += _block(side.network, _SECONDS, _CALLS)
        detections[side.name] += _block(side.detect, _SECONDS, _CALLS)
        if side.files and number < 3:
            folders[side.name] += _block(side.files, seconds=0, calls=1)
    rows = []
    for side in sides:
        network, detect = (1000 * statistics.median(each[side.name]) for each in (networks, detections))
        files = folders[side.name]
        rate = round(side.file_count / statistics.median(files), 1) if files else None
        rows.append(
            Row(
                title,
                side.name,
                round(network, 2),
                round(detect, 2),
                rate,
                None if side.ap is None else round(side.ap, 5),
                None if side.megabytes is None else round(side.megabytes, 1),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Format a Markdown table. The times faster are relative to the first side of each model."""
    lines = ["| model | runtime | network | times faster | image to detections | times faster | files | AP | size |"]
    lines.append("|" + "---|" * 9)
    for title, group in itertools.groupby(rows, key=lambda row: row.model):
        first, *rest = group
        for row in (first, *rest):
            cells = [
                title,
                row.side,
                f"{row.network_ms:.1f} ms",
                f"{first.network_ms / row.network_ms:.2f}",
                f"{row.detect_ms:.1f} ms",
                f"{first.detect_ms / row.detect_ms:.2f}",
                "" if row.images_per_second is None else f"{row.images_per_second:.1f}/s",
                "" if row.ap is None else f"{100 * row.ap:.2f}",
                "" if row.megabytes is None else f"{row.megabytes:.1f} MB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _block(call: Callable[[], Any], seconds: float, calls: int) -> list[float]:
    """Seconds of each call of a block, which lasts at least ``seconds`` and has at least so many ``calls``."""
    call()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < calls or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torchvision", "onnx", "onnxruntime", "openvino", "nncf")}


def _plot(rows: Sequence[Row], path: Path) -> None:
    """Draw AP against the time of an image, with a marker for each runtime."""
    from matplotlib.figure import Figure

    known = [row for row in rows if row.ap is not None]
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for row in known:
        marker = "o" if row.side.startswith("PyTorch") else "s"
        axes.plot(row.detect_ms, 100 * (row.ap or 0), marker, markersize=7, label=row.side)
    values = [100 * (row.ap or 0) for row in known]
    # Half a point of room, so that differences of rounding do not fill the axis.
    axes.set_ylim(min(values) - 0.5, max(values) + 0.5)
    axes.set_xlim(0, 1.25 * max(row.detect_ms for row in known))
    axes.set(xlabel="ms from an image file to its detections", ylabel="AP", title=known[0].model)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
