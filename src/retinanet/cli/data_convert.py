"""``retinanet data convert``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, describe, parse, print_next, print_notes
from retinanet.flags import quoted


@dataclass(frozen=True)
class Arguments:
    """Write a dataset in another format: every split, its boxes, classes, ignore regions and images.

    Only boxes are converted; masks and keypoints are left behind.
    """

    source: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (recognised by itself), or its annotation file."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to make."""
    to: Literal["coco", "voc", "yolo", "csv"]
    """Format to write."""
    images: Literal["copy", "link", "none"] = "copy"
    """copy the images; link to each file (takes no space); none: one link to each folder of images, which then must
    stay where they are."""


def run(argv: Sequence[str]) -> int:
    """``retinanet data convert DATA OUT --to FORMAT``."""
    arguments = parse(Arguments, argv, "retinanet data convert")

    from retinanet.data.convert import TITLES, write
    from retinanet.data.formats.detect import read_all
    from retinanet.files import refuse_filled
    from retinanet.progress import progress_bar

    refuse_filled(arguments.out)
    splits = read_all(arguments.source)
    for dataset in splits.values():
        describe(dataset)
    total = sum(map(len, splits.values()))
    with progress_bar(console, "writing images", total) as bar:
        notes = write(splits, arguments.out, arguments.to, arguments.images, bar.advance)
    print_notes(notes)
    regions = sum(int(dataset.ignore.sum()) for dataset in splits.values())
    boxes = sum(len(dataset.boxes) for dataset in splits.values()) - regions
    console.print(
        f"wrote {total} images ({', '.join(splits)}), {boxes} boxes and {regions} ignore regions "
        f"as {TITLES[arguments.to]} to {arguments.out}"
    )
    print_next(f"retinanet data inspect {quoted(arguments.out)}")
    return 0
