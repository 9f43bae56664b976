"""RetinaNet, finished: train, evaluate and run the focal-loss detector on your own pictures.

Names are imported on first use, so that ``import retinanet`` and ``retinanet --help`` load no torch.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from retinanet._version import __version__
from retinanet.errors import RetinaNetError

if TYPE_CHECKING:
    from retinanet.detect.detector import Detector as Detector
    from retinanet.detect.detector import load as load
    from retinanet.training.api import train as train

__all__ = ["Detector", "RetinaNetError", "__version__", "load", "train"]

# Public names and their modules.
_LAZY = {
    "Detector": "retinanet.detect.detector",
    "load": "retinanet.detect.detector",
    "train": "retinanet.training.api",
}

# supervision asks every user to install OpenCV; its own NumPy drawing does all that is needed here.
warnings.filterwarnings("ignore", message="OpenCV .* is not installed", category=UserWarning)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'retinanet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
