"""Trace a graph and convert it to ONNX."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retinanet.data.image_sizes import PAD_TO
from retinanet.errors import RetinaNetError
from retinanet.exporting.graph import DETECTIONS
from retinanet.exporting.options import ExportOptions
from retinanet.exporting.suppression_op import onnx_translations


def example_inputs(options: ExportOptions, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images and sizes for tracing."""
    # The traced numbers of images, rows and columns differ from each other and from 1, so that none of them is taken
    # for a constant or for another one.
    height, width = options.input_size or (7 * PAD_TO, 9 * PAD_TO)
    batch = options.batch or 2
    images = torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(0))
    return images.to(dtype), torch.tensor([[height, width - 1]] * batch)


def _dynamic_shapes(options: ExportOptions) -> tuple[dict[int, Any], dict[int, Any]]:
    """The dynamic dimensions of both inputs."""
    batch = {0: torch.export.Dim("batch")} if options.batch is None else {}
    sides: dict[int, Any] = {}
    if options.input_size is None:
        sides = {2 + i: PAD_TO * torch.export.Dim(name, max=1 << 20) for i, name in enumerate(("rows", "columns"))}
    return {**batch, **sides}, batch


def trace(graph: nn.Module, options: ExportOptions, dtype: torch.dtype = torch.uint8) -> torch.export.ExportedProgram:
    """Trace ``graph``.

    Raises:
        RetinaNetError: the network cannot be traced.
    """
    try:
        with _quiet():
            return torch.export.export(
                graph, example_inputs(options, dtype), dynamic_shapes=_dynamic_shapes(options), strict=False
            )
    except Exception as error:
        if isinstance(error, RetinaNetError | MemoryError):
            raise
        raise RetinaNetError(
            f"this network cannot be exported ({_reason(error)}); try a fixed input (--size, --batch), or another "
            "backbone, e.g. resnet50 or tf_efficientnet_lite0"
        ) from error


def to_onnx(program: torch.export.ExportedProgram, outputs: list[str], opset: int, hidden: bool = False) -> Any:
    """Convert a traced graph to a slimmed ``onnx.ModelProto`` with named inputs and outputs.

    With ``hidden``, the file has the outputs of a detector alone; the network's outputs keep their names inside.

    Raises:
        RetinaNetError: the graph cannot be converted.
    """
    import onnx
    import onnxslim

    try:
        with _quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                opset_version=opset,
                custom_translation_table=onnx_translations(),
                input_names=["images", "sizes"],
                output_names=outputs,
                verbose=False,
            )
            assert converted is not None
            with tempfile.TemporaryDirectory() as folder:
                # Models above 2 GB do not fit one file; the exporter says so.
                path = Path(folder) / "model.onnx"
                converted.save(str(path), external_data=False)
                del converted
                model = onnxslim.slim(str(path))
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, RetinaNetError | MemoryError):
            raise
        raise RetinaNetError(f"this network cannot be converted to ONNX ({_reason(error)})") from error
    if hidden:
        del model.graph.output[len(DETECTIONS) :]
    _name_dimensions(model)
    onnx.checker.check_model(model)
    return model


def _name_dimensions(model: Any) -> None:
    """Give the dynamic dimensions short names, and leave out the exporter's sums and products."""
    graph = model.graph
    names = {"images": ("batch", None, "height", "width"), "sizes": ("batch", None)}
    for value in [*graph.input, *graph.output]:
        for position, dimension in enumerate(value.type.tensor_type.shape.dim):
            if not dimension.HasField("dim_param"):
                continue
            own = names.get(value.name, ("batch",))
            name = own[position] if position < len(own) else None
            dimension.Clear()
            if name:
                dimension.dim_param = name
    del graph.value_info[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and messages of the exporters that mean nothing to the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]
