"""``retinanet convert``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, make_folder, parse, print_next
from retinanet.errors import CheckpointError, ConfigError, RetinaNetError
from retinanet.flags import quoted


@dataclass(frozen=True)
class Arguments:
    """Turn another implementation's weights into a file of this one: torchvision's RetinaNets (v1 and v2) so far."""

    source: Annotated[Positional[Path], arg(metavar="IN.pth")]
    """A state dict, or a checkpoint that holds one, pickled or safetensors; nothing in it is executed."""
    target: Annotated[Positional[Path], arg(metavar="OUT.safetensors")]
    """File to write."""
    classes: tuple[str, ...] = ()
    """Names of the network's outputs, in order; unset: COCO's for 91 outputs, else class 0, class 1, …"""
    norm_eps: float | None = None
    """Epsilon of the batch norm; unset: 0 if it is frozen, as in torchvision's published first version, else 1e-5."""


def run(argv: Sequence[str]) -> int:
    """``retinanet convert IN.pth OUT.safetensors``."""
    arguments = parse(Arguments, argv, "retinanet convert")
    source, target = arguments.source, arguments.target
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: name the file to write OUT.safetensors; that is what is written")
    if target.exists():
        raise RetinaNetError(f"{target} already exists; choose another name or remove it")

    from retinanet.zoo.foreign import read_foreign
    from retinanet.zoo.importers import from_torchvision
    from retinanet.zoo.weights import save_weights

    try:
        detector = from_torchvision(read_foreign(source), "fp32", "cpu", arguments.classes or None, arguments.norm_eps)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(source)) else f"{source}: {message}") from error
    make_folder(target.parent, flag="")
    save_weights(target, detector.model.state_dict(), detector.info)
    model, names = detector.info.config.model, detector.classes
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    norm = "group norm" if model.subnet_norm == "group" else "no norm"
    console.print(
        f"wrote {target}: RetinaNet {model.backbone}, {model.channels} channels, P6 from {model.p6_from.upper()}, "
        f"{norm} in the subnets, {len(names)} output{'s' * (len(names) != 1)} ({listed})"
    )
    if model.norm_eps == 0 and arguments.norm_eps is None:
        console.print(
            "note: batch norm is taken to be frozen and without epsilon, as in torchvision's published detector; if "
            "this training began from an ImageNet backbone, convert it again with --norm-eps 1e-5"
        )
    if not arguments.classes and names[0] == "class 0":
        console.print("note: torchvision keeps no class names; add --classes NAME NAME … to give them")
    print_next(f"retinanet detect {quoted(target)} PHOTO.jpg")
    return 0
