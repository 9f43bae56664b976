"""``retinanet detect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse, print_notes
from retinanet.errors import RetinaNetError


@dataclass(frozen=True)
class Arguments:
    """Detect objects in images; draw them and write them to files."""

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]
    """A .safetensors file of a training, an exported file (.onnx, .xml), or the name of a bundled model such as
    person."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE...")]
    """Images, folders, or glob patterns such as 'photos/*.jpg'."""
    out: Path = Path("detections")
    """Folder for the drawn images and the files."""
    score: float = 0.3
    """Lowest score reported, 0 to 1. Lower it to find more objects, raise it to get fewer false positives."""
    max_detections: int | None = None
    """Largest number of detections per image. Unset: the number that the weights store. Raise it for dense images."""
    tile: str | None = None
    """Divide each image into tiles of this side in pixels; auto: the side at which objects appear as large as in the
    training. For small objects in large images. Unset: each image is scaled as a whole."""
    overlap: int | None = None
    """Pixels that neighboring tiles share. Unset: the length of the largest learnt object."""
    tile_scales: tuple[float, ...] = (1.0,)
    """Passes over each image: 1 0.5 adds tiles of twice the side, for objects that are larger than a tile."""
    format: Literal["coco", "csv", "yolo", "voc"] | None = None
    """File format: detections.json (coco), detections.csv, labels/*.txt (yolo; labels.csv names the image of each file)
    or annotations/*.xml (voc). Unset: coco and csv."""
    draw: bool = True
    """Write copies of the images with the boxes drawn on them."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network. auto: bf16 if the hardware supports it, else fp32."""
    device: str = "auto"
    """Device that the network runs on, such as cpu or cuda. auto: a GPU if there is one."""
    threads: int | None = None
    """Number of threads that an exported file uses (.onnx, .xml). Unset: one for each core."""
    streams: int | None = None
    """Number of images that an OpenVINO file computes at the same time. Raise it for throughput, lower it for the
    fastest single image. Unset: chosen for each call."""


def run(argv: Sequence[str]) -> int:
    """``retinanet detect WEIGHTS SOURCE...``."""
    given = parse(Arguments, argv, "retinanet detect")
    from retinanet.detection.loading import load
    from retinanet.detection.run import detect
    from retinanet.detection.tile_plan import TileOptions
    from retinanet.detection.write import OutputFormat

    formats: tuple[OutputFormat, ...] = ("coco", "csv") if given.format is None else (given.format,)
    detector = load(given.weights, given.precision, given.device, threads=given.threads, streams=given.streams)
    result = detect(
        detector,
        given.sources,
        given.out,
        score=given.score,
        formats=formats,
        draw=given.draw,
        max_detections=given.max_detections,
        tile=TileOptions.of(given.tile, given.overlap, given.tile_scales),
        console=console,
    )
    counts = ", ".join(f"{name} {count}" for name, count in result.counts.most_common(8)) or "no objects"
    console.print(f"{result.images} image{'s' * (result.images != 1)}: {counts} (score ≥ {given.score:g})")
    print_notes(result.notes)
    console.print(f"wrote {', '.join(result.written)} in {given.out}")
    if result.failed:
        total = result.images + len(result.failed)
        raise RetinaNetError(
            f"{len(result.failed)} of {total} images could not be read: {'; '.join(result.failed[:3])}"
        )
    return 0
