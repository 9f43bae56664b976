"""``retinanet bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.bench.options import BenchOptions
from retinanet.cli.terminal import console, parse


@dataclass(frozen=True)
class Arguments(BenchOptions):
    """Compare the speed of this package with torchvision's on the same tensors (about six minutes on two cores)."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME...]")] = ()
    """Benchmarks to run: loss, assignment, post-processing, detector, training-step, files, photograph, evaluation.
    Unset: all of these. Only by name: density (1 to 10,000 objects in an image), dense-image (10,000 objects),
    export (a model in every runtime and precision)."""
    out: Path = Path("bench")
    """Folder for the results: bench.json and scaling.png, density.json and density.svg, dense_image.json, export.json
    and export.png."""


def run(argv: Sequence[str]) -> int:
    """``retinanet bench``."""
    arguments = parse(Arguments, argv, "retinanet bench")

    from retinanet.bench.run import run

    options = BenchOptions(**{each.name: getattr(arguments, each.name) for each in fields(BenchOptions)})
    run(arguments.names, arguments.out, console, options)
    return 0
