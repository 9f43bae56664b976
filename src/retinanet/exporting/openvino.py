"""OpenVINO models: from ONNX, and quantized to INT8 with a limit on the loss of AP."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset
from retinanet.data.images import read_image
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.runtime import RuntimeDetector, input_of, load_exported
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.exporting.files import write_model
from retinanet.machine import Precision
from retinanet.runtime.exported import Arithmetic, ExportedModel
from retinanet.runtime.openvino import import_without_telemetry

# Value ranges are taken from this many images, and from no fewer than the second number.
_CALIBRATION, _FEWEST = 300, 10

# Number of images that rank the layers by what they cost.
_RANKING = 100

Say = Callable[[str], object]


def to_openvino(proto: Any) -> Any:
    """Convert an ``onnx.ModelProto`` to an ``openvino.Model`` with the same names of inputs and outputs."""
    # read_model, because convert_model reports its use over the network
    return import_without_telemetry("openvino").Core().read_model(proto.SerializeToString())


def quantized(
    model: Any,
    description: ExportedModel,
    original: PyTorchDetector,
    calibration: Dataset,
    validation: Dataset,
    max_drop: float,
    say: Say = lambda line: None,
) -> tuple[Any, list[str]]:
    """Quantize ``model`` to INT8. If AP falls by more than ``max_drop`` points, the layers that cost most stay float.

    Args:
        model: ``openvino.Model`` with the network.
        description: its metadata.
        original: the detector that it comes from; it resizes the images.
        calibration: images that the value ranges of the activations are taken from.
        validation: images that AP is measured on.
        max_drop: largest loss of AP, in points.
        say: called with a line for each measured AP.

    Returns:
        The quantized model, and sentences for the user, which name the layers that are not quantized.

    Raises:
        DataError: there are too few images, or no object to measure AP with.
    """
    if min(len(calibration), len(validation)) < _FEWEST:
        few = calibration if len(calibration) < len(validation) else validation
        raise DataError(
            f"{few.name}: {len(few)} images are too few for INT8; give at least {_FEWEST}, better {_CALIBRATION}"
        )
    if validation.ignore.all():
        raise DataError(f"{validation.name}: no objects, so the loss of AP through INT8 cannot be measured")
    nncf = import_without_telemetry("nncf")
    nncf.set_log_level(40)  # errors
    images = _Images(description, original)
    chosen = np.random.default_rng(0).permutation(len(calibration))[:_CALIBRATION].tolist()
    inputs = nncf.Dataset(chosen, lambda index: images.inputs(calibration, index))
    measure = _Measurement(images, validation, say)
    before = measure.of_file(model, "fp32")
    limit = before - max_drop / 100
    say(f"float32: AP {100 * before:.2f}")
    best, best_ap = None, -1.0
    # Bias correction layer by layer takes longer and is more exact, so it comes second.
    for fast in (True, False):
        candidate = nncf.quantize(model.clone(), inputs, subset_size=len(chosen), fast_bias_correction=fast)
        ap = measure.of_file(candidate, "auto")
        say(f"INT8, {'fast' if fast else 'exact'} bias correction: AP {100 * ap:.2f}")
        if ap > best_ap:
            best, best_ap = candidate, ap
        if ap >= limit:
            break
    result = best
    if best_ap < limit:
        say(f"INT8 costs {100 * (before - best_ap):.2f} points of AP; measuring what each layer costs")
        result = nncf.quantize_with_accuracy_control(
            model,
            inputs,
            nncf.Dataset(list(range(len(validation)))),
            measure,
            max_drop=max_drop / 100,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(chosen),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=_RANKING),
        )
    total, float_layers = _layers(result)
    notes = [f"{total - len(float_layers)} of {total} convolutions are INT8"]
    if float_layers:
        notes[0] += f"; in higher precision: {', '.join(float_layers)}"
    return result, notes


@dataclass(frozen=True)
class _Images:
    """Reads the images of a dataset as inputs of the network."""

    description: ExportedModel
    original: PyTorchDetector

    def inputs(self, dataset: Dataset, index: int) -> dict[str, npt.NDArray[Any]]:
        pixels, _ = self.scaled(dataset, index)
        images, sizes = input_of([pixels], self.description)
        return {"images": images, "sizes": sizes}

    def scaled(self, dataset: Dataset, index: int) -> tuple[npt.NDArray[Any], tuple[int, int]]:
        image = read_image(dataset.path(index), self.original.info.config.data.pixel_range)
        height, width = image.shape[:2]
        shape = RuntimeDetector(_Compiled(self.description)).scaled_size(height, width)
        return self.original.resize(image, shape), (height, width)


class _Compiled:
    """A model that the quantization has compiled, as a network."""

    def __init__(self, description: ExportedModel, compiled: Any = None) -> None:
        self.path, self.model, self._compiled = Path("model.xml"), description, compiled
        self.arithmetic: Arithmetic = "int8"

    def __call__(self, images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[Any]]:
        outputs = self._compiled({"images": images, "sizes": sizes})
        return {output.get_any_name(): value for output, value in outputs.items()}


class _Measurement:
    """Measures AP, as a validation function of the quantization: 0–1, without values of single images."""

    def __init__(self, images: _Images, dataset: Dataset, say: Say) -> None:
        self._images, self._dataset, self._say = images, dataset, say

    def of_file(self, model: Any, precision: Precision) -> float:
        """Write the model to a file and measure its AP as an evaluation does."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            write_model("openvino", model, self._images.description, path)
            detector = load_exported(path, precision)
            every = range(len(self._dataset))
            return self._ap(detector, every)

    def __call__(self, compiled: Any, indices: Iterable[int]) -> tuple[float, None]:
        ap = self._ap(RuntimeDetector(_Compiled(self._images.description, compiled)), list(indices))
        self._say(f"AP {100 * ap:.2f}")
        return ap, None

    def _ap(self, detector: RuntimeDetector, rows: Sequence[int]) -> float:
        parts = []
        for position, index in enumerate(rows):
            pixels, size = self._images.scaled(self._dataset, index)
            (found,) = detector.detect_scaled([pixels])
            parts.append(found.rescaled(pixels.shape[:2], size).moved(position))
        subset = self._dataset if len(rows) == len(self._dataset) else self._dataset.subset(rows)
        return max(0.0, coco_metrics(subset, Detections.concatenate(parts)).summary["AP"])


def _layers(model: Any) -> tuple[int, list[str]]:
    """The number of convolutions, and the names of those that are not quantized."""
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name().endswith("Convolution")]
    return len(convolutions), [node.get_friendly_name() for node in convolutions if not _is_quantized(node)]


def _is_quantized(convolution: Any) -> bool:
    return bool(convolution.input_value(0).get_node().get_type_name() == "FakeQuantize")
