"""What all importers share: the network in a checkpoint, its backbone, its tensors, and names of its classes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor

from retinanet.errors import CheckpointError
from retinanet.model import RetinaNet
from retinanet.model.inert_pickle import Skipped
from retinanet.zoo.importers.checkpoints import Network, find_class_names, find_network
from retinanet.zoo.importers.options import Note

# ResNets and ResNeXts that the programs offer; timm uses the same names. The most common one comes first.
_BACKBONES = (
    "resnet50",
    "resnet18",
    "resnet34",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)

_BODY = "backbone.body."


@dataclass(frozen=True)
class Origin:
    """The program that trained a network.

    Attributes:
        marker: end of a key that only RetinaNets of this program have.
        expected: beginning of all messages: what a state dict should be.
        theirs: converts a key of this package to the program's, for messages.
    """

    marker: str
    expected: str
    theirs: Callable[[str], str]

    def refuse(self, reason: str) -> CheckpointError:
        """Return the error that says why a state dict cannot be imported."""
        return CheckpointError(f"{self.expected}; {reason}")


def require_network(checkpoint: Any, origin: Origin) -> Network:
    """Return the network in ``checkpoint``, whose values are all tensors.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{origin.expected}, got a {type(checkpoint).__name__}")
    network = find_network(checkpoint, origin.marker)
    if network is None:
        raise origin.refuse(f"{origin.marker!r} is missing (found {first_keys(checkpoint)}, …)")
    odd = next((key for key, value in network.state.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        value = network.state[odd]
        kind = value.name if isinstance(value, Skipped) else type(value).__name__
        raise origin.refuse(f"{odd!r} is a {kind} and not a tensor")
    return network


def first_keys(checkpoint: Mapping[str, Any]) -> str:
    """Name the first keys of the state dict, for messages."""
    inner = (checkpoint.get(key) for key in ("model", "state_dict", "model_state_dict"))
    content = next((value for value in inner if isinstance(value, Mapping)), checkpoint)
    return ", ".join(map(str, list(content)[:2])) or "nothing"


def convolution_shape(state: Mapping[str, Tensor], key: str, origin: Origin) -> tuple[int, ...]:
    """Shape of the convolution weight ``key``, a key of this package.

    Raises:
        CheckpointError: it is missing, or no convolution.
    """
    if key not in state or state[key].ndim != 4:
        raise origin.refuse(f"{origin.theirs(key)!r} is missing or not a convolution")
    return tuple(state[key].shape)


def recognize_backbone(state: Mapping[str, Tensor], origin: Origin) -> tuple[str, tuple[int, ...] | None]:
    """Return the timm name of the backbone in ``state``, and the channels of its stages if they are not timm's.

    Raises:
        CheckpointError: it is none of the known networks; the message names the nearest one.
    """
    body = {key.removeprefix(_BODY): value.shape for key, value in state.items() if key.startswith(_BODY)}
    nearest, least = "", math.inf
    for name in _BACKBONES:
        misfits, unknown, wanted = _differences(body, name)
        if not misfits and not unknown:
            return name, None
        if len(misfits) + len(unknown) < min(least, len(wanted) / 2):
            least = len(misfits) + len(unknown)
            key = (misfits or unknown)[0]
            if key not in body:
                fault = f"is missing from its {name}"
            elif misfits:
                fault = f"has shape {tuple(body[key])} instead of {tuple(wanted[key])} ({name})"
            else:
                fault = f"does not belong to {name}"
            nearest = f"{origin.theirs(_BODY + key)!r} {fault}"
    channels = _stage_channels(body)
    for name in _BACKBONES if channels else ():
        misfits, unknown, _ = _differences(body, name, channels)
        if not misfits and not unknown:
            return name, channels
    raise origin.refuse(nearest or f"its backbone is none of {', '.join(_BACKBONES)}")


def _differences(
    body: Mapping[str, torch.Size], name: str, channels: tuple[int, ...] | None = None
) -> tuple[list[str], list[str], dict[str, torch.Size]]:
    """Parameters of a timm network that ``body`` lacks, keys of ``body`` that it does not have, and its shapes."""
    wanted, keys = _shapes(name, channels)
    misfits = [key for key in wanted if body.get(key) != wanted[key]]
    unknown = sorted(body.keys() - keys)  # a ResNet-34 has all keys of a ResNet-18
    return misfits, unknown, wanted


@cache
def _shapes(name: str, channels: tuple[int, ...] | None) -> tuple[dict[str, torch.Size], frozenset[str]]:
    """Shapes of the parameters of a timm network, whose stages have ``channels`` if set, and the keys of its state."""
    settings: dict[str, Any] = {} if channels is None else {"channels": channels}
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True, out_indices=(-3, -2, -1), **settings)
    return {key: value.shape for key, value in network.named_parameters()}, frozenset(network.state_dict())


def _stage_channels(body: Mapping[str, torch.Size]) -> tuple[int, ...] | None:
    """Channels inside the blocks of the four stages; None if it is no ResNet."""
    channels = []
    for stage in range(1, 5):
        last = body.get(f"layer{stage}.0.conv3.weight")
        basic = body.get(f"layer{stage}.0.conv2.weight")
        if last is None and basic is None:
            return None
        channels.append(basic[0] if last is None and basic is not None else last[0] // 4)  # type: ignore[index]
    return tuple(channels) if min(channels) > 0 else None


def load_tensors(model: RetinaNet, state: Mapping[str, Tensor], origin: Origin) -> None:
    """Load ``state``, with the keys of this package, into ``model``, after a check of each tensor.

    Counters of batch norm (``num_batches_tracked``) may be missing.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or has values that no network works with.
    """
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    wanted = model.state_dict()
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state and key not in counters]
    unknown = [key for key in state if key not in wanted]
    misfits = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing:
        raise origin.refuse(f"{origin.theirs(missing[0])!r} is missing ({len(missing)} in all)")
    if misfits:
        shapes = f"{tuple(state[misfits[0]].shape)} instead of {tuple(wanted[misfits[0]].shape)}"
        raise origin.refuse(f"{origin.theirs(misfits[0])!r} has shape {shapes}")
    if unknown:
        raise origin.refuse(f"{origin.theirs(unknown[0])!r} does not belong to it ({len(unknown)} in all)")
    eps = min((module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)), default=1.0)
    for key, value in state.items():
        _require_numbers(key, value, eps > 1e-30, origin)
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # such as a tensor without data, on the "meta" device
        raise origin.refuse("its tensors hold no values") from error


