"""The log of a training: ``metrics.jsonl`` and ``curves.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retinanet.errors import RetinaNetError
from retinanet.files import write_atomically, write_text


class Log:
    """Writes one JSON object per line. Existing lines after step ``resume_at`` are removed first, because these
    steps are repeated.

    Args:
        path: the file.
        resume_at: number of steps already done.
        write: whether to write the file; off on all ranks except the main rank.
    """

    def __init__(self, path: Path, resume_at: int = 0, write: bool = True) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._write = write
        if resume_at and path.is_file():
            self.lines = [line for line in read_lines(path) if line["step"] <= resume_at]
        if write:
            write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def write(self, **values: Any) -> None:
        """Append a line and flush it."""
        self.lines.append(values)
        if not self._write:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise RetinaNetError(
                f"{self.path}: cannot be written ({error.strerror}); solve this, then go on with --resume"
            ) from error

    def newest(self, key: str) -> dict[str, Any]:
        """Return the newest line that has ``key``, or an empty dictionary."""
        return next((line for line in reversed(self.lines) if key in line), {})

    def draw(self, path: Path) -> None:
        """Plot losses and average precision against epochs."""
        from matplotlib.figure import Figure

        steps = [line for line in self.lines if "loss" in line]
        evaluations = [line for line in self.lines if "AP" in line]
        figure = Figure(figsize=(10, 4), layout="constrained")
        losses, precision = figure.subplots(1, 2)
        for key, color in (("loss", "#333333"), ("classification", "#1f6f8b"), ("box", "#c8553d")):
            losses.plot(
                [line["epoch"] for line in steps], _smooth([line[key] for line in steps]), label=key, color=color
            )
        losses.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
        losses.legend(frameon=False)
        for key, color in (("AP", "#333333"), ("AP50", "#1f6f8b"), ("AP75", "#c8553d")):
            x, y = [line["epoch"] for line in evaluations], [line[key] for line in evaluations]
            precision.plot(x, y, marker="o", markersize=3, label=key, color=color)
        precision.set(xlabel="epoch", ylabel="average precision on val", ylim=(0, 1))
        if evaluations:
            precision.legend(frameon=False, loc="lower right")
        for axes in (losses, precision):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.2)
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the readable lines of a ``metrics.jsonl`` that belong to a step."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # a kill can cut the last line in two
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Return the exponential moving average, which makes the trend in noisy losses visible."""
    result: list[float] = []
    for value in values:
        result.append(value if not result else weight * result[-1] + (1 - weight) * value)
    return result
