"""``retinanet data sample``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse, print_next
from retinanet.flags import quoted


@dataclass(frozen=True)
class Arguments:
    """Make a synthetic dataset to try everything on: small parts on cluttered benches, in COCO format."""

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to make."""
    images: int = 300
    """Pictures in all; a fifth of them is val."""
    seed: int = 0
    """Same seed, same pictures."""
    size: int = 320
    """Side of the pictures, in pixels."""


def run(argv: Sequence[str]) -> int:
    """``retinanet data sample OUT``."""
    arguments = parse(Arguments, argv, "retinanet data sample")

    from retinanet.data.synthetic import write_sample

    write_sample(arguments.out, arguments.images, arguments.seed, arguments.size)
    console.print(f"wrote {arguments.images} pictures with their annotations to {arguments.out}")
    print_next(f"retinanet train {quoted(arguments.out)} --out runs/sample --data.size 320 --train.epochs 6")
    return 0
