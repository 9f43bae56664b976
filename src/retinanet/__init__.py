"""RetinaNet: train, evaluate and run the focal-loss detector on your own images.

Names are imported on first use, so that ``import retinanet`` and ``retinanet --help`` load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retinanet._version import __version__
from retinanet.errors import RetinaNetError
from retinanet.optional_packages import explain_missing_packages

if TYPE_CHECKING:
    from retinanet.data.convert import convert_dataset as convert_dataset
    from retinanet.detection.detector import Detector as Detector
    from retinanet.detection.loading import load as load
    from retinanet.detection.run import detect as detect
    from retinanet.detection.video import frames as frames
    from retinanet.evaluation.model_comparison import compare as compare
    from retinanet.evaluation.model_evaluation import evaluate as evaluate
    from retinanet.exporting.api import export as export
    from retinanet.exporting.api import verify as verify
    from retinanet.inspection.anchor_fit import fit_anchors as fit_anchors
    from retinanet.inspection.dataset_inspection import inspect as inspect
    from retinanet.training.api import train as train

__all__ = [
    "Detector",
    "RetinaNetError",
    "__version__",
    "compare",
    "convert_dataset",
    "detect",
    "evaluate",
    "export",
    "fit_anchors",
    "frames",
    "inspect",
    "load",
    "train",
    "verify",
]

# The module of each name. No module or folder of the package may have one of these names. Python makes an imported
# submodule an attribute of its package, so the import would replace the function.
_LAZY = {
    "Detector": "retinanet.detection.detector",
    "compare": "retinanet.evaluation.model_comparison",
    "convert_dataset": "retinanet.data.convert",
    "detect": "retinanet.detection.run",
    "evaluate": "retinanet.evaluation.model_evaluation",
    "export": "retinanet.exporting.api",
    "fit_anchors": "retinanet.inspection.anchor_fit",
    "frames": "retinanet.detection.video",
    "inspect": "retinanet.inspection.dataset_inspection",
    "load": "retinanet.detection.loading",
    "train": "retinanet.training.api",
    "verify": "retinanet.exporting.api",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        with explain_missing_packages(f"retinanet.{name}"):
            return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'retinanet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
