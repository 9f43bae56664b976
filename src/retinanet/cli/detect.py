"""``retinanet detect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse, print_notes
from retinanet.decode_config import LowestScore
from retinanet.detection.web_limits import WebLimits
from retinanet.errors import RetinaNetError
from retinanet.scale.options import ScaleOptions

if TYPE_CHECKING:
    from retinanet.detection.pipeline import MakeRunner


@dataclass(frozen=True)
class Arguments:
    """Detect objects in images and videos; draw them and write them to files."""

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]
    """A .safetensors file of a training, an exported file (.onnx, .xml), or the name of a bundled model such as
    person."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE...")]
    """Images, folders, glob patterns such as 'photos/*.jpg', zip archives, Parquet files, http(s) URLs, lists (@FILE),
    or - for paths or an image from the standard input. Or videos, streams such as rtsp://HOST/PATH, webcams (webcam:0),
    or numbered frames (frame_%06d.png)."""
    list: tuple[Path, ...] = ()
    """Text files with the path or URL of an image per line; paths are relative to the file. The same as @FILE."""
    out: Path = Path("detections")
    """Folder for the drawn images and the files."""
    score: LowestScore = 0.3
    """Lowest score reported, 0 to 1. Lower it to find more objects, raise it to get fewer false positives. auto: the
    threshold with the best F1 on val, which a training stores in the weights."""
    max_detections: int | None = None
    """Largest number of detections per image. Unset: the number that the weights store. Raise it for dense images."""
    tile: str | None = None
    """Divide each image or frame into tiles of this side in pixels; auto: the side at which objects appear as large as
    in the training; none: each image is scaled as a whole. Tiles are for small objects in large images. Unset: auto if
    the weights were trained on tiles or a setting of tiles is given, else none."""
    overlap: int | None = None
    """Pixels that neighboring tiles share. Unset: the length of the largest learnt object."""
    tile_scales: tuple[float, ...] = (1.0,)
    """Passes over each image: 1 0.5 adds tiles of twice the side, for objects that are larger than a tile."""
    max_pixels: int | None = None
    """Largest number of pixels of an image that is divided into tiles. Unset: 178 million. Raise it for images that you
    trust. Only with tiles."""
    format: Literal["coco", "csv", "yolo", "voc", "jsonl", "geojson", "parquet"] | None = None
    """File format: detections.json (coco), detections.csv, labels/*.txt (yolo; labels.csv names the image of each
    file), annotations/*.xml (voc), geojson/*.geojson (for GeoTIFF files) or detections.parquet. Unset: coco and csv.
    detections.jsonl, a line for each image, is always written. Of videos, only JSON Lines are written (jsonl)."""
    draw: bool = True
    """Write copies of the images with the boxes drawn on them."""
    resume: bool = False
    """Continue an interrupted run with the same settings: images in OUT/detections.jsonl are not detected again."""
    web: WebLimits = field(default_factory=WebLimits)
    """Limits of downloads."""
    video: bool = False
    """Treat the sources as videos: a folder as a sequence of frames, a URL as a stream."""
    track: bool = False
    """Give the objects of a video ids that stay the same from frame to frame (ByteTrack)."""
    frame_rate: float | None = None
    """Frames per second of a sequence of images. Unset: 25."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network. auto: bf16 if the hardware supports it, else fp32."""
    device: str = "auto"
    """Device that the network runs on, such as cpu or cuda. auto: a GPU if there is one."""
    threads: int | None = None
    """Number of threads that an exported file uses (.onnx, .xml). Unset: one for each core."""
    streams: int | None = None
    """Number of images that an OpenVINO file computes at the same time. Raise it for throughput, lower it for the
    fastest single image. Unset: chosen for each call."""
    ray: Annotated[str | None, arg(metavar="[HOST:PORT]")] = None
    """Divide the images among the workers of a Ray cluster. Without an address: the cluster in the variable
    RAY_ADDRESS, or workers on this machine. Paths must lead to the same files on all machines."""
    scale: ScaleOptions = field(default_factory=ScaleOptions)


def run(argv: Sequence[str]) -> int:
    """``retinanet detect WEIGHTS SOURCE...``."""
    given = parse(Arguments, argv, "retinanet detect")
    given.scale.require_ray(given.ray)
    from retinanet.detection.loading import load
    from retinanet.detection.run import detect
    from retinanet.detection.tile_plan import TileOptions
    from retinanet.detection.written_files import FAILED

    result = detect(
        partial(load, given.weights, given.precision, given.device, threads=given.threads, streams=given.streams),
        [*given.sources, *(f"@{path}" for path in given.list)],
        given.out,
        score=given.score,
        formats=given.format,
        draw=given.draw,
        max_detections=given.max_detections,
        tile=TileOptions.of(given.tile, given.overlap, given.tile_scales),
        max_pixels=given.max_pixels,
        resume=given.resume,
        web=given.web,
        video=given.video,
        track=given.track,
        frame_rate=given.frame_rate,
        console=console,
        make_runner=_cluster_runner(given),
    )
    for line in result.videos:
        console.print(line)
    counts = ", ".join(f"{name} {count}" for name, count in result.counts.most_common(8)) or "no objects"
    earlier = f", {result.resumed} of them recorded before" if given.resume else ""
    what = f"{'frame' if result.videos else 'image'}{'s' * (result.images != 1)}"
    console.print(f"{result.images} {what}{earlier}: {counts} (score ≥ {result.score:g})")
    if result.speed:
        console.print(result.speed)
    print_notes(result.notes)
    console.print(f"wrote {', '.join(result.written)} in {given.out}")
    if result.failed and result.videos:
        raise RetinaNetError("; ".join(result.failures))
    if result.failed:
        total = result.images + result.failed
        more = f"; all are in {given.out / FAILED}" if result.failed > 3 else ""
        raise RetinaNetError(
            f"{result.failed} of {total} images could not be read: {'; '.join(result.failures[:3])}{more}"
        )
    return 0


def _cluster_runner(given: Arguments) -> MakeRunner | None:
    """Return what runs the detector on the cluster that was given."""
    if given.ray is None:
        return None
    from retinanet.scale.detection import cluster_runner
    from retinanet.scale.work import ModelSource

    model = ModelSource(str(given.weights), given.precision, given.device, given.threads, given.streams)
    return cluster_runner(given.ray, given.scale, model)
