"""``retinanet data sample``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse, print_next, unused
from retinanet.flags import quoted


@dataclass(frozen=True)
class Arguments:
    """Make a synthetic dataset to try the commands: small metal parts on a cluttered bench, in COCO format."""

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to create."""
    images: int = 300
    """Number of images. A fifth of them is the val split."""
    seed: int = 0
    """Seed of the random images. The same seed gives the same files."""
    size: int = 320
    """Side of the images in pixels."""


def run(argv: Sequence[str]) -> int:
    """``retinanet data sample OUT``."""
    arguments = parse(Arguments, argv, "retinanet data sample")

    from retinanet.data.synthetic import write_sample

    write_sample(arguments.out, arguments.images, arguments.seed, arguments.size)
    console.print(f"wrote {arguments.images} images with their annotations to {arguments.out}")
    out = quoted(unused(Path("runs/sample")))
    print_next(f"retinanet train {quoted(arguments.out)} --out {out} --data.size 320 --train.epochs 6")
    return 0
