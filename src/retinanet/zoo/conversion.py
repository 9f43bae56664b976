"""Convert weights of other programs into a file of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from retinanet.errors import CheckpointError, ConfigError, RetinaNetError
from retinanet.files import make_folder
from retinanet.model.foreign_weights import read_foreign
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers.torchvision import load_torchvision
from retinanet.zoo.weights import save_weights


def convert_weights(
    source: str | Path,
    target: str | Path,
    classes: Sequence[str] | None = None,
    norm_eps: float | None = None,
    note: Callable[[str], object] = lambda line: None,
) -> ModelInfo:
    """Convert weights of a torchvision RetinaNet (v1 or v2), as the command ``retinanet convert`` does.

    Args:
        source: a state dict, a checkpoint that holds one, or a whole model, pickled or safetensors; no code in it is
            executed.
        target: the file to write, ``*.safetensors``.
        classes: names of the network's outputs; unset: those in the checkpoint, else COCO's for 91 outputs, else
            ``class 0``, ``class 1``, …
        norm_eps: epsilon of the batch norm; unset: 0 if batch norm is frozen, else 1e-5.
        note: called with each remark about a choice that was made.

    Returns:
        Classes and settings of the detector.

    Raises:
        ConfigError: ``target`` has another suffix.
        CheckpointError: ``source`` does not hold such weights.
        RetinaNetError: ``target`` exists or cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: the file to write must be named OUT.safetensors")
    if target.exists():
        raise RetinaNetError(f"{target} already exists; choose another name or remove it")
    try:
        model, info = load_torchvision(read_foreign(source), classes or None, norm_eps, note)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(source)) else f"{source}: {message}") from error
    make_folder(target.parent, flag="")
    save_weights(target, model.state_dict(), info)
    return info
