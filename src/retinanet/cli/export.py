"""``retinanet export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse, print_next, print_notes, quoted, refuse_ignored
from retinanet.exporting.options import ExportOptions, Target
from retinanet.optional_packages import explain_missing_packages
from retinanet.read_options import ReadOptions


@dataclass(frozen=True)
class Arguments(ExportOptions):
    """Write a model as ONNX, OpenVINO or torch.export, and compare the file with the model on real images."""

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")] = field(kw_only=True)
    """A .safetensors file of a training, or the name of a bundled model such as person."""
    to: Target = "onnx"
    """onnx: for ONNX Runtime and most other programs. openvino: the fastest on Intel and AMD processors. torch: a
    torch.export program (.pt2)."""
    out: Path | None = None
    """File to write. Unset: named after WEIGHTS, beside it."""
    data: Path | None = None
    """Dataset to compare the file with the model on, including AP; needed for int8. Unset: some bundled images."""
    split: str = "val"
    """Split of the dataset to compare on. INT8 takes the value ranges from its split train."""
    reading: Annotated[ReadOptions, arg(name="data")] = field(default_factory=ReadOptions)


def run(argv: Sequence[str]) -> int:
    """``retinanet export WEIGHTS --to onnx|openvino|torch``."""
    given = parse(Arguments, argv, "retinanet export")
    if given.data is None:
        refuse_ignored(given, ("split", "reading"), "a dataset (--data)")
    if not given.int8:
        refuse_ignored(given, ("max_drop",), "--int8")
    if given.to == "torch":
        refuse_ignored(given, ("opset",), "ONNX and OpenVINO files")
    with explain_missing_packages("retinanet export"):
        from retinanet.exporting.api import export
    from retinanet.errors import ExportError

    options = ExportOptions(**{each.name: getattr(given, each.name) for each in fields(ExportOptions)})
    try:
        result = export(
            given.weights,
            given.to,
            given.out,
            data=given.data,
            split=given.split,
            options=options,
            reading=given.reading,
            console=console,
            say=lambda line: console.print(f"{line} …"),
        )
    except ExportError as error:
        for line in error.table.splitlines():
            console.print(line)
        raise
    for verification in result.verifications:
        for line in verification.table():
            console.print(line)
    print_notes(result.notes)
    names = " and ".join(quoted(path) for path in reversed(result.files))
    console.print(f"wrote {names} ({result.bytes / 1e6:.1f} MB)")
    if given.to == "torch":  # only PyTorch programs of the user load it
        print_next(f"retinanet verify {quoted(result.path)} {quoted(given.weights)} --trust")
    else:
        # The default score of detection is 0.3.
        lowest = f" --score {given.score:g}" if (given.score or 0) > 0.3 else ""
        print_next(f"retinanet detect {quoted(result.path)} IMAGE{lowest}")
    return 0
