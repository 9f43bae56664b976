"""Weights that other programs trained, as models and detectors of this package.

The functions are imported on first use, because they return a detector and the detector imports this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retinanet.optional_packages import explain_missing_packages

if TYPE_CHECKING:
    from retinanet.detection.imported import from_detectron2 as from_detectron2
    from retinanet.detection.imported import from_mmdet as from_mmdet
    from retinanet.detection.imported import from_odtk as from_odtk
    from retinanet.detection.imported import from_torchvision as from_torchvision
    from retinanet.zoo.importers.options import ImportOptions as ImportOptions

__all__ = ["ImportOptions", "from_detectron2", "from_mmdet", "from_odtk", "from_torchvision"]


def __getattr__(name: str) -> Any:
    if name == "ImportOptions":
        return import_module("retinanet.zoo.importers.options").ImportOptions
    if name in __all__:
        with explain_missing_packages(name):
            return getattr(import_module("retinanet.detection.imported"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
