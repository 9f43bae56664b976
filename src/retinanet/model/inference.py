"""Prepare a trained network for inference: the same function with fewer operations."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from retinanet.errors import ModelError
from retinanet.model.retinanet import RetinaNet

# Largest difference that folding may cause, relative to the largest output. It allows for float32 rounding in a deep
# network.
_TOLERANCE = 1e-3


def for_inference(model: RetinaNet, dtype: torch.dtype = torch.float32) -> RetinaNet:
    """Copy ``model`` in evaluation mode, with batch norm folded into the convolutions before it.

    Args:
        model: the network; it is not changed.
        dtype: dtype of the convolution weights. With autocast's dtype, the weights are not converted at every call; run
            the copy under autocast then.
    """
    ready = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(ready.backbone)
    for module in ready.modules():
        if isinstance(module, nn.Conv2d):
            module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ready


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> int:
    """Fold each batch norm into the convolution before it, in place. Return the number of folded layers.

    A random image ``(1, 3, 64, 64)`` goes through ``model`` to see which convolution feeds which batch norm. If the
    outputs differ afterwards (because a convolution's output was used twice, for example), nothing is changed.
    """
    device = next(model.parameters()).device
    if device.type == "meta":  # tensors without values: there are no outputs to compare
        return 0
    probe = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with _exact():
            pairs, before = _conv_before_norm(model, probe)
    except (
        RuntimeError,
        AssertionError,
        ValueError,
        ModelError,
    ):  # some transformers do not accept this image size
        return 0
    undo = [(owner, name, getattr(owner, name)) for _, _, owner, name in pairs]
    convolutions = [(conv, conv.weight, conv.bias) for conv, _, _, _ in pairs]
    for conv, norm, owner, name in pairs:
        conv.weight, conv.bias = _folded(conv, norm)
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        setattr(owner, name, rest)
    with _exact():
        after = _flat(model(probe))
    scale = before.abs().max().clamp(min=1e-6)
    if not (after - before).abs().max() <= _TOLERANCE * scale:
        for owner, name, norm in undo:
            setattr(owner, name, norm)
        for conv, weight, bias in convolutions:
            conv.weight, conv.bias = weight, bias
        return 0
    return len(pairs)


def _exact() -> contextlib.AbstractContextManager[None]:
    """Compute convolutions in float32 also on a GPU, because rounding to TF32 would exceed the tolerance."""
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, allow_tf32=False
    )
    return flags


Pair = tuple[nn.Conv2d, Any, nn.Module, str]


def _conv_before_norm(model: nn.Module, probe: Tensor) -> tuple[list[Pair], Tensor]:
    """Pairs of convolution and batch norm with the place of the norm in the model, and the outputs for ``probe``."""
    produced: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    found: dict[nn.Module, nn.Conv2d] = {}
    calls: dict[nn.Module, int] = {}

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] = calls.get(module, 0) + 1
        produced[id(output)] = (
            module,
            output,
            output._version,
        )  # the tensor is kept, so that no other tensor gets its id

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        conv, output, version = produced.get(id(inputs[0]), (None, None, 0))
        # The output must not have been changed in place.
        if conv is not None and output is not None and output._version == version:
            found[module] = conv

    handles = []
    owners: dict[nn.Module, tuple[nn.Module, str]] = {}
    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.Conv2d):
                handles.append(child.register_forward_hook(after_conv))
            elif type(child) in (nn.BatchNorm2d, BatchNormAct2d) and child.running_var is not None:
                handles.append(child.register_forward_pre_hook(before_norm))
                owners[child] = (owner, name)
    try:
        result = _flat(model(probe))
    finally:
        for handle in handles:
            handle.remove()
    once = [(conv, norm) for norm, conv in found.items() if calls[conv] == calls[norm] == 1]
    return [(conv, norm, *owners[norm]) for conv, norm in once], result


def _folded(conv: nn.Conv2d, norm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of the convolution that replaces ``conv`` and ``norm``."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * scale[:, None, None, None]
    return (
        nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False),
        nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False),
    )


def _flat(outputs: Any) -> Tensor:
    """Flatten nested lists of tensors into one vector."""
    if isinstance(outputs, Tensor):
        return outputs.flatten()
    return torch.cat([_flat(part) for part in outputs])
