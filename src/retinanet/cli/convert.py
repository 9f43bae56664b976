"""``retinanet convert``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse
from retinanet.flags import quoted


@dataclass(frozen=True)
class Arguments:
    """Convert weights of torchvision's RetinaNets (v1 and v2) into a file of this package."""

    source: Annotated[Positional[Path], arg(metavar="IN.pth")]
    """State dict or checkpoint of a torchvision RetinaNet (.pth or .safetensors). No code in it is executed."""
    target: Annotated[Positional[Path], arg(metavar="OUT.safetensors")]
    """File to write."""
    classes: tuple[str, ...] = ()
    """Names of the network's outputs, in order. Unset: those in the checkpoint, else COCO's for 91 outputs, else
    class 0, class 1, …"""
    norm_eps: float | None = None
    """Epsilon of the batch norm. Unset: 0 if batch norm is frozen, as in torchvision's published v1, else 1e-5."""


def run(argv: Sequence[str]) -> int:
    """Run ``retinanet convert IN.pth OUT.safetensors``."""
    arguments = parse(Arguments, argv, "retinanet convert")
    from retinanet.zoo.conversion import convert_weights

    target = arguments.target
    notes: list[str] = []
    info = convert_weights(arguments.source, target, arguments.classes, arguments.norm_eps, notes.append)
    settings, names = info.config.model, info.classes
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    norm = "group norm" if settings.subnet_norm == "group" else "no norm"
    console.print(
        f"wrote {target}: RetinaNet {settings.backbone}, {settings.channels} channels, P6 from "
        f"{settings.p6_from.upper()}, {norm} in the subnets, {len(names)} output{'s' * (len(names) != 1)} ({listed})"
    )
    for note in notes:
        console.print(f"note: {note}")
    if settings.norm_eps == 0 and arguments.norm_eps is None:
        console.print(
            "note: batch norm is assumed to be frozen and without epsilon, as in torchvision's published detector; if "
            "this training began from an ImageNet backbone, convert it again with --norm-eps 1e-5"
        )
    if not arguments.classes and names[0] == "class 0":
        console.print("note: the file holds no class names; add --classes NAME NAME … to give them")
    console.print(f"detect objects with: retinanet detect {quoted(target)} IMAGE")
    return 0
