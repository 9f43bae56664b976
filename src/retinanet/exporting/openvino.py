"""OpenVINO models from ONNX models."""

from __future__ import annotations

from typing import Any

from retinanet.runtime.openvino import import_without_telemetry


def to_openvino(proto: Any) -> Any:
    """Convert an ``onnx.ModelProto`` to an ``openvino.Model`` with the same names of inputs and outputs."""
    # read_model, because convert_model reports its use over the network
    return import_without_telemetry("openvino").Core().read_model(proto.SerializeToString())
