"""Run exported OpenVINO files (``.xml`` and ``.bin``), compiled for inputs of any size."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retinanet.errors import CheckpointError, ConfigError
from retinanet.machine import Precision, cores
from retinanet.runtime.exported import METADATA_KEY, Arithmetic, ExportedModel, require_file, require_graph

if TYPE_CHECKING:
    import openvino

Arrays = Mapping[str, npt.NDArray[Any]]


class OpenVinoNetwork:
    """An exported OpenVINO file; see :class:`retinanet.runtime.exported.ExportedNetwork`.

    Images of a batch run one by one, and so their results do not depend on each other. A file that was
    exported for one size is 5 to 10 % faster. The model is not compiled for each size, because that takes as long as 10
    to 40 images, and may change the last digits.

    Args:
        path: the ``.xml`` file; the ``.bin`` file must be beside it.
        precision: ``fp32``: as the PyTorch model. ``bf16``: with bfloat16 multiplications. ``auto``: bf16 if the
            processor has instructions for it and the export has not found that it loses AP. The quantized layers of an
            int8 file run in int8 in any case.
        device: ``auto`` and ``cpu``: the processor; otherwise the name of an OpenVINO device.
        threads: number of threads; unset: the number of cores.
        streams: number of images that are computed at the same time, each with a share of the threads. Unset: one for
            single images, and one for each thread for several images.

    Raises:
        CheckpointError: a file does not exist, is damaged, or was not written by this package.
        ConfigError: a setting cannot be used.
    """

    def __init__(
        self,
        path: Path,
        precision: Precision = "auto",
        device: str = "auto",
        threads: int | None = None,
        streams: int | None = None,
    ) -> None:
        require_file(path)
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise CheckpointError(f"{path}: {weights.name} is missing beside it; copy both files, or export again")
        self._openvino = import_without_telemetry("openvino")
        self._core = self._openvino.Core()
        # Weights in memory stay as they are if the file is replaced; mapped weights would change or end the process.
        self._core.set_property({"ENABLE_MMAP": False})
        self._device = self._resolved_device(device)
        self._threads, self._streams = threads or cores(), streams
        if precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"precision is {precision!r}; choose auto, fp32 or bf16 for OpenVINO files")
        try:
            self._network = self._core.read_model(path)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: OpenVINO cannot read the file ({_reason(error)}); export the model again"
            ) from error
        has = self._network.has_rt_info(METADATA_KEY)
        text = str(self._network.get_rt_info(METADATA_KEY).value) if has else None
        self.path, self.model = path, ExportedModel.from_json(text, path)
        fast = precision == "bf16" or (precision == "auto" and has_bf16() and self.model.bf16_accepted)
        self._precision = "bf16" if fast else "f32"
        self.arithmetic: Arithmetic = "bf16" if self._precision == "bf16" else "fp32"
        if self.model.precision == "int8":
            self.arithmetic = "int8"
        inputs, outputs = (
            {each.get_any_name(): _shape(each) for each in ports}
            for ports in (self._network.inputs, self._network.outputs)
        )
        require_graph(self.model, path, inputs, outputs)
        pixels = self._network.input("images").get_element_type().to_dtype()
        if pixels != np.dtype(self.model.input_type):
            raise CheckpointError(f"{path}: its input is {pixels}, which its metadata does not say; export it again")
        self._lock = Lock()
        self._names = [output.get_any_name() for output in self._network.outputs]
        self._compiled: dict[int, list[openvino.InferRequest]] = {}  # by the number of streams

    def __call__(self, images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Arrays:
        """Compute the outputs of the file, by name; see :class:`retinanet.runtime.exported.ExportedNetwork`."""
        with self._lock:  # a request computes one input at a time
            return self._computed(images, sizes)

    def _computed(self, images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Arrays:
        together = self.model.batch or 1
        starts = range(0, len(images), together)
        requests = self._requests(len(starts))
        parts: list[list[npt.NDArray[Any]]] = []
        for begin in range(0, len(starts), len(requests)):
            running = list(zip(starts[begin : begin + len(requests)], requests, strict=False))
            for start, request in running:
                stop = start + together
                request.start_async({"images": images[start:stop], "sizes": sizes[start:stop]})
            for _, request in running:
                request.wait()
                parts.append([request.get_tensor(name).data.copy() for name in self._names])
        columns = zip(*parts, strict=True)
        return {name: np.concatenate(arrays) for name, arrays in zip(self._names, columns, strict=True)}

    def _requests(self, runs: int) -> list[openvino.InferRequest]:
        """One request for each stream of the model that computes a number of runs."""
        # A single image gets all threads, of several images each gets one.
        streams = self._streams or (1 if runs == 1 else self._threads)
        if streams not in self._compiled:
            self._compiled[streams] = self._compile(streams)
        return self._compiled[streams]

    def _compile(self, streams: int) -> list[openvino.InferRequest]:
        settings = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
        }
        compiled = self._core.compile_model(self._network, self._device, settings if self._device == "CPU" else {})
        return [compiled.create_infer_request() for _ in range(streams)]

    def _resolved_device(self, device: str) -> str:
        if device in ("auto", "cpu"):
            return "CPU"
        if device.upper() not in (available := self._core.available_devices):
            raise ConfigError(f"device {device!r} cannot be used with OpenVINO; there is {', '.join(available)}")
        return device.upper()


def _shape(port: Any) -> list[int | None]:
    return [side.get_length() if side.is_static else None for side in port.get_partial_shape()]


def has_bf16() -> bool:
    """Return whether OpenVINO multiplies bfloat16 numbers on this processor."""
    core = import_without_telemetry("openvino").Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def import_without_telemetry(name: str) -> Any:
    """Import ``openvino`` or ``nncf`` without openvino_telemetry, which would report their use over the network.

    Both packages replace a missing openvino_telemetry by an object that does nothing.
    """
    telemetry = "openvino_telemetry"
    if name in sys.modules or sys.modules.get(telemetry) is not None:
        return import_module(name)
    sys.modules[telemetry] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        return import_module(name)
    finally:
        del sys.modules[telemetry]


def _reason(error: RuntimeError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else "unknown reason"
