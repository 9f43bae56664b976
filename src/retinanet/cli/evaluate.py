"""``retinanet eval``: evaluate a detector, or compare two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from retinanet.cli import compare, evaluate_one
from retinanet.cli.terminal import parse, refuse_ignored
from retinanet.errors import ConfigError
from retinanet.read_options import ReadOptions
from retinanet.scale.options import ScaleOptions

if TYPE_CHECKING:
    from retinanet.evaluation.model_evaluation import Source


@dataclass(frozen=True)
class Arguments:
    """Evaluate a detector on a dataset, or compare two detectors."""

    first: Annotated[Positional[str], arg(metavar="WEIGHTS", help_behavior_hint="(required)")] = ""
    """Weights file (.safetensors) of a training, exported file (.onnx, .xml), or name of a bundled model such as
    person."""
    second: Annotated[Positional[str], arg(metavar="[WEIGHTS]", help_behavior_hint="(optional)")] = ""
    """Second detector, to compare with the first."""
    third: Annotated[Positional[str], arg(metavar="DATA", help_behavior_hint="(required)")] = ""
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset, or its annotation file; always the last argument."""
    split: str = "val"
    """Split of DATA to evaluate on."""
    detections: UseAppendAction[tuple[Path, ...]] = ()
    """Detections to be evaluated instead of WEIGHTS: a JSON file in COCO's results format, or any output of retinanet
    detect (detections.csv, or the folder of its YOLO or Pascal VOC files)."""
    out: Path | None = None
    """Folder for the results. Default: eval/ beside WEIGHTS, or compare/ beside the second of two detectors."""
    max_detections: int | None = None
    """Largest number of detections per image. Unset: the number that the weights store. Raise it for dense images."""
    tile: str | None = None
    """Divide each image into tiles of this side in pixels; auto: the side at which objects appear as large as in the
    training; none: each image is scaled as a whole. Tiles are for small objects in large images. Unset: auto if the
    weights were trained on tiles or a setting of tiles is given, else none."""
    overlap: int | None = None
    """Pixels that neighboring tiles share. Unset: the length of the largest learnt object."""
    tile_scales: tuple[float, ...] = (1.0,)
    """Passes over each image: 1 0.5 adds tiles of twice the side, for objects that are larger than a tile."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network. auto: bf16 if the hardware supports it, else fp32."""
    device: str = "auto"
    """Device that the network runs on, such as cpu or cuda. auto: a GPU if there is one."""
    ray: Annotated[str | None, arg(metavar="[HOST:PORT]")] = None
    """Divide the images among the workers of a Ray cluster. Without an address: the cluster in the variable
    RAY_ADDRESS, or workers on this machine. Paths must lead to the same files on all machines."""
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    data: ReadOptions = field(default_factory=ReadOptions)


def run(argv: Sequence[str]) -> int:
    """``retinanet eval WEIGHTS DATA`` and ``retinanet eval WEIGHTS WEIGHTS DATA``."""
    given = parse(Arguments, argv, "retinanet eval")
    given.scale.require_ray(given.ray)
    if not (words := [word for word in (given.first, given.second, given.third) if word]):
        raise ConfigError("nothing to evaluate; give WEIGHTS DATA, or --detections FILE.json DATA")
    *weights, data = words
    if file := next((each for each in weights if each.lower().endswith(".json")), None):
        raise ConfigError(f"{file}: give a file of detections with its flag: --detections {file}")

    from retinanet.detection.tile_plan import TileOptions
    from retinanet.evaluation.detections import DetectionFile

    if not weights:
        ignored = ("tile", "overlap", "tile_scales", "precision", "device", "ray")
        refuse_ignored(given, ignored, "WEIGHTS")
    sources: list[Source] = [*weights, *map(DetectionFile, given.detections)]
    settings: dict[str, Any] = {"precision": given.precision, "device": given.device, "options": given.data}
    settings["max_detections"] = given.max_detections
    settings["tile"] = TileOptions.of(given.tile, given.overlap, given.tile_scales)
    if given.ray is not None:
        from retinanet.scale.evaluation import cluster_predictor

        settings["make_predictor"] = partial(
            cluster_predictor, given.ray, given.scale, precision=given.precision, device=given.device
        )
    if len(sources) == 2:
        return compare.run(sources[0], sources[1], data, given.out, given.split, settings)
    if len(sources) != 1:
        remedy = "give one to evaluate or two to compare: WEIGHTS, or --detections FILE.json"
        raise ConfigError(f"{len(sources)} detectors before DATA ({data}); {remedy}")
    return evaluate_one.run(sources[0], data, given.out, given.split, settings)
