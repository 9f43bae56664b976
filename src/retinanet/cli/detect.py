"""``retinanet detect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, make_folder, parse
from retinanet.errors import ConfigError, RetinaNetError


@dataclass(frozen=True)
class Arguments:
    """Find objects in pictures; draw them and write them down."""

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]
    """A .safetensors file of a training, or the name of a bundled model such as person."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE...")]
    """Images, folders, or patterns such as 'photos/*.jpg'."""
    out: Path = Path("detections")
    """Folder for the drawn pictures and the files."""
    score: float = 0.3
    """Lowest score reported."""
    format: Literal["coco", "csv", "yolo", "voc"] | None = None
    """detections.json (coco), detections.csv, labels/*.txt and labels.csv (yolo: which picture each belongs to) or
    annotations/*.xml (voc); unset: coco and csv."""
    draw: bool = True
    """Write the pictures with boxes drawn on them."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""
    device: str = "auto"
    """cpu, cuda, …"""


def run(argv: Sequence[str]) -> int:
    """``retinanet detect WEIGHTS SOURCE...``."""
    arguments = parse(Arguments, argv, "retinanet detect")
    if not 0 <= arguments.score < 1:
        raise ConfigError(f"--score is {arguments.score}; it lies between 0 and 1")
    if not arguments.sources:
        raise ConfigError("nothing to detect in; name pictures, folders or patterns after WEIGHTS")

    from retinanet.detect.detector import load
    from retinanet.detect.sources import find_pictures, pictures_with_detections
    from retinanet.detect.write import Writer
    from retinanet.progress import progress_bar

    pictures = find_pictures(arguments.sources)
    detector = load(arguments.weights, arguments.precision, arguments.device)
    formats = (arguments.format,) if arguments.format else ("coco", "csv")
    writer = Writer(arguments.out, detector.classes, formats, arguments.draw, pictures)
    make_folder(arguments.out)
    failed: list[str] = []
    with progress_bar(console, "pictures", len(pictures)) as bar:
        for picture in pictures_with_detections(detector, pictures, arguments.score):
            if picture.error is not None:
                failed.append(picture.error)
            else:
                writer.add(picture)
            bar.advance(1)
    written = writer.finish()
    done = len(pictures) - len(failed)
    counts = ", ".join(f"{name} {count}" for name, count in writer.counts.most_common(8)) or "nothing"
    console.print(f"{done} picture{'s' * (done != 1)}: {counts} (score ≥ {arguments.score:g})")
    console.print(f"wrote {', '.join(written)} in {arguments.out}")
    if failed:
        raise RetinaNetError(f"{len(failed)} of {len(pictures)} pictures could not be read: {'; '.join(failed[:3])}")
    return 0