def _require_numbers(key: str, value: Tensor, has_eps: bool, origin: Origin) -> None:
    if value.layout != torch.strided or not (value.is_floating_point() or key.endswith("num_batches_tracked")):
        kind = str(value.dtype).removeprefix("torch.")
        raise origin.refuse(f"{origin.theirs(key)!r} is not a dense tensor of real numbers ({kind})")
    if value.is_meta:
        return
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise origin.refuse(f"{origin.theirs(key)!r} holds NaN or infinity; its training has failed")
    if not key.endswith("running_var"):
        return
    # Batch norm divides by the square root of variance + epsilon.
    least = value.min().item()
    if least < 0:
        raise origin.refuse(f"{origin.theirs(key)!r} holds the variance {least:g}, which is below 0")
    if least == 0 and not has_eps:
        raise CheckpointError(
            f"{origin.theirs(key)!r} holds a variance of 0, and frozen batch norm is assumed to have no epsilon; "
            "give norm_eps, usually 1e-5 (--norm-eps 1e-5)"
        )


def require_names(count: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` as a tuple.

    Raises:
        CheckpointError: they are not ``count`` different names.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(name, str) and name for name in names):
        raise CheckpointError("a class name is empty or not text; give a name for each output")
    if len(names) != count or len(set(names)) != count:
        raise CheckpointError(f"{len(names)} class names for {count} outputs; give {count} different names, in order")
    return names


def name_classes(checkpoint: Mapping[str, Any], count: int, given: Sequence[str], note: Note) -> tuple[str, ...]:
    """Return the names of ``count`` outputs of a network without background.

    They are those ``given``, else those in the checkpoint, else COCO's for 80 outputs, else ``class 0``, ``class 1``, …
    """
    if given:
        return require_names(count, given)
    found, key = find_class_names(checkpoint, count, background=False)
    if key:
        note(f"the class names are those of {key!r} in the checkpoint" if found else key)
    if found:
        return found
    coco = coco_names()
    if count == len(coco):
        note("the class names are assumed to be COCO's, because there are 80 outputs; --classes gives others")
        return coco
    return tuple(f"class {index}" for index in range(count))


def coco_names() -> tuple[str, ...]:
    """The 80 classes of COCO, in ascending order of their ids."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    names = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if not re.fullmatch(r"__background__|N/A", name))
