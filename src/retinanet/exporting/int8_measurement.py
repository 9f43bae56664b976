"""What the quantization measures: AP of a model, and how far its outputs are from those of the float32 model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset
from retinanet.data.images import read_image
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.runtime import RuntimeDetector, input_of, load_exported
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.exporting.files import write_model
from retinanet.machine import Precision
from retinanet.runtime.exported import Arithmetic, ExportedModel
from retinanet.runtime.openvino import import_without_telemetry
from retinanet.runtime.postprocess import Outputs

# Number of anchors of an image whose outputs are compared.
_BEST = 100

Floats = npt.NDArray[np.floating]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class NetworkInputs:
    """Reads the images of a dataset as inputs of the network.

    Attributes:
        description: the metadata of the model.
        original: the detector that the model comes from; it resizes the images.
    """

    description: ExportedModel
    original: PyTorchDetector

    @cached_property
    def _detector(self) -> RuntimeDetector:
        return RuntimeDetector(_Compiled(self.description, lambda images, sizes: {}))

    def inputs(self, dataset: Dataset, index: int) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of the network for one image."""
        pixels, _ = self.scaled(dataset, index)
        images, sizes = input_of([pixels], self.description)
        return {"images": images, "sizes": sizes}

    def scaled(self, dataset: Dataset, index: int) -> tuple[npt.NDArray[Any], tuple[int, int]]:
        """Return an image ``(h, w, 3)`` at the size that the network gets, and its original ``(height, width)``."""
        image = read_image(dataset.path(index), self.original.info.config.data.pixel_range)
        height, width = image.shape[:2]
        shape = self._detector.scaled_size(height, width)
        return self.original.resize(image, shape), (height, width)


class _Compiled:
    """A compiled model as a network. It keeps its last outputs."""

    def __init__(self, description: ExportedModel, run: Callable[[Any, Any], Arrays]) -> None:
        self.path, self.model = Path("model.xml"), description
        self.arithmetic: Arithmetic = "int8"
        self._run = run
        self.last: Arrays = {}

    def __call__(self, images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Arrays:
        self.last = self._run(images, sizes)
        return self.last


class _Best(NamedTuple):
    """Outputs of the best anchors of an image: their positions, scores ``(n, K)`` and deltas ``(n, 4)``."""

    anchors: npt.NDArray[np.int64]
    scores: Floats
    deltas: Floats

    @classmethod
    def of(cls, outputs: Arrays, anchors: npt.NDArray[np.int64] | None = None) -> Self:
        """Outputs of ``anchors`` of the only image; unset: those with the highest scores."""
        levels = Outputs.of(outputs)
        logits, deltas = (np.concatenate([level[0] for level in part]) for part in levels)
        if anchors is None:
            anchors = np.argsort(-logits.max(axis=1), kind="stable")[:_BEST]
        return cls(anchors, 1 / (1 + np.exp(-logits[anchors])), deltas[anchors])


class Measurement:
    """Measures models on a dataset: AP (0–1), and how far the outputs are from those of the float32 model.

    The value of an image is the negative mean difference of its best anchors' scores and deltas: 0 for the float32
    model. The AP of a few images is too coarse to show what a single layer costs; this value is not.
    """

    def __init__(self, images: NetworkInputs, dataset: Dataset) -> None:
        self._images, self._dataset = images, dataset
        self._expected: list[_Best] = []

    def __len__(self) -> int:
        return len(self._dataset)

    def of_float_model(self, model: Any) -> float:
        """Measure AP in float32, and keep the outputs of the best anchors for comparisons."""
        self._expected = []
        return self._of_file(model, "fp32", lambda row, outputs: self._expected.append(_Best.of(outputs)))

    def of_file(self, model: Any) -> tuple[float, list[float]]:
        """Measure AP with the arithmetic that the model will be used with, and the value of each image."""
        values: list[float] = []
        ap = self._of_file(model, "auto", lambda row, outputs: values.append(self._value(row, outputs)))
        return ap, values

    def of_images(self, model: Any, rows: Sequence[int]) -> list[float]:
        """Measure the values of some images, without a file."""
        compiled = import_without_telemetry("openvino").compile_model(model, "CPU")

        def run(images: Any, sizes: Any) -> Arrays:
            outputs = compiled({"images": images, "sizes": sizes})
            return {output.get_any_name(): value for output, value in outputs.items()}

        values: list[float] = []
        self._detect(run, rows, lambda row, outputs: values.append(self._value(row, outputs)))
        return values

    def _value(self, row: int, outputs: Arrays) -> float:
        expected = self._expected[row]
        own = _Best.of(outputs, expected.anchors)
        parts = zip(expected[1:], own[1:], strict=True)
        return -float(sum(np.abs(a.astype(np.float64) - b).mean() for a, b in parts))

    def _of_file(self, model: Any, precision: Precision, record: Callable[[int, Arrays], object]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            write_model("openvino", model, self._images.description, path)
            found = self._detect(load_exported(path, precision).network, range(len(self)), record)
        return max(0.0, coco_metrics(self._dataset, Detections.concatenate(found)).summary["AP"])

    def _detect(
        self, run: Callable[[Any, Any], Arrays], rows: Sequence[int], record: Callable[[int, Arrays], object]
    ) -> list[Detections]:
        """Detect objects in the images ``rows``, and pass the outputs of each to ``record``."""
        network = _Compiled(self._images.description, run)
        detector = RuntimeDetector(network)
        parts = []
        for row in rows:
            pixels, size = self._images.scaled(self._dataset, row)
            (found,) = detector.detect_scaled([pixels])
            record(row, network.last)
            parts.append(detector.in_image(found, pixels.shape[:2], size).moved(row))
        return parts
