"""Experiment tracking: what ``metrics.jsonl`` holds, mirrored to TensorBoard, Weights & Biases and MLflow.

``metrics.jsonl`` stays the truth. A tool that fails is switched off and the training goes on; on resuming, a tool gets
from there what it lacks, and never a step twice.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from rich.console import Console

from retinanet.config import Config
from retinanet.data.images import read_image
from retinanet.detect.example_images import safe_names
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.evaluation.coco_ap import SUMMARY
from retinanet.progress import progress_bar
from retinanet.train.log import read_lines

Image = npt.NDArray[np.uint8]

# What a tool needs besides what the package itself does.
_PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}

# What to do if it cannot start.
_HINTS = {
    "tensorboard": "check that RUN/tensorboard can be written",
    "wandb": "set WANDB_MODE=offline to need no server",
    "mlflow": "unset MLFLOW_TRACKING_URI to need no server, or choose another --out",
}

# Names of scalars and pictures start with the group they are shown in.
GROUPS = ("train", "val", "pictures")


class Tool(Protocol):
    """A tool that keeps scalars and pictures.

    Attributes:
        view: the command that shows what it kept.
        held: for each of ``GROUPS``, the last step it has from before the training was resumed.
    """

    view: str
    held: Mapping[str, int]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep values by name."""

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        """Keep uint8 RGB pictures ``(H, W, 3)`` by name."""

    def close(self, failed: bool) -> None:
        """Write what is left and mark the run as finished or failed."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuse tools whose package is not installed; cheap, nothing is imported.

    Raises:
        ConfigError: naming the package and how to install it.
    """
    for name in names:
        for package in _PACKAGES[name]:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:  # a plain folder of that name, such as ./wandb, has no origin
                raise ConfigError(
                    f"--train.track {name} needs the package {package}: pip install 'retinanet[{name}]', "
                    "or leave it out; metrics.jsonl is written always"
                )


def open_trackers(
    names: Sequence[str], out: Path, config: Config, resume_at: int = 0, console: Console | None = None
) -> Trackers:
    """Start the named tools, or go on with those of the run in ``out``.

    Args:
        names: any of ``tensorboard``, ``wandb``, ``mlflow``.
        out: the run's folder; ``metrics.jsonl`` there holds the steps up to ``resume_at``.
        config: all settings, which the tools show beside the run.
        resume_at: steps already done; what was kept of later ones gives way to what comes.
        console: where it is said how to look at each tool, and that one failed.

    Raises:
        ConfigError: a package is missing, or a tool of a new training cannot start. In a resumed one it is left out.
    """
    from retinanet.train.tools import TOOLS  # loads no tool itself

    require_trackers(names)
    console = console or Console(quiet=True)
    tools: dict[str, Tool] = {}
    trackers = Trackers(tools, console)
    with progress_bar(console, "starting the trackers", len(set(names))) as bar:
        for name in dict.fromkeys(names):
            try:
                tools[name] = TOOLS[name](out, config, resume_at)
            except Exception as error:  # whatever the tool raises
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
    """The tools of a training; a context manager that closes them. None of its methods raises for a tool's sake."""

    def __init__(self, tools: dict[str, Tool], console: Console) -> None:
        self._tools, self._console = tools, console

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send values by name; a name starts with one of ``GROUPS`` and a slash."""
        self._send(step, values, lambda tool, missing: tool.scalars(step, missing))

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        """Send uint8 RGB pictures ``(H, W, 3)`` by name."""
        named = {f"pictures/{name}": image for name, image in images.items()}
        self._send(step, named, lambda tool, missing: tool.pictures(step, missing))

    def log_line(self, line: Mapping[str, Any]) -> None:
        """Send what a line of ``metrics.jsonl`` holds."""
        values = grouped(line)
        if values:
            self.scalars(int(line["step"]), values)

    def replay(self, out: Path, resume_at: int) -> None:
        """Send what ``out`` holds of the steps up to ``resume_at``; each tool takes what it lacks."""
        lines = [line for line in read_lines(out / "metrics.jsonl") if line["step"] <= resume_at]
        folders = {line["step"]: out / "pictures" / f"epoch_{epoch:04d}" for epoch, line in _epoch_ends(lines)}
        with progress_bar(self._console, "earlier steps for the trackers", len(lines)) as bar:
            for step, same in groupby(lines, key=lambda line: int(line["step"])):
                for line in same:
                    self.log_line(line)
                    bar.advance(1)
                if step in folders and self._lacks("pictures", step):
                    self.pictures(step, _readable_pictures(folders[step]))

    def close(self, failed: bool = False) -> None:
        """Let every tool write what is left."""
        for name in list(self._tools):
            self._attempt(name, lambda tool: tool.close(failed))
        self._tools.clear()

    def report(self, name: str, error: Exception) -> None:
        """Say in a line that a tool is off."""
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
        except Exception as error:  # a full disk, a server that is gone, a bug of the tool: none is worth a training
            self._tools.pop(name)
            self.report(name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


def grouped(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl`` under the names the tools show: ``train/loss``, ``val/AP50``, …

    ``val/AP/CLASS`` is the AP of a class. An AP of −1, which stands for nothing to measure, is left out.
    """
    values: dict[str, float] = {}
    for name, value in line.items():
        if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name in SUMMARY and value < 0:
            continue
        values[f"{'val' if name in SUMMARY else 'train'}/{name}"] = float(value)
    classes: Mapping[str, Mapping[str, float]] = line.get("per_class") or {}
    for name, row in zip(safe_names(classes), classes.values(), strict=True):
        values[f"val/AP/{name}"] = float(row["AP"])
    return values


def _epoch_ends(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each finished epoch with its last line."""
    ends = {line["epoch"]: line for line in lines if float(line.get("epoch", math.inf)).is_integer()}
    for epoch, line in ends.items():
        yield int(epoch), line


def _readable_pictures(folder: Path) -> dict[str, Image]:
    images = {}
    for path in sorted(folder.glob("*.jpg")):
        try:
            images[path.stem] = read_image(path)
        except RetinaNetError:  # half a picture of a crash is no reason to stop
            continue
    return images


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
