"""``retinanet bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, make_folder, parse


@dataclass(frozen=True)
class Arguments:
    """Time this package beside torchvision, in turn and on the same tensors; about six minutes on two cores."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME...]")] = ()
    """What to measure: loss, assignment, post-processing, detector, training-step, files, photograph, evaluation."""
    out: Path = Path("bench")
    """Folder for bench.json and scaling.png."""
    scaling: bool = True
    """Also draw how times grow with boxes, classes and pixels (only when everything is measured)."""
    threads: int | None = None
    """Threads for PyTorch; unset: its own choice."""


def run(argv: Sequence[str]) -> int:
    """``retinanet bench``."""
    arguments = parse(Arguments, argv, "retinanet bench")

    from retinanet.bench.run import run

    make_folder(arguments.out)
    run(arguments.names, arguments.out, console, arguments.scaling, arguments.threads)
    return 0
