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
    images: int | None = None
    """Number of images. A fifth of them is the val split. Unset: 300, or 10 with --objects."""
    objects: int | None = None
    """Number of objects in each image, up to 40,000, to try crowded images. Unset: 0 to 12."""
    seed: int = 0
    """Seed of the random images. The same seed gives the same files."""
    size: int | None = None
    """Side of the images in pixels. Unset: 320, or with --objects a side at which objects are about 25 pixels wide."""


def run(argv: Sequence[str]) -> int:
    """``retinanet data sample OUT``."""
    arguments = parse(Arguments, argv, "retinanet data sample")

    from retinanet.data.synthetic import fitting_size, write_sample

    dense = arguments.objects is not None
    images = arguments.images if arguments.images is not None else 10 if dense else 300
    write_sample(arguments.out, images, arguments.seed, arguments.size, arguments.objects)
    console.print(f"wrote {images} images with their annotations to {arguments.out}")
    size = arguments.size or fitting_size(arguments.objects) if dense else 320
    batch = " --train.batch 1" if size > 1000 else ""
    out = quoted(unused(Path("runs/sample")))
    print_next(f"retinanet train {quoted(arguments.out)} --out {out} --data.size {size}{batch} --train.epochs 6")
    return 0
