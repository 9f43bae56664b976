"""``retinanet verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse
from retinanet.optional_packages import explain_missing_packages
from retinanet.read_options import ReadOptions


@dataclass(frozen=True)
class Arguments:
    """Compare an exported file, or the detections of another program, with the weights it was exported from."""

    file: Annotated[Positional[Path | None], arg(metavar="FILE")] = None
    """The exported file: .onnx, .xml or .pt2. Left out with --detections."""
    weights: Annotated[Positional[Path | None], arg(metavar="WEIGHTS")] = None
    """The .safetensors file that it was exported from, or the name of a bundled model."""
    data: Path | None = None
    """Dataset to compare on, including AP. Unset: some bundled images."""
    split: str = "val"
    """Split of the dataset."""
    detections: Path | None = None
    """Detections of DATA that another program computed with the file, in COCO's results format; compared with those of
    WEIGHTS."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of an OpenVINO file. auto: bf16 if the processor has it, else fp32."""
    reading: Annotated[ReadOptions, arg(name="data")] = field(default_factory=ReadOptions)


def run(argv: Sequence[str]) -> int:
    """``retinanet verify FILE WEIGHTS``."""
    given = parse(Arguments, argv, "retinanet verify")
    with explain_missing_packages("retinanet verify"):
        from retinanet.exporting.api import verify
    raise NotImplementedError
