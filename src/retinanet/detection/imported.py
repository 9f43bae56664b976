"""Detectors with weights that another program trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinanet.detection.pytorch import PyTorchDetector
from retinanet.machine import Precision
from retinanet.zoo.importers.detectron2 import load_detectron2
from retinanet.zoo.importers.mmdet import load_mmdet
from retinanet.zoo.importers.odtk import load_odtk
from retinanet.zoo.importers.options import DEFAULT_OPTIONS, ImportOptions
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


def from_detectron2(
    checkpoint: Mapping[str, Any],
    precision: Precision = "auto",
    device: str = "auto",
    options: ImportOptions = DEFAULT_OPTIONS,
) -> PyTorchDetector:
    """Return a detector with the weights of a RetinaNet of detectron2.

    Args:
        checkpoint: see :func:`retinanet.zoo.importers.detectron2.load_detectron2`.
        precision: see :func:`retinanet.load`.
        device: see :func:`retinanet.load`.
        options: class names, and settings that the checkpoint does not tell.

    Raises:
        CheckpointError: it is no such RetinaNet, or a tensor is missing or has a wrong shape.
        ConfigError: an option does not fit.
    """
    model, info = load_detectron2(checkpoint, options)
    return PyTorchDetector(model, info, precision, device)


def from_mmdet(
    checkpoint: Mapping[str, Any],
    precision: Precision = "auto",
    device: str = "auto",
    options: ImportOptions = DEFAULT_OPTIONS,
) -> PyTorchDetector:
    """Return a detector with the weights of a RetinaNet of mmdetection 2 or 3.

    Args:
        checkpoint: see :func:`retinanet.zoo.importers.mmdet.load_mmdet`.
        precision: see :func:`retinanet.load`.
        device: see :func:`retinanet.load`.
        options: class names, and settings that the checkpoint does not tell.

    Raises:
        CheckpointError: it is no such RetinaNet, or a tensor is missing or has a wrong shape.
        ConfigError: an option does not fit.
    """
    model, info = load_mmdet(checkpoint, options)
    return PyTorchDetector(model, info, precision, device)


def from_odtk(
    checkpoint: Mapping[str, Any],
    precision: Precision = "auto",
    device: str = "auto",
    options: ImportOptions = DEFAULT_OPTIONS,
) -> PyTorchDetector:
    """Return a detector with the weights of a RetinaNet of NVIDIA's odtk (retinanet-examples).

    Args:
        checkpoint: see :func:`retinanet.zoo.importers.odtk.load_odtk`.
        precision: see :func:`retinanet.load`.
        device: see :func:`retinanet.load`.
        options: class names, and settings that the checkpoint does not tell.

    Raises:
        CheckpointError: it is no such RetinaNet, or a tensor is missing or has a wrong shape.
        ConfigError: an option does not fit.
    """
    model, info = load_odtk(checkpoint, options)
    return PyTorchDetector(model, info, precision, device)
