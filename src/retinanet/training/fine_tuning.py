"""Training that starts from a detector (``model.init``) instead of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retinanet.config import Config
from retinanet.errors import CheckpointError, ConfigError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.weights import find_weights, load_weights, read_info

# Names of classes in a message; a detector of COCO has 80.
_SHOWN = 8


def starting_config(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return ``config`` with the network, the anchors and the resizing of the detector that ``model.init`` names.

    Args:
        config: the settings of a recipe.
        settings: single settings that replace them afterwards, named as flags; ``model.init`` among them counts.

    Raises:
        CheckpointError: the detector's file cannot be read.
    """
    init = settings.get("model.init", config.model.init)
    if init is None:
        return config
    own = read_info(find_weights(init)).config
    wanted = config.model
    model = replace(
        own.model,
        init=str(init),
        pretrained=False,
        weights=None,
        norm=wanted.norm,
        freeze_stages=wanted.freeze_stages,
        prior=wanted.prior,
    )
    data = replace(config.data, resize=own.data.resize, pad_to=own.data.pad_to)
    decode = replace(config.decode, clip=own.decode.clip, size_limit=own.decode.size_limit)
    return replace(config, model=model, anchors=own.anchors, data=data, decode=decode)


def start_lines(init: str, classes: tuple[str, ...]) -> list[str]:
    """Say what a training takes from the detector ``init``, and which ``classes`` keep their outputs or are new.

    Raises:
        CheckpointError: the detector's file cannot be read.
    """
    theirs = read_info(find_weights(init)).classes
    kept = [name for name in classes if name in theirs]
    new = [name for name in classes if name not in theirs]
    unused = [name for name in theirs if name not in classes]
    return [
        f"starting from {init}: its backbone, its feature pyramid, its box subnet and the hidden layers of its "
        "classification subnet are kept",
        f"classes that keep their outputs: {_listed(kept)}; new classes: {_listed(new)}; "
        f"classes of {init} that are left out: {_listed(unused)}",
    ]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "none"
    return f"{shown}, … ({len(names)} in all)" if len(names) > _SHOWN else shown


@torch.no_grad()
def start_from(model: RetinaNet, init: str, classes: tuple[str, ...]) -> None:
    """Give ``model`` the weights and the normalization of the detector ``init``, in place.

    Classes are compared by name. A class that the detector knows keeps its outputs; the outputs of other classes stay
    as they were initialized.

    Args:
        model: a network for ``classes``.
        init: a weight file, or the name of a bundled model.
        classes: names of the outputs of ``model``.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: the detector has another structure than ``model``.
    """
    detector, info = load_weights(init)
    own = model.state_dict()
    loaded: dict[str, Tensor] = {}
    for key, value in detector.state_dict().items():
        if key.startswith("classification.predict."):
            value = _outputs(value, own[key], info, classes)
        if key not in own or own[key].shape != value.shape:
            raise ConfigError(f"model.init: {key!r} of {init} does not fit the other settings; leave model.* out")
        loaded[key] = value
    if missing := own.keys() - loaded.keys():
        raise ConfigError(f"model.init: {init} has no {min(missing)!r}; leave the settings of model.* out")
    model.load_state_dict(loaded)
    model.backbone.mean, model.backbone.std = detector.mean, detector.std


def _outputs(theirs: Tensor, own: Tensor, info: ModelInfo, classes: tuple[str, ...]) -> Tensor:
    """Weights ``(A·K, …)`` of the outputs: those of the detector for its classes, else those of ``own``."""
    anchors = len(theirs) // len(info.classes)
    if len(own) != anchors * len(classes) or theirs.shape[1:] != own.shape[1:]:
        raise CheckpointError("model.init: the detector has other anchors or channels; leave anchors.* and model.* out")
    result = own.reshape(anchors, len(classes), -1).clone()  # reshape, because convolutions are channels-last
    known = theirs.reshape(anchors, len(info.classes), -1)
    for number, name in enumerate(classes):
        if name in info.classes:
            result[:, number] = known[:, info.classes.index(name)].to(result)
    return result.reshape(own.shape)
