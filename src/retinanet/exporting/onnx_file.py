"""Trace a graph and convert it to ONNX."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retinanet.data.transforms import PAD_TO
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.exporting.suppression_op import onnx_translations

# The lowest version of ONNX's operators that the exporter supports, and the highest that it was tested with.
OPSETS = range(18, 24)


@dataclass(frozen=True)
class InputShape:
    """The shape of the exported graph's input; what is ``None`` stays dynamic.

    Attributes:
        size: ``(H, W)`` of the padded batch, multiples of 32.
        batch: number of images.
    """

    size: tuple[int, int] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for side in self.size or ():
            if side < PAD_TO or side % PAD_TO:
                near = max(PAD_TO, -(-side // PAD_TO) * PAD_TO)
                raise ConfigError(f"--size {side}: a side must be a multiple of {PAD_TO}; give {near}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}; it must be at least 1")

    def example(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Inputs of this shape, for tracing."""
        # The traced numbers of images, rows and columns differ from each other and from 1, so that none of them is
        # taken for a constant or for another one.
        height, width = self.size or (7 * PAD_TO, 9 * PAD_TO)
        batch = self.batch or 2
        images = torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(0))
        return images.to(dtype), torch.tensor([[height, width - 1]] * batch)

    def dynamic(self) -> tuple[dict[int, Any], dict[int, Any]]:
        """The dynamic dimensions of both inputs, for the exporters."""
        images: dict[int, Any] = {}
        if self.batch is None:
            images[0] = torch.export.Dim("batch")
        sizes = dict(images)
        if self.size is None:
            images[2] = PAD_TO * torch.export.Dim("rows", max=1 << 20)
            images[3] = PAD_TO * torch.export.Dim("columns", max=1 << 20)
        return images, sizes


def trace(graph: nn.Module, shape: InputShape, dtype: torch.dtype = torch.uint8) -> torch.export.ExportedProgram:
    """Trace ``graph`` with inputs of this shape.

    Raises:
        RetinaNetError: the network cannot be traced.
    """
    try:
        with _quiet():
            return torch.export.export(graph, shape.example(dtype), dynamic_shapes=shape.dynamic(), strict=False)
    except Exception as error:
        if isinstance(error, RetinaNetError | MemoryError):
            raise
        raise RetinaNetError(
            f"this network cannot be exported ({_reason(error)}); try a fixed input (--size, --batch), or another "
            "backbone, e.g. resnet50 or tf_efficientnet_lite0"
        ) from error


def to_onnx(program: torch.export.ExportedProgram, outputs: list[str], opset: int) -> Any:
    """Convert a traced graph to a slimmed ``onnx.ModelProto`` with named inputs and outputs.

    Raises:
        ConfigError: the opset is not supported.
        RetinaNetError: the graph cannot be converted.
    """
    import onnx
    import onnxslim

    if opset not in OPSETS:
        raise ConfigError(f"--opset is {opset}; it must lie between {OPSETS[0]} and {OPSETS[-1]}")
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
