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
    """Compare the speed of this package with torchvision's on the same tensors (about six minutes on two cores)."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME...]")] = ()
    """Benchmarks to run: loss, assignment, post-processing, detector, training-step, files, photograph, evaluation.
    Unset: all of these. Only by name: density (1 to 10,000 objects in an image), dense-image (10,000 objects)."""
    out: Path = Path("bench")
    """Folder for the results: bench.json and scaling.png, density.json and density.svg, dense_image.json."""
    scaling: bool = True
    """Also plot the times against the number of boxes, classes and pixels (only without NAME)."""
    threads: int | None = None
    """Number of PyTorch threads. Unset: PyTorch's default."""


def run(argv: Sequence[str]) -> int:
    """``retinanet bench``."""
    arguments = parse(Arguments, argv, "retinanet bench")

    from retinanet.bench.run import run

    make_folder(arguments.out)
    run(arguments.names, arguments.out, console, arguments.scaling, arguments.threads)
    return 0
