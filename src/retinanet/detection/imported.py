"""Detectors with weights that another program trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinanet.detection.pytorch import PyTorchDetector
from retinanet.machine import Precision
from retinanet.zoo.importers.torchvision import load_torchvision


def from_torchvision(
    state_dict: Mapping[str, Any],
    precision: Precision = "auto",
    device: str = "auto",
    classes: Sequence[str] | None = None,
    norm_eps: float | None = None,
) -> PyTorchDetector:
    """Return a detector with the weights of a torchvision RetinaNet.

    Args:
        state_dict: see :func:`retinanet.zoo.importers.torchvision.load_torchvision`.
        precision: see :func:`retinanet.load`.
        device: see :func:`retinanet.load`.
        classes: names of the network's outputs, in order; the default is described at ``load_torchvision``.
        norm_eps: epsilon of the batch norm; the default is described at ``load_torchvision``.

    Raises:
        CheckpointError: the state dict is not of a torchvision RetinaNet, or a tensor is missing or has a wrong shape.
    """
    model, info = load_torchvision(state_dict, classes, norm_eps)
    return PyTorchDetector(model, info, precision, device)
