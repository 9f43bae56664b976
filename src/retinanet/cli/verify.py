"""``retinanet verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse, refuse_ignored
from retinanet.errors import ConfigError
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
    trust: bool = False
    """Open a .pt2 file, which can run code. Only for files that you made yourself."""
    reading: Annotated[ReadOptions, arg(name="data")] = field(default_factory=ReadOptions)


def run(argv: Sequence[str]) -> int:
    """``retinanet verify FILE WEIGHTS``."""
    given = parse(Arguments, argv, "retinanet verify")
    words = [word for word in (given.file, given.weights) if word is not None]
    if len(words) != (1 if given.detections else 2):
        usage = "WEIGHTS --data DATA" if given.detections else "FILE WEIGHTS"
        raise ConfigError(f"{len(words)} files given; the command is: retinanet verify {usage}")
    if given.detections and given.data is None:
        raise ConfigError("--detections needs the images that were searched; give --data DATA")
    if given.data is None:
        refuse_ignored(given, ("split", "reading"), "a dataset (--data)")
    if given.detections or words[0].suffix.lower() != ".pt2":
        refuse_ignored(given, ("trust",), ".pt2 files")
    if given.detections:
        refuse_ignored(given, ("precision",), "exported files")
    with explain_missing_packages("retinanet verify"):
        from retinanet.exporting.api import verify, verify_detections
    settings: Any = {"split": given.split, "reading": given.reading, "console": console}
    if given.detections and given.data:
        result = verify_detections(given.detections, words[0], given.data, **settings)
    else:
        result = verify(words[0], words[1], given.data, precision=given.precision, trust=given.trust, **settings)
    for line in result.table():
        console.print(line)
    return 1 if result.faults else 0
