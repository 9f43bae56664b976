"""``retinanet.load``: a detector from weights or from an exported file."""

from __future__ import annotations

from pathlib import Path

from retinanet.detection.detector import Detector
from retinanet.detection.runtime import EXPORTED, load_exported
from retinanet.errors import ConfigError
from retinanet.machine import Precision
from retinanet.optional_packages import explain_missing_packages


def load(
    weights: str | Path,
    precision: Precision = "auto",
    device: str = "auto",
    compile: bool = False,
    *,
    threads: int | None = None,
    streams: int | None = None,
) -> Detector:
    """Load a detector.

    An exported file (``.onnx``, ``.xml``) needs its runtime (``pip install 'retinanet[runtime]'`` or
    ``'retinanet[openvino]'``), but not PyTorch.

    Args:
        weights: path of a ``.safetensors`` file that ``retinanet train`` wrote, the name of a bundled model
            (``person``), or a file that ``retinanet export`` wrote: ``.onnx`` or ``.xml`` (OpenVINO).
        precision: arithmetic of the network; ``auto``: bf16 if the hardware supports it, else fp32. ONNX files
            run in fp32.
        device: ``cpu``, ``cuda``, …; ``auto``: for weights, a GPU if there is one; for exported files, the CPU.
        compile: run the network through ``torch.compile``. Compilation takes up to a minute for each new image size
            and needs a C++ compiler, so it is worthwhile for many images.
        threads: threads that an ONNX or OpenVINO file uses; unset: one for each core.
        streams: images that an OpenVINO file computes at the same time. Unset: 1 for a single image, and one for each
            thread if there are several images.

    Raises:
        CheckpointError: the file does not exist or was not written by this package.
        ConfigError: the device cannot be used, or a setting does not fit the file.
        MissingPackageError: PyTorch or the runtime of the file is not installed.
    """
    if Path(weights).suffix.lower() in EXPORTED:
        if compile:
            raise ConfigError(f"{weights}: exported files are compiled already; leave compile out")
        return load_exported(Path(weights), precision, device, threads, streams)
    if threads is not None or streams is not None:
        raise ConfigError(f"{weights}: threads and streams are settings of exported files (.onnx, .xml)")
    with explain_missing_packages(str(weights)):
        from retinanet.detection.pytorch import load_pytorch

        return load_pytorch(weights, precision, device, compile)
