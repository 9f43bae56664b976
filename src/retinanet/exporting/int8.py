"""Quantize an OpenVINO model to INT8, with a limit on the loss of AP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.errors import DataError
from retinanet.exporting.int8_measurement import CalibrationImages, Measurement
from retinanet.runtime.exported import ExportedModel
from retinanet.runtime.openvino import import_without_telemetry

# Value ranges are taken from this many images, and from no fewer than the second number.
_CALIBRATION, _FEWEST = 300, 10

# Layers are ranked on the images that INT8 changes most, this many of them.
_RANKING = 30

# The accuracy control aims at these fractions of the largest loss of AP, because it measures AP in another way than an
# evaluation does. The second is tried if the first does not suffice.
_AIMS = (0.9, 0.5)


def quantized(
    model: Any,
    description: ExportedModel,
    original: PyTorchDetector,
    calibration: Dataset,
    validation: Dataset,
    max_drop: float,
    say: Callable[[str], object] = lambda line: None,
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
    images = CalibrationImages(description, original)
    chosen = np.random.default_rng(0).permutation(len(calibration))[:_CALIBRATION].tolist()
    inputs = nncf.Dataset(chosen, lambda index: images.inputs(calibration, index))
    measure = Measurement(images, validation, say)
    before = measure.of_float_model(model)
    limit = before - max_drop / 100
    say(f"float32: AP {100 * before:.2f}")
    best = nncf.quantize(model.clone(), inputs, subset_size=len(chosen))
    best_ap = measure.of_file(best)
    say(f"INT8: AP {100 * best_ap:.2f}")
    if best_ap < limit:
        say(f"INT8 costs {100 * (before - best_ap):.2f} points of AP; measuring what each layer costs")
        for aim in _AIMS:
            best = nncf.quantize_with_accuracy_control(
                model,
                inputs,
                nncf.Dataset(list(range(len(validation)))),
                measure,
                max_drop=aim * max_drop / 100,
                drop_type=nncf.DropType.ABSOLUTE,
                subset_size=len(chosen),
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    ranking_subset_size=_RANKING
                ),
            )
            best_ap = measure.of_file(best)
            say(f"INT8 with some layers in higher precision: AP {100 * best_ap:.2f}")
            if best_ap >= limit:
                break
    total, float_layers = _layers(best, model)
    notes = [f"{total - len(float_layers)} of {total} convolutions are INT8"]
    if float_layers:
        notes[0] += f"; in higher precision: {', '.join(float_layers)}"
    return best, notes


def _weight_of(convolution: Any) -> str:
    """The name of a convolution's weight, without the prefix that all weights share."""
    node = convolution.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name()).removeprefix("network.").removesuffix(".weight")


def _convolutions(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name().endswith("Convolution")]


def _layers(result: Any, model: Any) -> tuple[int, list[str]]:
    """The number of convolutions, and the layers of the float ``model`` that are not quantized.

    A subnet's layer is a convolution for each pyramid level.
    """
    # The quantization changes weights and their names, but keeps the names of convolutions.
    names = {node.get_friendly_name(): _weight_of(node) for node in _convolutions(model)}
    convolutions = _convolutions(result)
    kept = Counter(names[node.get_friendly_name()] for node in convolutions if not _is_quantized(node))
    return len(convolutions), [name if count == 1 else f"{name} (on {count} levels)" for name, count in kept.items()]


def _is_quantized(convolution: Any) -> bool:
    return bool(convolution.input_value(0).get_node().get_type_name() == "FakeQuantize")
