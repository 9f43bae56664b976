"""``retinanet data convert``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, describe, parse, print_next, print_notes, refuse_ignored
from retinanet.flags import quoted
from retinanet.read_options import ReadOptions


@dataclass(frozen=True)
class Arguments:
    """Write a dataset in another format: every split, with its boxes, classes, ignore regions and images.

    Only boxes are converted. Masks and keypoints are lost.
    """

    source: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (the format is recognized), or its annotation file."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to create."""
    to: Literal["coco", "voc", "yolo", "csv"]
    """Format to write."""
    images: Literal["copy", "link", "none"] = "copy"
    """copy: copy the images. link: link to each image, which takes no space. none: make one link to each source
    folder of images; do not move the source folders afterwards."""
    voc_origin: Literal[0, 1] = 1
    """Number of the first pixel in the Pascal VOC files to write. 1: as in the VOC challenge. 0: as labelImg, CVAT and
    Datumaro read the files."""
    data: ReadOptions = field(default_factory=ReadOptions)


def run(argv: Sequence[str]) -> int:
    """``retinanet data convert DATA OUT --to FORMAT``."""
    arguments = parse(Arguments, argv, "retinanet data convert")
    if arguments.to != "voc":
        refuse_ignored(arguments, ("voc_origin",), "--to voc")

    from retinanet.data.convert import convert_dataset

    conversion = convert_dataset(
        arguments.source, arguments.out, arguments.to, arguments.images, console, arguments.data, arguments.voc_origin
    )
    for dataset in conversion.splits.values():
        describe(dataset)
    print_notes(conversion.remarks)
    console.print(f"wrote {conversion}")
    print_next(f"retinanet data inspect {quoted(arguments.out)}")
    return 0
