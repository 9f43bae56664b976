"""``retinanet convert``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse
from retinanet.flags import quoted
from retinanet.zoo.importers.options import ImportOptions


@dataclass(frozen=True)
class Arguments:
    """Convert a RetinaNet of torchvision, detectron2, mmdetection or odtk into a file of this package."""

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """State dict or checkpoint of the other program (.pth, .pkl or .safetensors). No code in it is executed."""
    target: Annotated[Positional[Path], arg(metavar="OUT.safetensors")]
    """File to write."""
    options: Annotated[ImportOptions, arg(name="")] = field(default_factory=ImportOptions)


def run(argv: Sequence[str]) -> int:
    """Run ``retinanet convert IN OUT.safetensors``."""
    arguments = parse(Arguments, argv, "retinanet convert")
    from retinanet.zoo.conversion import convert_weights

    target = arguments.target
    notes: list[str] = []
    info = convert_weights(arguments.source, target, arguments.options, notes.append)
    settings, names = info.config.model, info.classes
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    norm = "group norm" if settings.subnet_norm == "group" else "no norm"
    console.print(
        f"wrote {target}: RetinaNet {settings.backbone}, {settings.channels} channels, P6 from "
        f"{settings.p6_from.upper()}, {norm} in the subnets, {len(names)} output{'s' * (len(names) != 1)} ({listed})"
    )
    for note in notes:
        console.print(f"note: {note}")
    if settings.norm_eps == 0 and arguments.options.norm_eps is None:
        console.print(
            "note: batch norm is assumed to be frozen and without epsilon, as in torchvision's published detector; if "
            "this training began from an ImageNet backbone, convert it again with --norm-eps 1e-5"
        )
    if not arguments.options.classes and names[0] == "class 0":
        console.print("note: the file holds no class names; add --classes NAME NAME … to give them")
    console.print(f"detect objects with: retinanet detect {quoted(target)} IMAGE")
    return 0
