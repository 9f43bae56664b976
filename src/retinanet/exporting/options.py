"""The settings of an export: defaults, flags and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retinanet.data.image_sizes import PAD_TO
from retinanet.errors import ConfigError

Target = Literal["onnx", "openvino", "torch"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}

# The versions of ONNX's operators that the exporter was tested with. (It fails with 19.)
OPSETS = (18, 20, 21, 22, 23)


@dataclass(frozen=True)
class ExportOptions:
    """Settings of an export."""

    graph: Literal["auto", "network", "detector"] = "auto"
    """What the file contains. detector: the network and post-processing, for programs that are not Python (onnx only).
    network: only the network, for OpenVINO, INT8 and other compilers. auto: detector for onnx, else network."""
    size: tuple[int, ...] = ()
    """Fixed size of the input in pixels: one number, or height and width; multiples of 32. Unset: images of any size.
    Images that are larger after resizing are scaled down to it, and smaller ones are padded."""
    batch: int | None = None
    """Fixed number of images per call. Unset: any number."""
    opset: int = 20
    """Version of ONNX's operators. Lower it for an old runtime."""
    score: float | None = None
    """Lowest score of a detection in a detector file. Unset: decode.score of the weights, 0.05 by default. A higher
    value can still be chosen when the file is used."""
    max_detections: int | None = None
    """Largest number of detections per image. Unset: the number that the weights store."""
    int8: bool = False
    """Quantize to INT8 on images of DATA, with the loss of AP limited to max-drop (openvino only)."""
    max_drop: float = 0.3
    """Largest loss of AP through INT8, in points (0.3 = 0.003 of 1). Layers that cost more stay in a higher
    precision."""

    def __post_init__(self) -> None:
        if len(self.size) > 2:
            raise ConfigError(f"--size has {len(self.size)} numbers; give one, or height and width")
        for side in self.size:
            if side < PAD_TO or side % PAD_TO:
                near = max(PAD_TO, -(-side // PAD_TO) * PAD_TO)
                raise ConfigError(f"--size {side}: a side must be a multiple of {PAD_TO}; give {near}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}; it must be at least 1")
        if self.opset not in OPSETS:
            raise ConfigError(f"--opset is {self.opset}; choose {', '.join(map(str, OPSETS))}")
        if self.score is not None and not 0 <= self.score < 1:
            raise ConfigError(f"--score is {self.score}; it must lie between 0 and 1")
        if not 0 <= self.max_drop <= 100:
            raise ConfigError(f"--max-drop is {self.max_drop}; give points of AP from 0 to 100")

    @property
    def input_size(self) -> tuple[int, int] | None:
        """``(height, width)`` of a fixed input."""
        return (self.size[0], self.size[-1]) if self.size else None

    def padding_notes(self, multiple: int) -> list[str]:
        """Return a note if the model pads to another ``multiple`` than the fixed input, which changes detections."""
        size = self.input_size
        if size is None or all(side % multiple == 0 for side in size):
            return []
        fitting = " ".join(str(-(-side // multiple) * multiple) for side in self.size)
        return [
            f"the model pads its input to multiples of {multiple} pixels, and a side of {size[0]}×{size[1]} is no "
            f"such multiple, so detections may differ from those of the model; --size {fitting} has the model's padding"
        ]

    def graph_for(self, target: Target) -> Literal["network", "detector"]:
        """Resolve ``auto``, and check that the settings fit each other.

        Raises:
            ConfigError: they do not.
        """
        if self.int8 and target != "openvino":
            raise ConfigError(f"--int8 writes OpenVINO files, not {target}; give --to openvino")
        if self.graph == "detector" and target != "onnx":
            raise ConfigError(f"--graph detector is for --to onnx; {target} files contain the network alone")
        if self.graph == "auto":
            return "detector" if target == "onnx" else "network"
        return self.graph
