"""Experiment tracking: copies ``metrics.jsonl`` to TensorBoard, Weights & Biases and MLflow.

A tool that fails is switched off and the training goes on. On resuming, each tool gets only its missing
steps, from ``metrics.jsonl``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from retinanet.config import Config
from retinanet.data.images import read_image
from retinanet.detection.example_images import safe_names
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.evaluation.coco_ap import DENSE_SUMMARY
from retinanet.progress import progress_bar
from retinanet.training.log import read_lines
from retinanet.training.tools import TOOLS, Image, Tool

# Numbers of an evaluation; all other numbers are of training steps.
_VAL = (*DENSE_SUMMARY, "images_at_limit", "threshold")

# Packages that each tool needs in addition to those of this package.
PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}

# Advice for a tool that cannot start.
_HINTS = {
    "tensorboard": "check that RUN/tensorboard can be written",
    "wandb": "set WANDB_MODE=offline to need no server",
    "mlflow": "unset MLFLOW_TRACKING_URI to need no server, or choose another --out",
}


def require_trackers(names: Sequence[str]) -> None:
    """Check that the packages of the named tools are installed, without importing them.

    Raises:
        ConfigError: a package is missing; the message names it and how to install it.
    """
    for name in names:
        for package in PACKAGES[name]:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:  # a plain folder of that name, such as ./wandb, has no origin
                raise ConfigError(
                    f"--train.track {name} needs the package {package}: pip install 'retinanet[{name}]', "
                    "or leave it out; metrics.jsonl is always written"
                )


def open_trackers(
    names: Sequence[str], out: Path, config: Config, resume_at: int = 0, console: Console | None = None
) -> Trackers:
    """Start the named tools, or resume them for the run in ``out``.

    Args:
        names: any of ``tensorboard``, ``wandb``, ``mlflow``.
        out: the run's folder; ``metrics.jsonl`` there holds the steps up to ``resume_at``.
        config: all settings, which the tools show with the run.
        resume_at: number of steps already done; later steps in a tool are replaced.
        console: where failures, and the command that shows each tool's values, are printed.

    Raises:
        ConfigError: a package is missing, or a tool of a new training cannot start. A resumed training goes
            on without that tool.
    """
    require_trackers(names)
    console = console or Console(quiet=True)
    tools: dict[str, Tool] = {}
    trackers = Trackers(tools, console)
    with progress_bar(console, "starting the trackers", len(set(names))) as bar:
        for name in dict.fromkeys(names):
            try:
                tools[name] = TOOLS[name](out, config, resume_at)
            except Exception as error:  # tools raise many types
                if not resume_at:
                    trackers.close(failed=True)
                    hint = f"{_HINTS[name]}, or leave it out"
                    raise ConfigError(f"--train.track {name}: cannot start ({_reason(error)}); {hint}") from error
                trackers.report(name, error)
            else:
                console.print(f"{name}: {tools[name].view}", markup=False, highlight=False, soft_wrap=True)
            bar.advance(1)
    if tools and resume_at:
        trackers.replay(out, resume_at)
    return trackers


class Trackers:
    """The tools of a training, and a context manager that closes them. Errors of a tool are never raised."""

    def __init__(self, tools: dict[str, Tool], console: Console) -> None:
        self._tools, self._console = tools, console

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values by name; a name starts with ``train/``, ``val/`` or ``images/``."""
        self._send(step, values, lambda tool, missing: tool.scalars(step, missing))

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        """Send uint8 RGB images ``(H, W, 3)`` by name."""
        named = {f"images/{name}": image for name, image in images.items()}
        self._send(step, named, lambda tool, missing: tool.images(step, missing))

    def log_line(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of a line of ``metrics.jsonl``."""
        values = grouped(line)
        if values:
            self.scalars(int(line["step"]), values)

    def replay(self, out: Path, resume_at: int) -> None:
        """Send the steps up to ``resume_at`` from the files in ``out``; each tool gets only its missing steps."""
        lines = [line for line in read_lines(out / "metrics.jsonl") if line["step"] <= resume_at]
        folders = {line["step"]: out / "images" / f"epoch_{epoch:04d}" for epoch, line in _epoch_ends(lines)}
        with progress_bar(self._console, "earlier steps for the trackers", len(lines)) as bar:
            for step, same in groupby(lines, key=lambda line: int(line["step"])):
                for line in same:
                    self.log_line(line)
                    bar.advance(1)
                if step in folders and self._lacks("images", step):
                    self.images(step, _readable_images(folders[step]))

    def close(self, failed: bool = False) -> None:
        """Let every tool write its pending values."""
        for name in list(self._tools):
            self._attempt(name, lambda tool: tool.close(failed))
        self._tools.clear()

    def report(self, name: str, error: Exception) -> None:
        """Print that a tool is switched off."""
        line = f"warning: {name} failed ({_reason(error)}); the training goes on without it, see metrics.jsonl"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _lacks(self, group: str, step: int) -> bool:
        return any(step > tool.held.get(group, 0) for tool in self._tools.values())

    def _send(self, step: int, values: Mapping[str, Any], send: Callable[[Tool, Mapping[str, Any]], None]) -> None:
        for name, tool in list(self._tools.items()):
            missing = {n: v for n, v in values.items() if step > tool.held.get(n.split("/", 1)[0], 0)}
            if missing:
                self._attempt(name, lambda tool, missing=missing: send(tool, missing))  # type: ignore[misc]

    def _attempt(self, name: str, action: Callable[[Tool], None]) -> None:
        try:
            action(self._tools[name])
        except Exception as error:  # a full disk, a lost server or a bug of the tool must not end the training
            self._tools.pop(name)
            self.report(name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


def grouped(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of ``metrics.jsonl`` by their names in the tools: ``train/loss``, ``val/AP50``, …

    ``val/AP/CLASS`` is the AP of a class. An AP of −1 (there was nothing to measure) is left out.
    """
    values: dict[str, float] = {}
    for name, value in line.items():
        if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name in DENSE_SUMMARY and value < 0:
            continue
        # MLflow does not accept @ in names
        values[f"{'val' if name in _VAL else 'train'}/{name.replace('@', '_at_')}"] = float(value)
    classes: Mapping[str, Mapping[str, float]] = line.get("per_class") or {}
    for name, row in zip(safe_names(classes), classes.values(), strict=True):
        values[f"val/AP/{name}"] = float(row["AP"])
    return values


def _epoch_ends(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield each finished epoch with its last line."""
    ends = {line["epoch"]: line for line in lines if float(line.get("epoch", math.inf)).is_integer()}
    for epoch, line in ends.items():
        yield int(epoch), line


def _readable_images(folder: Path) -> dict[str, Image]:
    images = {}
    for path in sorted(folder.glob("*.jpg")):
        try:
            images[path.stem] = read_image(path)
        except RetinaNetError:  # a crash may have left half a file
            continue
    return images


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
