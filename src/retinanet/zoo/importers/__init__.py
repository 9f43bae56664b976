"""Weights that other programs trained, as models and detectors of this package.

``from_torchvision`` is imported on first use, because it returns a detector and the detector imports this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retinanet.optional_packages import explain_missing_packages

if TYPE_CHECKING:
    from retinanet.detection.imported import from_torchvision as from_torchvision

__all__ = ["from_torchvision"]


def __getattr__(name: str) -> Any:
    if name == "from_torchvision":
        with explain_missing_packages("from_torchvision"):
            return import_module("retinanet.detection.imported").from_torchvision
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
