"""Convert weights of other programs into a file of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retinanet.errors import CheckpointError, ConfigError, RetinaNetError
from retinanet.files import make_folder
from retinanet.model import RetinaNet
from retinanet.model.foreign_weights import read_foreign
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers import detectron2, mmdet, odtk, torchvision
from retinanet.zoo.importers.checkpoints import find_network
from retinanet.zoo.importers.networks import Origin, first_keys
from retinanet.zoo.importers.options import DEFAULT_OPTIONS, ImportOptions, Note
from retinanet.zoo.weights import save_weights

Load = Callable[[Mapping[str, Any], ImportOptions, Note], tuple[RetinaNet, ModelInfo]]

# Keys of detectors that are no RetinaNets, and of files that are no detectors.
_OTHERS = {
    r"(^|\.)roi_heads?\.|(^|\.)(proposal_generator|rpn_head|rpn)\.": "a two-stage detector such as Faster R-CNN",
    r"(^|\.)neck\.(downsample_convs|pafpn_convs)\.": "a PAFPN neck",
    r"(^|\.)bbox_head\.(?!retina_)": "another head of mmdetection",
    r"^blobs$|(^|\.)conv1_w$": "a Detectron (Caffe2) model",
    r"^matching_heuristics$": "an ImageNet backbone of detectron2",
    r"^(module\.)?(layer4\.|fc\.|conv1\.weight)|(^|\.)res5\.": "a classifier or a backbone",
}


def convert_weights(
    source: str | Path,
    target: str | Path,
    options: ImportOptions = DEFAULT_OPTIONS,
    note: Note = lambda line: None,
) -> ModelInfo:
    """Convert a RetinaNet of another program, as the command ``retinanet convert`` does.

    The program is recognized from the names of the tensors: torchvision (v1 and v2), detectron2, mmdetection or odtk.

    Args:
        source: a state dict, a checkpoint that holds one, or a whole model, pickled or safetensors; no code in it is
            executed.
        target: the file to write, ``*.safetensors``.
        options: class names, and settings that the file does not tell.
        note: called with each remark about a choice that was made.

    Returns:
        Classes and settings of the detector.

    Raises:
        ConfigError: ``target`` has another suffix, or an option does not fit the program.
        CheckpointError: ``source`` does not hold such weights.
        RetinaNetError: ``target`` exists or cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: the file to write must be named OUT.safetensors")
    if target.exists():
        raise RetinaNetError(f"{target} already exists; choose another name or remove it")
    try:
        checkpoint = read_foreign(source)
        model, info = _loader(checkpoint)(checkpoint, options, note)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(source)) else f"{source}: {message}") from error
    make_folder(target.parent, flag="")
    save_weights(target, model.state_dict(), info)
    return info


def _loader(checkpoint: Mapping[str, Any]) -> Load:
    """The importer of the program that wrote ``checkpoint``.

    Raises:
        CheckpointError: it is not a RetinaNet of a known program.
    """
    loaders: list[tuple[Origin, Load]] = [
        (torchvision.ORIGIN, _load_torchvision),
        (mmdet.ORIGIN, mmdet.load_mmdet),
        (detectron2.ORIGIN, detectron2.load_detectron2),
        (odtk.ORIGIN, odtk.load_odtk),
    ]
    for origin, load in loaders:
        if find_network(checkpoint, origin.marker) is not None:
            return load
    keys = list(_keys(checkpoint, 3))
    found = next((name for pattern, name in _OTHERS.items() if any(re.search(pattern, key) for key in keys)), None)
    raise CheckpointError(
        "expected a RetinaNet of torchvision, detectron2, mmdetection or odtk; "
        f"found {found or 'other names'} ({first_keys(checkpoint)}, …)"
    )


def _keys(content: Mapping[Any, Any], depth: int) -> list[str]:
    found = [key for key in content if isinstance(key, str)]
    for value in content.values() if depth else ():
        found += _keys(value, depth - 1) if isinstance(value, Mapping) else []
    return found


def _load_torchvision(checkpoint: Mapping[str, Any], options: ImportOptions, note: Note) -> tuple[RetinaNet, ModelInfo]:
    if options.only_for_others:
        raise ConfigError(f"{options.only_for_others[0]} does not apply to torchvision's models; leave it out")
    return torchvision.load_torchvision(checkpoint, options.classes or None, options.norm_eps, note)
