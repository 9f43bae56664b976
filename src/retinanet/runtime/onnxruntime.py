"""Run exported ONNX files with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from retinanet.errors import CheckpointError, ConfigError
from retinanet.machine import Precision, cores
from retinanet.runtime.exported import METADATA_KEY, Arithmetic, ExportedModel, require_file, require_graph

_ERRORS_ONLY = 3


class OnnxNetwork:
    """An exported ONNX file; see :class:`retinanet.runtime.exported.ExportedNetwork`.

    Args:
        path: the ``.onnx`` file.
        precision: ``auto`` or ``fp32``; ONNX Runtime computes with the numbers of the file.
        device: ``auto`` and ``cpu``: the processor; ``cuda`` or ``cuda:1``: a GPU, with the package onnxruntime-gpu.
        threads: number of threads that compute one operation; unset: the number of cores.

    Raises:
        CheckpointError: the file does not exist, is damaged, or was not written by this package.
        ConfigError: a setting cannot be used.
    """

    def __init__(
        self, path: Path, precision: Precision = "auto", device: str = "auto", threads: int | None = None
    ) -> None:
        require_file(path)
        if precision not in ("auto", "fp32"):
            raise ConfigError(f"precision is {precision!r}; ONNX files run in fp32 (or as auto); bf16 needs OpenVINO")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = cores() if threads is None else threads
        options.inter_op_num_threads = 1
        # A thread without work would keep a core busy, which the threads that read images need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(device)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has a class for each kind of error, without a common base class
            reason = str(error).splitlines()[0][:160]
            raise CheckpointError(
                f"{path}: ONNX Runtime cannot load the file ({reason}); it may be incomplete, export the model again"
            ) from error
        self.arithmetic: Arithmetic = "fp32"
        self.path = path
        self.model = ExportedModel.from_json(self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path)
        inputs, outputs = (
            {each.name: [side if isinstance(side, int) else None for side in each.shape] for each in values}
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        require_graph(self.model, path, inputs, outputs)
        pixels = next(each.type for each in self._session.get_inputs() if each.name == "images")
        if pixels != ("tensor(float)" if self.model.input_type is np.float32 else "tensor(uint8)"):
            raise CheckpointError(f"{path}: its input is a {pixels}, which its metadata does not say; export it again")
        self._names = list(outputs)

    def __call__(self, images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[Any]]:
        """Compute the outputs of the file, by name; see :class:`retinanet.runtime.exported.ExportedNetwork`."""
        outputs = self._session.run(self._names, {"images": images, "sizes": sizes})
        return dict(zip(self._names, outputs, strict=True))


def _providers(device: str) -> list[Any]:
    name, _, number = device.partition(":")
    if name in ("auto", "cpu") and not number:
        return ["CPUExecutionProvider"]
    available = onnxruntime.get_available_providers()
    if name == "cuda" and (number or "0").isdigit():
        if "CUDAExecutionProvider" in available:
            return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
        raise ConfigError(
            f"device {device!r} cannot be used: this ONNX Runtime has no CUDA; "
            "install onnxruntime-gpu in place of onnxruntime, or use cpu"
        )
    raise ConfigError(f"device {device!r} cannot be used with ONNX Runtime; use cpu or cuda")
