"""The network's outputs inside a detector file, and its post-processing on its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retinanet.anchors import make_grid
from retinanet.detections import Detections
from retinanet.errors import CheckpointError
from retinanet.exporting.agreement import EXACT, Agreement, compare_detections
from retinanet.exporting.graph import DETECTIONS, raw_names
from retinanet.model import Outputs
from retinanet.postprocess import postprocess
from retinanet.runtime.exported import ExportedModel

Arrays = Mapping[str, npt.NDArray[Any]]

# The random outputs: number of images, and height and width of the input.
_BATCH, _HEIGHT, _WIDTH = 2, 96, 160


class DetectorFile:
    """The parts of an ONNX detector file.

    Args:
        path: the file.
        model: its metadata.
    """

    def __init__(self, path: Path, model: ExportedModel) -> None:
        import onnx

        self.path, self.model = path, model
        self._proto = onnx.load(str(path))
        self._raw = raw_names(len(model.info.config.anchors.strides))
        produced = {name for node in self._proto.graph.node for name in node.output}
        if missing := [name for name in self._raw if name not in produced]:
            raise CheckpointError(
                f"{path}: the outputs of the network are not in the file ({missing[0]} is missing), so it cannot be "
                "compared; another program has changed the file; export the model again"
            )

    @cached_property
    def _network(self) -> Any:
        return self._session(["images", "sizes"], self._raw)

    def raw_outputs(self, images: npt.NDArray[Any], sizes: npt.NDArray[np.int64]) -> Arrays:
        """Compute the network's outputs, by name."""
        return dict(zip(self._raw, self._network.run(self._raw, {"images": images, "sizes": sizes}), strict=True))

    def compare_postprocessing(self, seed: int = 0) -> Agreement:
        """Compare the post-processing in the file with :func:`retinanet.postprocess.postprocess` on random outputs.

        If the file takes several images, the last one has a logit that is NaN and another that is infinite.
        """
        info = self.model.info
        height, width = self.model.size or (_HEIGHT, _WIDTH)
        batch = self.model.batch or _BATCH
        settings = info.config.decode.resolved()
        grid = make_grid(info.config.anchors, (height, width))
        generator = torch.Generator().manual_seed(seed)
        # About one score in 20 is above the threshold, but in each image some thousands at most.
        share = min(0.05, 2000 / (len(grid.boxes) * len(info.classes)))
        lowest = math.log(max(settings.score, 1e-3) / (1 - max(settings.score, 1e-3)))
        middle = lowest + 2 * float(torch.special.ndtri(torch.tensor(share)))
        logits = [
            middle + 2 * torch.randn(batch, size, len(info.classes), generator=generator) for size in grid.level_sizes
        ]
        deltas = [0.5 * torch.randn(batch, size, 4, generator=generator) for size in grid.level_sizes]
        in_file = {output.name for output in self._proto.graph.output}
        names = [name for name in DETECTIONS if name in in_file]
        if batch > 1 and "nonfinite" in names:  # files of older versions do not have this output
            logits[0][-1, 0, 0], logits[-1][-1, 0, 0] = math.nan, math.inf
        sizes = [(height - i, width - 2 * i) for i in range(batch)]
        expected = postprocess(Outputs(logits, deltas), grid, sizes, settings)

        values = {name: tensor.numpy() for name, tensor in zip(self._raw, [*logits, *deltas], strict=True)}
        session = self._session([*self._raw, "images", "sizes"], names)
        values["images"] = np.zeros((batch, 3, height, width), self.model.input_type)
        values["sizes"] = np.array(sizes, dtype=np.int64)
        needed = {each.name for each in session.get_inputs()}
        outputs = session.run(names, {name: value for name, value in values.items() if name in needed})
        found = dict(zip(names, outputs, strict=True))
        total = Agreement()
        for image, size in enumerate(sizes):
            count = int(found["counts"][image])
            parts = (found[name][image, :count] for name in ("boxes", "scores", "labels"))
            own = Detections.of_one_image(*parts)
            total += compare_detections(expected[image], own, size, EXACT, settings.score)
            for name, mark in (("limits", "limited"), ("nonfinite", "nonfinite")):
                if name in found and bool(found[name][image]) != bool(len(getattr(expected[image], mark))):
                    total += Agreement(differing=len(expected[image]))
        return total

    def _session(self, inputs: list[str], outputs: list[str]) -> Any:
        """A session of the part of the graph between ``inputs`` and ``outputs``."""
        import onnx
        import onnxruntime

        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        known = {value.name for value in [*proto.graph.input, *proto.graph.output]}
        for name in self._raw:
            if name not in known:
                value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None, None])
                proto.graph.value_info.append(value)
        part = onnx.utils.Extractor(proto).extract_model(inputs, outputs)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
